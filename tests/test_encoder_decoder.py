"""Encoder-decoder models: the law of generate(), its two caches, where its text starts, and how its pair is trained."""

import dataclasses
import json
import random
from functools import cache

import numpy as np
import pytest
import torch
from models import killed_at
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import speclib
from speclib import LanguageModel, Sampling, errors, generate
from speclib.drafters import LookupDrafter, ModelDrafter, SyntheticDrafter
from speclib.law.exact import TableModel, law_variation, max_difference, outcomes, plain_law, sample_many
from speclib.law.statistics import g_test
from speclib.model.context import EncoderDecoderContext
from speclib.museum import threshold_law
from speclib.training import loop, seq2seq
from speclib.training.corpus import Corpus, Document
from speclib.training.tokenizer import train_tokenizer

PROMPT = [1, 0, 1, 1, 0]
GREEDY = Sampling(temperature=0)


@cache
def tiny(vocabulary=3, seed=0, layers=2, start=0, width=8):
    """A T5 in float64, with weights large enough that its rows differ from prefix to prefix and from source to
    source.
    """
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=4,
        d_ff=16,
        num_layers=2,
        num_decoder_layers=layers,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=start,
        pad_token_id=start,
        eos_token_id=None,
    )
    model = T5ForConditionalGeneration(config).double().eval()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if weights.ndim == 2:
                weights.mul_(1.5 if "shared" in name or "lm_head" in name else 3)
    return LanguageModel(model, name=f"tiny T5 {seed}")


def table(target, sampling=Sampling(), prompt=PROMPT, start=None):  # noqa: B008
    """The target's rows, each from a fresh forward without any cache: what generate() must reproduce."""
    start = target.model.config.decoder_start_token_id if start is None else start

    def row(prefix):
        with torch.inference_mode():
            logits = target.model(
                input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *prefix]]), use_cache=False
            ).logits[0, -1]
        return sampling.probabilities(logits).numpy()

    return TableModel(target.vocabulary, row)


def enumerated(target, drafter, gamma, length, stop, sampling, rule="token"):
    return outcomes(
        lambda draw: tuple(
            generate(target, [PROMPT], drafter, sampling, gamma, rule, length, stop, draw=draw).tokens[0].tolist()
        )
    )


@pytest.mark.parametrize(
    ("vocabulary", "gamma", "length", "stop", "sampling"),
    [
        (2, 0, 3, [], Sampling()),
        (2, 3, 4, [], Sampling()),
        (2, 3, 4, [1], Sampling()),
        (3, 1, 3, [2], Sampling(temperature=0.7)),
        (3, 2, 3, [], Sampling(top_k=2)),
        (3, 2, 3, [], Sampling(top_p=0.8)),
        (3, 3, 4, [], GREEDY),
    ],
)
@pytest.mark.parametrize("rule", ["token", "block"])
@pytest.mark.parametrize("drafts", ["model", "lookup"])
def test_generate_keeps_the_law(drafts, rule, vocabulary, gamma, length, stop, sampling):
    """Encoder, both caches, rollbacks, filters, rule and stops together: every path of `generate`, summed."""
    target = tiny(vocabulary)
    drafter = ModelDrafter(tiny(vocabulary, 1, layers=1)) if drafts == "model" else LookupDrafter()
    law = enumerated(target, drafter, gamma, length, stop, sampling, rule)
    right = plain_law(table(target, sampling), length, eos=stop[0] if stop else None)
    assert max_difference(law, right) < 1e-12
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    assert len(right) > 2 or sampling.temperature == 0


def test_the_tiny_models_have_something_to_get_wrong():
    """Rows depend on the text, on the source and on the start token, and the draft is neither equal nor hopeless."""
    target = tiny()
    law = plain_law(table(target), 3)
    assert len({tuple(row) for row in table(target).rows(2).round(decimals=6).tolist()}) == 9
    assert law_variation(law, plain_law(table(target, prompt=[0, 0, 2, 1]), 3)) > 0.01
    assert 0.05 < law_variation(law, plain_law(table(tiny(3, 1, layers=1)), 3)) < 0.95
    out = [
        generate(target, [PROMPT], LookupDrafter(), draft_length=3, max_new_tokens=20, stop=[], seed=s).summary()
        for s in range(5)
    ]
    assert sum(s["proposed"] for s in out) > 10  # the lookup finds something to copy in the source


