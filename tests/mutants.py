"""The mutation gate: breaks the library on purpose, one line at a time, and demands that the tests notice.

    python tests/mutants.py            all of them
    python tests/mutants.py 3 7        only these

The report, data/results/mutants.json, holds for each breakage its name, what was done, and the test that noticed.

Each breakage is tried on a copy, against the tests that ought to see it. Every run is a fork of one process that has
loaded the libraries already, so that a breakage costs a second or two and not the ten of a fresh start.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 300.0  # seconds; a breakage that makes the tests run for ever is noticed too

RULES = ["test_rules.py"]
TREES = ["test_tree_law.py"]
SAMPLING = ["test_distributions.py"]
CONTEXTS = ["test_contexts.py"]
PRODUCTS = ["test_products.py"]
TRIALS = ["test_trials.py"]
MODELS = ["test_models.py", "-k", "width or padded or clear or forget"]
PROBE = ["test_probe.py"]
LOOP = ["test_decoding.py", "--deselect=test_decoding.py::test_greedy_is_transformers_own_on_200_prompts"]
LAW = ["test_exact.py::test_generate_keeps_the_law"]
STOPS = ["test_stops.py"]
TRACE = ["test_trace.py"]
TRAINING = ["test_training.py"]
FILES = ["test_files.py"]
EMBEDDED = ["test_embedded.py", "-k", "known or called"]
CONSOLE = ["test_console.py", "-k", "any_text"]
CHAT = ["test_real_model.py", "-k", "columns or category or prediction or outgrows or first_layers or left_out"]
EAGLE = ["test_eagle.py"]
BLOCK = ["test_block.py", "-k", "saw or each or drawn or keeps_the_law and not compiled"]
PROCESSORS = ["test_processors.py"]
VECTORS = ["test_vectors.py", "-k", "agrees"]
CERTIFY = ["test_certify.py", "-k", "hidden or late or skipping or outside or cannot_see"]
DEVICE = ["test_device.py", "-k", "without_double or machine_has"]
GUESSERS = ["test_every_guesser.py", "-k", "sums_to"]
BATCHES = ["test_batches.py", "-k", "ragged or leaves or joint and 2-False or stop_on or same_prompt or not_made or fit or plans"]
PIECES = ["test_batches.py", "-k", "pieces"]
PREDICTIONS = ["test_batches_measure.py", "-k", "by_hand or gain_ends or same_texts"]
STATISTICS = ["test_statistics.py", "-k", "by_hand or together"]
LATENCY = ["test_latency.py", "-k", "cost_ratio or by_hand or waits"]
LAB = "../notebooks/lab/lab.mjs"
PAGE = ["test_lab.py", "-k", "own_tests or laws_are or statistics_are"]  # by node

STOP = "Verdict(chain_stops(ratio.clamp(max=1)), "
TOKEN = STOP + "torch.cat([residual(p[:, :n], q), p[:, n:]], 1))"
MUTANTS = [  # (what is wrong, file, old text, new text, the tests that ought to see it)
    ("the ratio squared", "law/rules.py", TOKEN, TOKEN.replace("(max=1)", "(max=1) ** 2"), RULES),
    ("after a rejection, draw from p", "law/rules.py", TOKEN, STOP + "p)", RULES),
    ("residual of the wrong row", "law/rules.py", TOKEN, STOP + "torch.cat([residual(p[:, :n].roll(1, 1), q), p[:, n:]], 1))", RULES),
    ("bonus token from the wrong row", "law/rules.py", TOKEN, STOP + "torch.cat([residual(p[:, :n], q), p[:, :1]], 1))", LAW),
    ("everything is accepted", "law/rules.py", "rejected = torch.cat([ones - accept, ones], -1)", "rejected = torch.cat([0 * accept, ones], -1)", RULES),
    ("each test ignores those before it", "law/rules.py", "torch.cat([ones, accept.cumprod(-1)], -1)", "torch.cat([ones, accept], -1)", RULES),
    ("block: the weight is not capped", "law/rules.py", "weights.append((weights[-1] * ratio[:, i]).clamp(max=1))", "weights.append(weights[-1] * ratio[:, i].clamp(max=1))", RULES),
    ("block: the first test that fails ends it", "law/rules.py", "(1 - passes[:, 1:]).flip(1).cumprod(1).flip(1)", "(1 - passes[:, 1:])", RULES),
    ("block: residual without the weight", "law/rules.py", "excess = (w[:, :n, None] * p[:, :n] - q)", "excess = (p[:, :n] - q)", LAW),
    ("typical acceptance called lossless", "law/rules.py", 'Rule("typical", typical_law, False', 'Rule("typical", typical_law, True', RULES),
    ("tree: the residual is not updated by earlier siblings", "law/rules.py", "left[node] = residual(left[node], q[:, child])", "left[node] = residual(p[:, node], q[:, child])", TREES),
    ("tree: every sibling is tried against the whole of p", "law/rules.py", "(left[node].gather(", "(p[:, node].gather(", TREES),
    ("tree: a sibling is tried though one before it was taken", "law/rules.py", "reached[node] * missed[node] * accept", "reached[node] * accept", TREES),
    ("residual not clipped", "law/distributions.py", "excess = (p - q).clamp_(min=0)", "excess = (p - q).abs_()", SAMPLING),
    ("residual the wrong way round", "law/distributions.py", "excess = (p - q).clamp_(min=0)", "excess = (q - p).clamp_(min=0)", SAMPLING),
    ("empty residual is NaN", "law/distributions.py", "return torch.where(mass > 0, excess.div_(mass), p)", "return excess.div_(mass)", SAMPLING),
    ("temperature applied twice", "law/distributions.py", "TemperatureLogitsWarper(float(self.temperature))", "TemperatureLogitsWarper(float(self.temperature) ** 2)", SAMPLING),
    ("ties at temperature 0 shared", "law/distributions.py", "return torch.zeros_like(logits).scatter_(-1, best, top.softmax(-1))",
     "return (logits == logits.amax(-1, keepdim=True)).to(logits.dtype) / (logits == logits.amax(-1, keepdim=True)).sum(-1, keepdim=True)", SAMPLING),
    ("top-k forgotten", "law/distributions.py", "if self.top_k is not None:", "if False:", SAMPLING),
    ("NaN logits pass", "law/distributions.py", "if not math.isfinite(total):", "if False:", SAMPLING),
    ("global random state", "law/distributions.py", "\"device\": device, \"generator\": self.generator}", "\"device\": device}", SAMPLING),
    ("draws are one token late", "law/distributions.py", "uniform * cumulative[..., -1:], right=True).squeeze(-1)", "uniform * cumulative[..., -1:], right=True).squeeze(-1).add(1)", SAMPLING),
    ("rollback one too far", "model/context.py", "self._cache.crop(-count)", "self._cache.crop(-count - 1)", MODELS),
    ("rollback forgets nothing", "model/context.py", "self._cache.crop(-count)", "pass", MODELS),
    ("rollback keeps one rejected token", "model/context.py", "            self.length = length\n", "            self.length = length + 1\n", CONTEXTS),
    ("the first slots of a tree are kept, whatever branch was taken", "model/context.py", "self._move([start + place for place in path], start)", "pass", CONTEXTS),
    ("hidden states of another branch", "model/context.py", "self.hidden = self.hidden[:, list(path)]", "pass", CONTEXTS),
    ("a sibling sees other branches", "model/context.py", "sees[child] |= sees[parent]", "sees[child, :child] = True", CONTEXTS),
    ("positions in a tree follow slots, not depth", "model/context.py", "depths[child] = depths[parent] + 1", "depths[child] = child", CONTEXTS),
    ("fast: reading starts one slot too far", "model/fast.py", "tokens[0], self.cache, self.length, parents))", "tokens[0], self.cache, self.length + 1, parents))", CONTEXTS),
    ("fast: after a rollback one slot too few", "model/fast.py", "pass  # what lies behind `length`", "self._cache = [(k.roll(1, 1), v.roll(1, 1)) for k, v in self._cache]  #", CONTEXTS),
    ("fast: each token sees the next", "model/fast.py", ".tril(start)", ".tril(start + 1)", CONTEXTS),
    ("fast: a growing cache forgets", "model/fast.py", "keys[:, : self.length] = old_keys[:, : self.length]", "pass", CONTEXTS),
    ("fast: another branch is moved", "model/context.py", "= store[..., index, :]", "= store[..., index - 1, :]", CONTEXTS),
    ("products: the bias is forgotten", "model/products.py", "(x, packed, bias, \"none\"", "(x, packed, None, \"none\"", PRODUCTS),
    ("products: transposed shape promised", "model/products.py", "packed.shape[0]), lib", "packed.shape[1]), lib", PRODUCTS),
    ("fast: GPT-2's activation taken for another", "model/fast.py", 'approximate="tanh"', 'approximate="none"', CONTEXTS),
    ("compiled: a guess is entered one place too far", "model/compiled.py", "start + (k + i - 1 if i else 0)", "start + (k + i if i else 0)", ["test_compiled.py", "-k", "one_by_one"]),
    ("compiled: one number draws every guess", "model/compiled.py", "uniform[i : i + 1]", "uniform[:1]", ["test_compiled.py", "-k", "one_by_one"]),
    ("loop: NaN is not looked for", "loop/decoding.py", "check_finite(sum(seen.overlaps, seen.total))", "pass", ["test_decoding.py"]),
    ("loop: NaN is looked for in the last row alone", "loop/decoding.py", "check_finite(sum(seen.overlaps, seen.total))", "check_finite(seen.total)", ["test_decoding.py"]),
    ("compiled: a token does not see itself", "model/compiled.py", "sees = slots <= own[:, None]", "sees = slots < own[:, None]", ["test_compiled.py", "-k", "one_program"]),
    ("the host looks twice a round", "loop/decoding.py", "        n, found = max(counts), []\n", "        n, found = max(counts), []\n        packed.tolist()\n", ["test_device.py", "-k", "once"]),
    ("graphs: what is new does not reach them", "model/compiled.py", "graph(*tree_leaves(now))", "graph(*tensors)", ["test_device.py", "-k", "graphs"]),
    ("graphs: the next replay writes over a result", "model/compiled.py", "tree_map(torch.clone, graph(*tree_leaves(now)))", "graph(*tree_leaves(now))", ["test_device.py", "-k", "graphs"]),
    ("graphs: one number draws where a round stops and what comes then", "loop/decoding.py", "left.pop(0)", "left[0]", ["test_batches.py", "-k", "every_backend_and_rule and token and fast"]),
    ("graphs: one verdict for all settings", "model/compiled.py", '("verdict", width, settings)', '("verdict", width)', ["test_device.py", "-k", "graphs"]),
    ("padded vocabulary drawn from", "model/language_model.py", "output_rows if tokenizer is None else _highest(tokenizer) + 1", "output_rows", MODELS),
    ("pickled weights allowed", "model/language_model.py", "use_safetensors=True", "use_safetensors=None", MODELS),
    ("caches that forget are taken", "model/probe.py", 'if kinds - {"DynamicLayer"} and not', "if False and not", MODELS),
    ("hash not compared", "embedded.py", "if pooch.file_hash(str(DATA / path)) != known[path]:", "if False:", ["test_models.py", "-k", "registered"]),
    ("max_new_tokens overshot", "loop/decoding.py", "max_new_tokens - len(row.new) - 1)", "max_new_tokens)", LOOP),
    ("end of text inside a block ignored", "loop/stops.py", "if token in self.ids:", "if token in self.ids and i == len(emitted) - 1:", LOOP),
    ("stop strings looked for only where a round ends", "loop/stops.py", "if self.strings and self._reached", "if self.strings and i == len(emitted) - 1 and self._reached", STOPS),
    ("stop strings looked for in one round alone", "loop/stops.py", "self._reached(before, emitted[: i + 1])", "self._reached([], emitted[: i + 1])", STOPS),
    ("the target's cache keeps rejected tokens", "loop/decoding.py", "context.retain([0, *(node + 1 for node in path[: len(emitted) - 1])])", "pass", LAW),
    ("rows share one seed", "loop/decoding.py", "row * 7_919) % 2**63", "0 * row) % 2**63", LOOP),
    ("another branch of the tree is emitted", "loop/decoding.py", "branch(parents, seen.stop - 1)", "list(range(seen.stop))", TREES),
    ("draft says another q than it drew from", "model/context.py", "laws.append(q)", "laws.append(q.sqrt() / q.sqrt().sum())", LAW),
    ("draft's cache keeps rejected tokens", "drafters/model.py", "while common < limit and cached[common] == text[common]:", "while common < limit:", LOOP),
    ("lookup says its guess was drawn evenly", "drafters/lookup.py", "return Draft(tokens, point_mass(tokens, self.vocabulary, self.dtype))",
     "return Draft(tokens, torch.full((len(tokens), self.vocabulary), 1 / self.vocabulary, dtype=self.dtype))", ["test_models.py", "-k", "encoder_decoder_keeps_its_law"]),
    ("a guess is dropped because it was unlikely", "model/context.py", "            tokens.append(token)\n",
     "            if tokens and q[0, int(token)] < 0.45:\n                break\n            tokens.append(token)\n", GUESSERS),
    ("n-grams: the likeliest token, said to be drawn", "drafters/ngram.py", "int(self.draw(q)) if not self.point else int(q.argmax())", "int(q.argmax())", GUESSERS),
    ("retrieval: the likeliest token, said to be drawn", "drafters/retrieval.py", "int(q.argmax()) if self.drafter.point else int(self.draw(q))", "int(q.argmax())", GUESSERS),
    ("heads: another head's q", "drafters/heads.py", "return Draft(self.draw(q[:n]), q[:n])", "return Draft(self.draw(q[:n]), q[:n].flip(0))", GUESSERS),
    ("heads: siblings said to be drawn with replacement", "drafters/heads.py", "            probs.append(q)\n", "            probs.append(probs[0] if probs else q)\n", GUESSERS),
    ("eagle: guesses stay in what it has read", "drafters/eagle.py", "self.own.rollback(self.known)", "pass", EAGLE),
    ("eagle: the state of another token", "drafters/eagle.py", "self.context.hidden[0, max(self.end - first, 0) : len(text) - 1 - first]", "self.context.hidden[0, max(self.end - first, 0) : len(text) - 1 - first].roll(1, 0)", EAGLE),
    ("lookup: it stops where the text ends", "drafters/lookup.py", "(followed * n)[:n]", "followed", ["test_encoder_decoder.py", "-k", "copied"]),
    ("fallback: both are asked for as many", "drafters/fallback.py", "return (yield from self.other.drafting(text, min(n, self.most or n), goes_on))", "return (yield from self.other.drafting(text, n, goes_on))", ["test_fallback.py"]),
    ("fallback: eagle does not hear of the rounds of others", "drafters/fallback.py", "self.other.follow(text)", "pass", EAGLE),
    ("ensemble: its parts do not hear of the rounds of others", "drafters/ensemble.py", "session.follow(text)", "pass", EAGLE),
    ("eagle: it is trained on what it will not see", "training/readers.py", ".tril(-s)", ".tril(0)", EAGLE),
    ("eagle: padded entries are seen", "drafters/eagle.py", "x.index_select(0, (k - 1).reshape(1))", "x[-1:]", EAGLE),
    ("eagle: its second guess stands on the first one's state", "drafters/eagle.py", "self.entering(self.hidden[0, -1:], token,", "self.entering(read.states[-1:], token,", EAGLE),
    ("the page: the bonus token comes from the first row", LAB, "bonus(p[drafted.length])", "bonus(p[0])", PAGE),
    ("the page: block's weight is not capped", LAB, "weight = Math.min(1, weight * ratio(p[k], q[k], drafted[k]))", "weight = weight * ratio(p[k], q[k], drafted[k])", PAGE),
    ("the page: a residual of nothing is not p", LAB, "return sum(excess) > 0 ? scaled(excess) : p;", "return scaled(excess);", PAGE),
    ("the page: top-k breaks ties", LAB, "x >= least ? x : 0", "x > least ? x : 0", PAGE),
    ("the page: rounds do not guess less at the end of a text", LAB, "Math.min(gamma, length - text.length - 1)", "gamma", PAGE),
    ("the page: cells are pooled too late", LAB, "expected >= 5 &&", "expected >= 3 &&", PAGE),
    ("the page: a draw that is not random enough", LAB, "mixed((state = (state + 0x9e3779b9) | 0)) / 2 ** 32", "(mixed((state = (state + 0x9e3779b9) | 0)) >>> 28) / 16", PAGE),
    ("the page: a forbidden draw is an ordinary one", LAB, "if (counts.some((count, k) => count && !(law[k] > 0)))", "if (false)", PAGE),
    ("the page: any number of draws in an address", LAB, "draws: whole(0, MOST)", "draws: whole(0, 1e10)", PAGE),
    ("the page: bars lose what rounding leaves", LAB, "order.slice(0, total - sum(whole))", "[]", PAGE),
    ("a model's text is markup", "loop/trace.py", "html.escape(text, quote=True)", "text", TRACE),
    ("a model's text may start a formula", "loop/trace.py", '.replace("$", "&#36;")', "", TRACE),
    ("control characters reach the page", "loop/trace.py", 'c if c.isprintable() or c in HARMLESS else "\\N{REPLACEMENT CHARACTER}"', "c", TRACE),
    ("a resumed training forgets its optimisers", "training/loop.py", "optimizer.load_state_dict(saved)", "pass", TRAINING),
    ("a resumed training reads from the start", "training/loop.py", "step, seen, seconds, curve = (state", "_, seen, seconds, curve = (state", TRAINING),
    ("a training's rates do not follow their schedule", "training/loop.py", 'group["rate"] * factor', 'group["rate"]', TRAINING),
    ("a student's loss is not what the acceptance is", "training/loop.py", "variation + 0.3 * divergence", "0 * variation + 0.3 * divergence", ["test_dialogue.py", "-k", "loss"]),
    ("a state does not say what it read", "training/state.py", '"corpus": corpus.digest', '"corpus": ""', TRAINING),
    ("a state does not say what it was taught by", "training/state.py", '"weights": weights}', '"weights": {}}', TRAINING),
    ("a state does not say by which modules", "training/state.py", 'code_version("training", "drafters")', 'code_version("training")', TRAINING),
    ("an index takes any settings", "drafters/retrieval.py", 'if facts.pop("digest") != digest(json.dumps(facts)):', "if False:", ["test_retrieval.py", "-k", "says"]),
    ("an index that other code sorted is taken", "drafters/retrieval.py", 'if facts["code"] != digest(inspect.getsource(build_index)):', "if False:", ["test_retrieval.py", "-k", "says"]),
    ("a resumed training takes any state", "training/state.py", "if found != identity:", "if False:", TRAINING),
    # files and consoles
    ("a stop string is looked for in too short an end", "loop/stops.py", "len(decode(tokens[:-1])) - lead >= longest + LEAD", "True", STOPS),
    ("the torn beginning of the end is looked at", "loop/stops.py", "decode(tokens)[lead:]", "decode(tokens)", STOPS),
    ("a token is shown as it decodes alone", "loop/trace.py", "pieces(decode, tokens), 0, []", "[decode([token]) for token in tokens], 0, []", TRACE),
    ("a decoder that changes what it said is not noticed", "loop/trace.py", 'if "".join(found) != whole:', "if False:", TRACE),
    ("a file is written in its place", "files.py", "partial = path.with_name(f\".{path.stem}.{os.getpid()}.partial{path.suffix}\")", "partial = path", FILES),
    ("outputs are not checked", "files.py", "    if not path.parent.is_dir():", "    if False:", FILES),
    ("bench: what a list names is not looked into", "measure/journal.py", "(value if isinstance(value, list | tuple) else [value])", "[value]", ["test_files.py", "-k", "list_names"]),
    ("transformers writes on behind the end", "measure/experiments.py", "    if ends:\n", "    if False:\n", ["test_real_model.py", "-k", "model_ends"]),
    ("bench goes on with another measurement", "measure/journal.py", "if kept == self.identity:", "if True:", ["test_files.py", "-k", "another_measurement"]),
    ("bench: a trial is kept for another prompt's, too", "measure/experiments.py", "once([name, p, repeat], trial)", "once([name, repeat], trial)", ["test_files.py", "-k", "trials_behind"]),
    ("bench: parts of the same name are one", "measure/experiments.py", "once([part, name], work)", "once(name, work)", ["test_files.py", "-k", "trials_behind"]),
    ("bench: a busy start is forgotten", "commands/bench.py", 'journal.found.get("busy") or machine.busy()', "machine.busy()", ["test_files.py", "-k", "other_programs"]),
    ("assisted generation is measured where it is broken", "measure/experiments.py", 'return not transformers.__version__.startswith("5.15.")', "return False", ["test_experiments.py", "-k", "assisted"]),
    ("bench tries anew what it tried before an interruption", "commands/pairs.py", 'once("dtypes", tried)', "tried()", ["test_files.py", "-k", "behind_an_interruption"]),
    ("a training does not look at its corpus", "training/corpus.py", "if before != content:", "if False:", FILES),
    ("a neighbour called data makes a checkout", "embedded.py", "if not project.is_file() or not", "return True\n    if not project.is_file() or not", EMBEDDED),
    ("a folder takes the place of a model", "model/language_model.py", "own = isinstance(name, str) and", "own = not Path(name).is_dir() and", EMBEDDED),
    ("a narrow console stops the demo", "console.py", 'reconfigure(errors="replace")', 'reconfigure(errors="strict")', CONSOLE),
    ("columns are drawn beyond the screen", "commands/chat.py", "first = max(0, rows - (lines - 2)) if lines else 0", "first = 0", CHAT),
    ("the column beside grows into the other", "commands/chat.py", "textwrap.wrap(line, width)", "textwrap.wrap(line, 2 * width)", CHAT),
    ("a conversation forgets a question and keeps its answer", "commands/chat.py", "del messages[:2]", "del messages[:1]", CHAT),
    ("a record of chat keeps the text", "measure/categories.py", 'rows(frame.drop(columns="text"))', "rows(frame)", CHAT),
    ("a prediction takes all widths for one", "measure/experiments.py", "rest + ms.sum()", "rest + one * len(ms)", CHAT),
    ("a busy machine is not noticed", "measure/machine.py", "if slower <= SLOWER and share >= SHARE:", "if slower <= SLOWER or share >= SHARE:", ["test_machine.py"]),
    # vectors and certify
    ("a guess not made is accepted", "law/rules.py", "torch.where(given > 0, drafted_probs(p[:, : drafted.shape[1]], drafted) / given, 0.0)",
     "drafted_probs(p[:, : drafted.shape[1]], drafted) / given", VECTORS),
    ("tree: a guess not made is tried", "law/rules.py", "accept = torch.where(given[:, child] > 0, accept, 0.0)", "pass", VECTORS),
    ("typical: a guess not made is kept", "law/rules.py", " & (drafted_probs(q, drafted) > 0))", ")", VECTORS),
    ("ensemble: the weight is the draft's", "law/rules.py", "(1 - weight + weight * ratios(p, q, drafted))", "(weight + (1 - weight) * ratios(p, q, drafted))", VECTORS),
    ("match: a guess not made takes its token out", "museum/rules.py", "torch.where(made[..., None], without(p[:, :n], drafted), p[:, :n])", "without(p[:, :n], drafted)", VECTORS),
    ("reused noise: nobody has a head start", "museum/rules.py", "1 + rate * begin - head_start", "1 + rate * begin", ["test_museum.py", "-k", "race"]),
    ("certify: the answer goes with the question", "exactness/judge.py", 'if key not in ("law", "kind")', 'if key not in ("kind",)', CERTIFY),
    ("certify: a late answer is taken for this one", "exactness/program.py", 'if number == request["id"]:', "if True:", CERTIFY),
    ("certify: nothing asked is nothing wrong", "exactness/judge.py", ' or not self.count("right")', "", CERTIFY),
    ("certify: a suspect is named though its own law fails", "exactness/judge.py", ">= level / len(self.cases)]", ">= 0]", CERTIFY),
    ("certify: what no case shows is said to be seen", "exactness/judge.py", "if power == 0 and name not in", "if power < 0 and name not in", CERTIFY),
    ("a grown model is another function", "training/train.py", 'name.endswith(("o_proj.weight", "down_proj.weight"))', 'name.endswith("o_proj.weight")', TRAINING),
    # logits processors
    ("the bonus place is not processed", "loop/decoding.py", "nodes = range(-1, len(tokens))\n", "nodes = [-1, *range(-1, len(tokens) - 1)]\n", PROCESSORS),
    ("a tree's places are processed as a chain's", "loop/decoding.py", "tokens[: node + 1] if parents is None else", "tokens[: node + 1] if True else", PROCESSORS),
    ("the target is not processed", "loop/processors.py", "rows = self.places.process(", 'rows = rows.reshape(-1, logits.shape[-1]) if self.side == "target" else self.places.process(', PROCESSORS),
    ("rejected guesses move a processor", "loop/processors.py", "return [copied(processor) for processor in processors]", "return list(processors)", PROCESSORS),
    ("a processor stays where the round began", "loop/processors.py", "self.text, self.processors = list(text), way[-1].processors", "self.text = list(text)", PROCESSORS),
    ("places behind a forbidden token are processed", "loop/processors.py", "if parent is None or not parent.possible[branch[-1]]:", "if parent is None:", PROCESSORS),
    ("generation_config counts for nothing", "loop/processors.py", "if not set(meant(FOLLOWED)) - set(ignored):", "if True:", PROCESSORS),
    ("a dead end goes unnoticed", "loop/processors.py", "if not bool(place.possible.any()):", "if False:", PROCESSORS),
    ("all rows are row 0", "loop/processors.py", "processor._prefix_allowed_tokens_fn(row, tokens)", "processor._prefix_allowed_tokens_fn(0, tokens)", PROCESSORS),
    ("a draft's guesses are processed as if none came before", "drafters/tree.py", "[_guesses(nodes, node) for node in nodes[-last:]]", "[[node.token] for node in nodes[-last:]]", PROCESSORS),
    # models believed when tried
    ("compiled: a program is not compared", "model/compiled.py", 'if kind == "forward" and self', 'if kind == "never" and self', ["test_compiled.py", "-k", "something_else"]),
    ("probe: any difference is rounding", "model/probe.py", "if off > allowed:", "if off > 1e9:", PROBE),
    ("probe: the worst token hides among the others", "model/probe.py", ".square().mean(-1).sqrt().amax()", ".square().mean(-1).sqrt().amin()", PROBE),
    ("probe: passed once, passed for ever", "model/probe.py", "if passed.get(what) != now:", "if what not in passed:", PROBE),
    ("probe: padding is not among what is tried", "model/probe.py", "        tokens[0, 2] = padding\n", "        pass\n", PROBE),
    ("probe: LongRoPE is taken", "model/probe.py", '== "longrope" and', '== "longrope" and False and', PROBE),
    ("probe: trees over local windows are taken", "model/probe.py", 'if window and window < (context_length or window + 1):', "if False:", PROBE),
    ("probe: nothing is asked of trees", "model/language_model.py", "            probing.trees(self, kind or self._context)", "            pass", PROBE),
    ("fast: changes through .data are not seen", "model/language_model.py", "now = fast.fingerprint(self.model, numbers=True)", "now = fast.fingerprint(self.model)", PROBE),
    ("fast: a number is looked at as if it had rows", "model/fast.py", "t.shape[-1] + 1 if t.ndim > 1 else 1", "t.shape[-1] + 1", PROBE),
    ("fast: sparse weights are looked at", "model/fast.py", " if t.layout == torch.strided]", "]", PROBE),
    ("fast: packed weights are an error of their own", "model/fast.py", "    except (AttributeError, TypeError):", "    except ZeroDivisionError:", PROBE),
    ("fast: rounded weights are read", "model/fast.py", "t.is_floating_point() and t.itemsize > 1 and t.device", "t.device", PROBE),
    ("fast: half of a complex number is looked at", "model/fast.py", "torch.view_as_real(t) if t.is_complex() else t.view", "t.view", PROBE),
    ("demo: the law of single precision", "commands/demo.py", "(law / law.sum()).numpy()", "law.numpy()", DEVICE),
    ("probe: double precision on the device", "model/probe.py", "got.cpu().double(), right.cpu().double()", "got.double(), right.double()", DEVICE),
    ("device: one that is there is taken unasked", "model/language_model.py", 'torch.device("cuda" if torch.cuda.is_available() else "cpu")', 'torch.device("mps" if torch.backends.mps.is_available() else "cpu")', DEVICE),
    ("draws: double precision everywhere", "law/distributions.py", "torch.float32 if torch.device(device).type in SINGLE else torch.float64", "torch.float64", DEVICE),
    ("chat: layers that cannot be left out guess", "measure/categories.py", "num_hidden_layers\", 0) > LAYERS and", "num_hidden_layers\", 9) > 0 and", CHAT),
    ("fast: hooks are not seen", "model/fast.py", "map(_hooks, (m._forward_hooks, m._forward_pre_hooks))", "()", PROBE),
    ("fast: weights are laid out once and for all", "model/language_model.py", "if now != self._made_of:", "if self.decoder is None:", PROBE),
    ("layer skip: what was made of the old weights is kept", "drafters/base.py", "if now != self.made_of:", "if self.made is None:", PROBE),
    ("heads: the caller's module is cast", "drafters/base.py", "return deepcopy(module).to(device, dtype)", "return module.to(device, dtype)", PROBE),
    ("vocabulary counted", "model/language_model.py", "return max(tokenizer.get_vocab().values())", "return len(tokenizer) - 1", PROBE),
    ("a draft narrower than the target's tokens is taken", "model/language_model.py", "if (rows := min(draft.source_rows, draft.input_rows)) < target.vocabulary:", "if (rows := 0) > 0:", PROBE),
    ("positions begin at the first row of every table", "model/probe.py", "getattr(table, \"offset\", first)", "getattr(table, \"offset\", 0)", PROBE),
    ("an overlong source is read", "loop/arguments.py", "if model.source_length and prompt > model.source_length:", "if False:", PROBE),
    ("the start token of config alone", "model/context.py", 'places = [(generation, first), (generation, "bos_token_id")]', "places = []", PROBE),
    ("padding of a batch is text", "loop/arguments.py", "    return [ids[place] for place in shown]\n", "    return ids\n", PROBE),
    # layouts chosen by timing
    ("layouts: the slowest is chosen", "model/products.py", "other = min(seconds", "other = max(seconds", PRODUCTS),
    ("layouts: that of one row for all", "model/products.py", "names[min(bisect_left(ROWS, rows), len(ROWS) - 1)]", "names[0]", PRODUCTS),
    ("layouts: a win by chance is taken", "model/products.py", "name if quickest(again) == name else USUAL", "name", PRODUCTS),
    ("layouts: a torn file stops everything", "model/products.py", "(OSError, ValueError, TypeError, KeyError, AttributeError)", "OSError", PRODUCTS),
    ("layouts: what another number of threads chose", "model/products.py", "(*processor(), torch.get_num_threads(), torch", "(*processor(), torch", PRODUCTS),
    ("layouts: a busy machine's guesses are kept for ever", "model/products.py", "        if len(names) == len(ROWS):\n", "        if True:\n", PRODUCTS),
    ("layouts: exchanged factors without the bias", "model/products.py", "out if bias is None else out + bias", "out", PRODUCTS),
    ("trial: the slowest way of each kind", "measure/trials.py", ".sort_values().items()", ".sort_values(ascending=False).items()", TRIALS),
    ("trial: what was fastest in other minutes", "measure/trials.py", "for way in best.values()}  # again", "for way in ()}  # again", TRIALS),
    ("trial: a program for every method", "measure/trials.py", "first.method == name and", "", TRIALS),
    ("two backends are one method", "measure/experiments.py", "frame.groupby(WAY if WAY[1] in frame else WAY[0], sort=sort)", "frame.groupby(WAY[0], sort=sort)", TRIALS),
    ("methods do not take turns at being first", "measure/experiments.py", "first = (p + repeat) % len(names)", "first = 0", ["test_experiments.py", "-k", "in_turn"]),
    ("leaderboard: lengths are chosen on the prompts that are measured", "measure/leaderboard.py", "fastest(tried, texts[-tuning:], ", "fastest(tried, texts[:prompts], ", ["test_experiments.py", "-k", "leaderboard"]),
    ("an oracle's time has the reading of the prompt in it", "measure/experiments.py", ".to_numpy() - reading", ".to_numpy()", ["test_experiments.py", "-k", "figures_are_told or oracles_times"]),
    ("rounds are predicted without their guesses", "measure/experiments.py", "theory.speedup(1.0, gamma, c, ratio))", "theory.speedup(1.0, gamma, 0.0, ratio))", ["test_experiments.py", "-k", "prediction"]),
    ("headline over the slowest plain decoding", "commands/pairs.py", "speed[is_plain].idxmax()", "speed[is_plain].idxmin()", TRIALS),
    ("a program is made inside what is timed", "measure/experiments.py", "while made != compiled.Programs.made:", "while made is None:", ["test_experiments.py", "-k", "made_again"]),
    # batches
    ("a neighbour's lengths", "model/fast.py", "positions.append(depths + (start if read.position is None else read.position))", "positions.append(depths + (starts[0] if read.position is None else read.position))", BATCHES),
    ("a neighbour's slots", "model/fast.py", "places + np.repeat(starts, counts)", "places + np.repeat(starts[:1], sum(counts))", BATCHES),
    ("a neighbour's text is seen", "model/fast.py", "mask[read.context.row, :k, :start] = True", "mask[read.context.row, :k, :max(starts)] = True", BATCHES),
    ("a pad that is seen", "model/batch.py", "at[row] = [*range(start + k, start + most), *range(start, start + k)]", "at[row] = [*range(start, start + most)]", BATCHES),
    ("padded: positions count the padding", "model/batch.py", "*(start + depths)]", "*(start + most - k + depths)]", BATCHES),
    ("a long prompt is read in one forward", "model/context.py", "PIECE if keep == 1 and parents is None else tokens.shape[1], 1)", "tokens.shape[1], 1)", PIECES),
    ("of a prompt's states those of its last piece remain", "model/context.py", "            self.hidden = torch.cat(states, 1)", "            pass", PIECES),
    ("the latest reading is its last piece", "model/context.py", "        self._latest = start\n        if self.wants", "        if self.wants", PIECES),
    ("eagle reads a long prompt in one forward", "drafters/eagle.py", "(*range(PIECE + 1, len(text) - 1, PIECE), len(text) - 1)", "(len(text) - 1,)", PIECES),
    ("a row that does not leave", "model/batch.py", "if self.members[row]() is None:", "if False:", BATCHES),
    ("the last row moves and its text does not know", "model/batch.py", "                    context.row = row\n", "", BATCHES),
    ("the last row moves without its keys", "model/batch.py", "store[row] = store[len(self.members)]", "pass", BATCHES),
    ("a text that has ended keeps its place", "loop/decoding.py", "rows = [row for row, on in zip(rows, going, strict=True) if on]", "rows = [row for row in rows if any(going)]", BATCHES),
    ("one generator for all rows", "loop/decoding.py", "seeded(_row_seed(seed, row), target.device)", "seeded(_row_seed(seed, 0), target.device)", BATCHES),
    ("q = 0 accepted", "law/rules.py", "drafted_probs(p[:, : drafted.shape[1]], drafted) / given, 0.0)", "drafted_probs(p[:, : drafted.shape[1]], drafted) / given, 1.0)", BATCHES),
    ("rows without guesses draw a stop", "loop/decoding.py", '("chains", draft is None)', '("chains",)', ["test_batches.py", "-k", "every_guesser and lookup"]),
    ("a batch as large as one likes", "loop/arguments.py", "(batch_size is not None and asked > fit)", "False", BATCHES),
    ("a text as long as one likes", "loop/arguments.py", "if not fit or (batch_size", "if (batch_size", BATCHES),
    ("one text may have half of the memory, too", "loop/arguments.py", "free // 2 // each or free // each", "free // 2 // each", BATCHES),
    ("the plain baseline of another batch", "measure/batches.py", "tokens_per_round * time_of(grid, rows, 1)", "tokens_per_round * time_of(grid, 1, 1)", PREDICTIONS),
    ("a prediction without the draft's time", "measure/batches.py", "(time_of(grid, rows, guesses + 1) + draft_ms)", "time_of(grid, rows, guesses + 1)", PREDICTIONS),
    ("the gain ends halfway between sizes", "measure/batches.py", "(size / before[0]) ** share", "(1 + share * (size / before[0] - 1))", PREDICTIONS),
    ("transformers' rows see their padding", "measure/experiments.py", "[[0] * (most - len(p)) + [1] * len(p) for p in part]", "[[1] * most for p in part]", PREDICTIONS),
    ("block: masks see the text alone", "drafters/block.py", "sees[-self.keep :] = True  #", "sees[-self.keep :, -self.keep :] = np.eye(self.keep, dtype=bool)  #", BLOCK),
    ("block: masks follow the first of the new entries", "drafters/block.py", "self.eagle.masked(x[-1])", "self.eagle.masked(x[0])", BLOCK),
    ("block: another mask's q", "drafters/block.py", "return how.draw(q), q", "return how.draw(q), q.flip(0)", BLOCK),
    ("block: every guess stands on the last token of the text", "drafters/block.py", "block.first_order(tokens[-1])", "block.first_order(tokens[0])", BLOCK),
    ("block: says that it knew what it drew", "drafters/block.py", "        return torch.cat(tokens[1:]), torch.cat(probs)", "        return torch.cat(tokens[1:]), torch.cat(probs).round()", BLOCK),
    ("block: logits of other tokens", "drafters/eagle.py", "index_copy(-1, kept, known)", "index_copy(-1, kept.flip(0), known)", BLOCK),
    ("block: masks are trained on the token that they are to guess", "training/block.py", "own <= anchors[:, None]", "own <= anchors[:, None] + 1", BLOCK),
    ("block: masks are trained on those of the places before", "training/block.py", "group[:, None] == group", "group[:, None] >= group", BLOCK),
    # a chat model's own answers
    ("answers: a disabled bar counts nothing", "training/dialogue.py", "while sum(map(len, pieces)) < amount", "while bar.n < amount and len(pieces) < 99", ["test_dialogue.py", "-k", "go_on"]),
    ("answers: those held out are among those learnt", "training/dialogue.py", "_names(HELD_OUT_TOPICS), held_out", "_names(TOPICS), held_out", ["test_dialogue.py", "-k", "questions"]),
    ("answers: padding is read", "training/dialogue.py", "[0] * (longest - len(p))", "[1] * (longest - len(p))", ["test_dialogue.py", "-k", "answers"]),
    ("draft: its embeddings begin in the least directions", "training/readers.py", ".eigenvectors[:, -width:]", ".eigenvectors[:, :width]", ["test_dialogue.py", "-k", "embeddings_say"]),
    ("eagle goes on from nothing", "training/readers.py", "        module.load_state_dict(tensors)\n", "", ["test_dialogue.py", "-k", "teaches"]),
    ("demo and chat leave eagle out", "measure/categories.py", "lookup_else(guessers.EagleDrafter(taught)) if taught else guessers.LookupDrafter()", "guessers.LookupDrafter()", ["test_real_model.py", "-k", "ships"]),
    ("trees are tried in every round", "model/context.py", "            self.trees_tried = True\n", "", ["test_probe.py", "-k", "once_a_text"]),
    ("training: windows are looked at again in each epoch", "training/readers.py", " for k, row in enumerate(rows) if row not in self.kept]", " for k, row in enumerate(rows)]", ["test_dialogue.py", "-k", "come_again"]),
    ("answers: the question before it is learnt", "training/readers.py", "np.append(own[1:], False)", "own", ["test_dialogue.py", "-k", "wrote"]),
    ("answers: questions count", "training/readers.py", "counts = counts[:, places].expand_as(loss).float()", "counts = torch.ones_like(loss)", ["test_dialogue.py", "-k", "count"]),
    ("a tree of eagle: every node stands on the text's state", "drafters/eagle.py", "[self.reached[parent + 1] for parent in parents]", "[self.reached[0] for parent in parents]", ["test_eagle.py", "-k", "branch"]),
    ("a tree of eagle: its nodes stay in the cache", "drafters/eagle.py", "        self.own.rollback(start)\n", "", ["test_eagle.py", "-k", "branch"]),
    ("eagle: a branch sees its neighbours", "drafters/eagle.py", "dtype=bool), sees], 1)", "dtype=bool), np.tri(read.count, dtype=bool)], 1)", ["test_eagle.py", "-k", "branch"]),
    ("a still picture shows one state", "workbook/common.py", "dict.fromkeys((ends[0], ends[-1], first.value))", "dict.fromkeys((first.value,))", ["test_workbook.py", "-k", "still"]),
    ("answers: another model's are taken", "training/dialogue.py", "digest(weights, *questions,", "digest(*questions,", ["test_dialogue.py", "-k", "answers"]),
    ("losses: what is not kept is free", "training/loop.py", "variation = 1 - torch.minimum", "variation = p.sum(-1) - torch.minimum", ["test_dialogue.py", "-k", "kept"]),
    ("losses: likelihood of the wrong event", "training/loop.py", "-torch.log1p(-variation)", "-torch.log(variation)", ["test_dialogue.py", "-k", "loss"]),
    ("an interval: the two columns of a ratio sorted apart", "law/statistics.py", "np.stack([numerators, denominators], -1)", "np.stack([np.sort(numerators), np.sort(denominators)], -1)", STATISTICS),
    ("an interval: the normal law for Student's t", "law/statistics.py", "stats.t.isf((1 - level) / 2, n - 1)", "stats.norm.isf((1 - level) / 2)", STATISTICS),
    ("an interval: the spread of a sample, not the jackknife's", "law/statistics.py", "np.sqrt((n - 1) / n * (", "np.sqrt(1 / (n - 1) * (", STATISTICS),
    ("an interval: n degrees of freedom", "law/statistics.py", "stats.t.isf((1 - level) / 2, n - 1)", "stats.t.isf((1 - level) / 2, n)", STATISTICS),
    ("an interval: both ends at the chance of one", "law/statistics.py", "stats.t.isf((1 - level) / 2, n - 1)", "stats.t.isf(1 - level, n - 1)", STATISTICS),
    ("a ratio of means: the mean of ratios", "law/statistics.py", "pairs[:, 0].mean() / pairs[:, 1].mean()", "(pairs[:, 0] / pairs[:, 1]).mean()", STATISTICS),
    ("a mean's interval: the spread of the values", "law/statistics.py", "float(stats.sem(values))", "float(np.std(values, ddof=1))", STATISTICS),
    ("speed-ups: a prompt beside its neighbour's plain decoding", "measure/experiments.py", "np.hstack([own.loc[base.index], base])", "np.hstack([np.roll(own.loc[base.index], 1, 0), base])", ["test_experiments.py", "-k", "with_intervals"]),
    ("times: the quartiles the wrong way round", "measure/latency.py", "quantile([0.5, 0.25, 0.75])", "quantile([0.5, 0.75, 0.25])", ["test_latency.py", "-k", "quartiles"]),
    ("cost ratio: target over draft", "measure/latency.py", "return theirs / ours", "return ours / theirs", LATENCY),
    ("waiting: memory takes longer than the products that read it", "measure/latency.py", "memory = min(products_ms, 1e3", "memory = max(products_ms, 1e3", LATENCY),
    ("bytes of a forward: a looked-up embedding is read whole", "measure/latency.py", "        weights -= embedding.numel()\n", "        pass\n", LATENCY),
]  # fmt: skip


def load_libraries() -> None:
    """What every run needs and no breakage touches. speclib itself is left for the forks."""
    import hypothesis  # noqa: F401
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    from transformers import (  # noqa: F401
        GPT2LMHeadModel,
        LlamaForCausalLM,
        MistralForCausalLM,
        PreTrainedTokenizerFast,
        Qwen2ForCausalLM,
    )

    torch.set_num_threads(1)


class First:
    """A pytest plugin that remembers the first test that failed."""

    name = ""

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report):
        if report.failed and not self.name:
            self.name = f"{report.nodeid} (not importable)"


def passes(copy: Path, tests: list[str]) -> tuple[bool, str]:
    """Whether the tests pass on the copy of the package, and the name of the first that fails."""
    note = copy / "first"
    note.write_text("")
    child = os.fork()
    if child == 0:
        code = 3
        try:
            quiet = os.open(copy / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            import pytest

            os.chdir(copy / "tests")
            sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tests"))]
            sys.dont_write_bytecode = True
            first = First()
            code = int(pytest.main(["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(copy / "tests"), *tests], plugins=[first]))
            note.write_text(first.name)
        finally:
            os._exit(code)
    ends = time.monotonic() + LIMIT
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False, f"the time limit of {LIMIT:g} s"
        time.sleep(0.05)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, 1):  # neither passed nor failed
        return False, note.read_text() or f"pytest ended with code {code}: {(copy / 'output').read_text()[-200:]}"
    return code == 0, note.read_text()


def write(report: list[dict]) -> None:
    """Enters results into the report, in the order of the list; those of breakages not tried this time stay as they were."""
    path = ROOT / "data" / "results" / "mutants.json"
    known = {row["name"]: row for row in [*(json.loads(path.read_text()) if path.exists() else []), *report]}
    rows = [known[what] for what, name, old, new, _ in MUTANTS if what in known and known[what]["what"] == {"file": name, "old": old, "new": new}]
    path.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help=f"which breakages, 1 to {len(MUTANTS)} (default: all)")
    chosen = parser.parse_args().numbers or range(1, len(MUTANTS) + 1)
    for number in chosen:
        what, name, old, _, _ = MUTANTS[number - 1]
        if (ROOT / "speclib" / name).read_text().count(old) != 1:
            sys.exit(f"breakage {number} ({what}): its text is not in {name} exactly once any more")
    os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
    load_libraries()
    report = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        for part in ("speclib", "tests", "notebooks/lab"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "data").symlink_to(ROOT / "data")
        shutil.copy(ROOT / "pyproject.toml", copy)  # by which a checkout is known
        healthy: dict[tuple[str, ...], tuple[bool, str]] = {}
        for number in chosen:
            what, name, old, new, tests = MUTANTS[number - 1]
            if tuple(tests) not in healthy:
                healthy[tuple(tests)] = passes(copy, tests)
            if not healthy[tuple(tests)][0]:
                sys.exit(f"{' '.join(tests)} fails without any breakage: {healthy[tuple(tests)][1]}")
            file = copy / "speclib" / name
            original = file.read_text()
            file.write_text(original.replace(old, new))
            survived, by = passes(copy, tests)
            file.write_text(original)
            report.append({"name": what, "what": {"file": name, "old": old, "new": new}, "killed": not survived, "by": None if survived else by})
            write(report[-1:])  # after each, so that an interrupted run keeps what it found
            print(f"{number:2} {'SURVIVED' if survived else 'killed  '} {what}" + ("" if survived else f"  by {by}"), flush=True)
    killed = sum(row["killed"] for row in report)
    print(f"{killed} of {len(report)} killed")
    return 0 if killed == len(report) else 1


if __name__ == "__main__":
    sys.exit(main())