def test_the_source_can_be_copied():
    """The first guesses come from the source: there is nothing else yet."""
    out = generate(tiny(start=2), [[2, 1, 2, 0]], LookupDrafter(), GREEDY, 3, max_new_tokens=4, stop=[])
    # after the start token 2: what followed the last 2 of the source, the text's own beginning, and round again
    assert out.trace.rounds[0].drafted == [
        0,
        2,
        0,
    ]


class ForgetsTheStart(EncoderDecoderContext):
    """Starts from the source, as for a causal model: the bug of forgetting the decoder start token."""

    def __init__(self, language_model, prompt=()):
        super().__init__(language_model, prompt)
        self.begin = list(prompt)


class CropsBoth(EncoderDecoderContext):
    """Rolls the cross-attention cache back with the other one: the end of the source is forgotten."""

    def _remove(self, count):
        super()._remove(count)
        self._cache.cross_attention_cache.crop(-min(count, self._cache.cross_attention_cache.get_seq_length() - 1))


class NeverRollsBack(EncoderDecoderContext):
    def _remove(self, count):
        pass


@pytest.mark.parametrize("broken", [ForgetsTheStart, CropsBoth, NeverRollsBack])
def test_broken_contexts_are_caught(broken, monkeypatch):
    """The control: the same comparison must fail for each of the usual bugs."""
    monkeypatch.setattr(speclib.language_model, "EncoderDecoderContext", broken)
    law = enumerated(tiny(), ModelDrafter(tiny(3, 1, layers=1)), 1, 3, [], Sampling())
    assert law_variation(law, plain_law(table(tiny()), 3)) > 1e-3


def test_the_start_token_decides_the_law():
    target = tiny()
    right, wrong = plain_law(table(target), 3), plain_law(table(target, start=1), 3)
    assert law_variation(right, wrong) > 0.01
    # the start token, and nothing of the source
    assert generate(target, [PROMPT], None, max_new_tokens=1, stop=[]).trace.rounds[0].position == 1


def test_200000_texts_and_two_controls():
    """The rule over the rows of real encoder-decoder models, drawn and not summed; significance 1e-6."""
    target, draft = tiny(), tiny(3, 1, layers=1)
    law = plain_law(table(target), 4)
    counts = sample_many("token", table(target), table(draft), 2, 4, 200_000, seed=3)
    assert g_test(counts, law).p_value > 1e-6
    assert g_test(sample_many(threshold_law, table(target), table(draft), 2, 4, 200_000, seed=3), law).p_value < 1e-6
    assert g_test(sample_many("token", table(target, start=1), table(draft), 2, 4, 200_000, seed=3), law).p_value < 1e-6


@pytest.fixture(scope="module")
def wide():
    return tiny(40, 3, layers=3, width=24), tiny(40, 4, layers=1, width=24)


def sources(count):
    generator = torch.Generator().manual_seed(7)
    return torch.randint(1, 40, (count, 9), generator=generator).tolist()


@pytest.mark.parametrize(
    "drafter",
    [ModelDrafter, lambda _: LookupDrafter(), lambda _: SyntheticDrafter(0.7)],
    ids=["model", "lookup", "synthetic"],
)
@pytest.mark.parametrize("rule", ["token", "block"])
def test_greedy_is_transformers_own(wide, rule, drafter):
    target, draft = wide
    ids = torch.tensor(sources(12))
    # a cache of its own: transformers 5 sizes the one it makes by the layers of the encoder, which here are fewer
    options = {
        "past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache()),
        "do_sample": False,
        "eos_token_id": None,
    }
    theirs = target.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, **options)[:, 1:]
    # different sources, different texts: the comparison has something to see
    assert len({tuple(row) for row in theirs.tolist()}) > 8
    for gamma in (0, 1, 4):
        out = generate(target, ids.tolist(), drafter(draft), GREEDY, gamma, rule, max_new_tokens=30, stop=[])
        assert all(torch.equal(a, b) for a, b in zip(out.tokens, theirs, strict=True))


def test_ends_and_caps(wide):
    target, draft = wide
    free = generate(target, sources(1), None, max_new_tokens=25, stop=[], seed=4).tokens[0].tolist()
    end = free[12]
    for drafter in (None, ModelDrafter(draft), LookupDrafter(), SyntheticDrafter(1.0)):
        texts = [
            generate(target, sources(1), drafter, draft_length=6, max_new_tokens=25, stop=[end], seed=s)
            .tokens[0]
            .tolist()
            for s in range(8)
        ]
        assert all(end not in text[:-1] and (text[-1] == end or len(text) == 25) for text in texts)
        assert any(len(text) < 25 for text in texts)
        assert [
            len(generate(target, sources(1), drafter, draft_length=6, max_new_tokens=n, stop=[]).tokens[0])
            for n in (1, 2, 7)
        ] == [1, 2, 7]


@pytest.mark.parametrize("speculative", [False, True])
def test_the_encoder_reads_each_text_once(wide, speculative):
    target, draft = wide
    calls = {target.name: 0, draft.name: 0}
    hooks = [
        m.model.get_encoder().register_forward_hook(lambda *_, name=m.name: calls.update({name: calls[name] + 1}))
        for m in wide
    ]
    out = generate(target, sources(3), ModelDrafter(draft) if speculative else None, max_new_tokens=20, stop=[])
    for hook in hooks:
        hook.remove()
    assert len(out.trace.rounds) > 6
    assert calls == {target.name: 3, draft.name: 3 * speculative}


def test_only_the_decoders_own_cache_rolls_back(wide):
    target, _ = wide
    (source,) = sources(1)
    context = target.context(source)
    tokens = torch.tensor([[0, 5, 6, 7, 8]])
    whole = context.extend(tokens)
    cross = context._cache.cross_attention_cache.layers[0].keys
    assert cross.shape[2] == len(source)
    context.rollback(2)
    assert context.length == context._cache.self_attention_cache.get_seq_length() == 2
    assert context._cache.cross_attention_cache.layers[0].keys is cross
    torch.testing.assert_close(context.extend(tokens[:, 2:]), whole[:, 2:], rtol=0, atol=1e-12)
    context.rollback(0)
    torch.testing.assert_close(context.extend(tokens), whole, rtol=0, atol=1e-12)


def test_two_of_one_kind():
    target = tiny()
    torch.manual_seed(0)
    causal = LanguageModel(
        LlamaForCausalLM(
            LlamaConfig(vocab_size=3, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        ).eval(),
        name="causal",
    )
    for big, small in ((target, causal), (causal, target)):
        with pytest.raises(errors.IncompatibleModels, match="encoder-decoder"):
            generate(big, [[1, 2]], ModelDrafter(small), max_new_tokens=2)
    with pytest.raises(errors.IncompatibleModels, match="vocab|tokens"):
        generate(target, [[1, 2]], ModelDrafter(tiny(4)), max_new_tokens=2)
    with pytest.raises(errors.UnsupportedModel, match="fast backend"):
        LanguageModel(target.model, backend="fast")
    with pytest.raises(errors.UnsupportedModel, match="trees"):
        target.context(PROMPT).extend(torch.tensor([[0, 1]]), parents=[-1, -1])


def test_the_clock_knows_encoder_decoders(wide):
    from speclib import latency

    assert latency.cost_ratio(*wide, context=8) > 0
    assert list(latency.width_curve(wide[0], [1, 3], context=8, passes=1, min_seconds=0.001)["width"]) == [1, 3]


# --- the pair and its task
# ---------------------------------------------------------------------------------------------

CODE = "".join(
    f"def total_{k}(Values, limit={k}):\n    result = sum(value * {k} for value in Values)\n    return Result('{k}', "
    f"result)\n\n\n"
    for k in range(200)
)


@pytest.fixture(scope="module")
def small():
    documents = [Document("one", "one/code.py", CODE), Document("two", "two/code.py", CODE.replace("total", "mean"))]
    return documents, train_tokenizer([CODE], 400)


def test_slips_are_of_the_named_kinds():
    text = 'if Result is None:\n    return Total(first, second = "a b")'
    seen = {seq2seq.mangle(text, random.Random(seed)) for seed in range(1000)}
    for slip in ("rteurn", "result is", "second=", "'a b'", "(first,second", "None\n"):
        assert any(slip in s for s in seen), slip
    assert text in seen  # now and then nothing slips; such texts make no task


def test_tasks_fit_and_differ(small):
    documents, tokenizer = small
    tasks = seq2seq.examples(documents, tokenizer, 300)
    assert len(tasks) > 50 and tasks == seq2seq.examples(documents, tokenizer, 300)
    assert all(
        task["text"] != task["answer"]
        and task["answer"]
        in CODE + documents[1].text.replace("\n    ", "\n") + CODE.replace("\n    ", "\n") + documents[1].text
        for task in tasks
    )
    source, target = seq2seq.tensors(tasks, tokenizer)
    first = target[0][target[0] != seq2seq.IGNORED].tolist()
    assert first[-1] == tokenizer.eos_token_id and tokenizer.decode(first[:-1]) == tasks[0]["answer"]
    assert ((source != seq2seq.IGNORED).sum(1) >= 12).all()


def test_repair_prompts_lost_one_colon(small):
    """Each is its answer less one colon at the end of a line, of the size asked for, and none comes twice."""
    documents, tokenizer = small
    found = seq2seq.repair_prompts(documents, tokenizer, 12, 12, 60)
    assert len(found) == len({task["answer"] for task in found}) == 12
    for text, answer in ((task["text"], task["answer"]) for task in found + speclib.embedded.held_out("repair")):
        assert text in [answer[:k] + answer[k + 1 :] for k in range(len(answer)) if (answer + "\n")[k : k + 2] == ":\n"]
    assert all(12 <= len(tokenizer(task["answer"])["input_ids"]) <= 60 for task in found)


def test_training_learns_resumes_and_distils(small, tmp_path, monkeypatch):
    documents, tokenizer = small
    shape = {"encoder_layers": 1, "decoder_layers": 1, "width": 32, "heads": 2, "feed_forward": 32, "batch_rows": 16}
    recipe = seq2seq.Seq2SeqRecipe("teacher", tokens=8_000, **shape)
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", 0)
    texts = Corpus(tokenizer, documents[:1], documents[1:], *[np.zeros(0, np.uint16)] * 2)
    run = lambda recipe, folder, seed=0: seq2seq.train(recipe, texts, folder, seed, compile=False)
    path = run(recipe, tmp_path)
    card = json.loads((path / "card.json").read_text())
    assert (
        card["held_out_nats_per_token"] < 0.8 * torch.tensor(float(len(tokenizer))).log()
        and card["tokens_seen"] >= 8_000
    )

    with killed_at(2):
        run(recipe, tmp_path / "again")
    again = run(recipe, tmp_path / "again")
    weights = [T5ForConditionalGeneration.from_pretrained(p).state_dict() for p in (path, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(errors.TrainingError, match="another training .other seed"):
        run(recipe, tmp_path, seed=1)
    student = seq2seq.Seq2SeqRecipe("student", tokens=2_000, teacher="teacher", **shape)
    pair = speclib.load_pair(path, run(student, tmp_path))
    prose = dataclasses.replace(texts, learnt=[Document("prose", "a", "Words. " * 99)])
    with pytest.raises(errors.TrainingError, match="teacher learns to repair .* the corpus has 0 tasks for it"):
        seq2seq.train(recipe, prose, tmp_path / "prose")
    with pytest.raises(errors.TrainingError, match="needs teacher"):
        run(student, tmp_path / "empty")
    out = generate(pair.target, "def total_3(Values,limit=3)", ModelDrafter(pair.draft), max_new_tokens=8)
    assert 1 <= len(out.tokens[0]) <= 8 and isinstance(pair.tokenizer, PreTrainedTokenizerFast)
