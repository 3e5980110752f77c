"""Stop strings: wherever they fall, text ends exactly where plain decoding would have ended it, and at a cost that does
not grow with it.
"""

import random
from functools import cache

import alphabets
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import speclib
from speclib import LanguageModel, Sampling
from speclib.drafters import ModelDrafter, SyntheticDrafter
from speclib.law.exact import max_difference, outcomes
from speclib.loop.stops import Stops
from speclib.training.tokenizer import train_tokenizer

SCRIPT = "begin aé→日z.!"  # every byte of it but "begin" is a token of its own, and none comes twice
GREEDY = Sampling(temperature=0)


@cache
def byte_tokenizer():
    """A byte-level BPE that has learnt one word, so that most characters beyond ASCII are several tokens."""
    return train_tokenizer(["begin begin begin"] * 9, vocabulary=262)


@cache
def scripted():
    """A Llama whose layers add nothing and whose output matrix says which token follows which: it repeats SCRIPT for
    ever.
    """
    tokenizer = byte_tokenizer()
    script = tokenizer(SCRIPT)["input_ids"]
    assert len(set(script)) == len(script) > len(SCRIPT) - 4
    size = len(tokenizer) + len(tokenizer) % 2
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).double().eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                weights.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for token, following in zip(script, [*script[1:], script[0]], strict=True):
            model.lm_head.weight[following, token] = 1.0
    return LanguageModel(model, tokenizer, "scripted", backend="fast"), script


def until(tokens, stop, tokenizer):
    """The shortest beginning of `tokens` whose text holds a stop string: the definition, spelt out."""
    return next(
        (tokens[:n] for n in range(1, len(tokens) + 1) if any(s in tokenizer.decode(tokens[:n]) for s in stop)), tokens
    )


def test_the_script_is_played_and_its_characters_are_split_over_tokens():
    target, script = scripted()
    out = speclib.generate(target, [[script[0]]], None, GREEDY, max_new_tokens=len(script) * 2, stop=[])
    assert (
        out.texts[0] == (SCRIPT * 3)[len(byte_tokenizer().decode(script[:1])) :][: len(out.texts[0])]
        and SCRIPT in out.texts[0]
    )
    assert [len(byte_tokenizer()(c)["input_ids"]) for c in "é→日"] == [2, 3, 3]


@pytest.mark.parametrize("gamma", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(
    "stop",
    [["é"], ["→"], ["日"], ["z.!"], ["aé→日"], ["日z", "never"], ["!b"], ["never"], ["é→", "a"], ["a", 0]],
    ids=str,
)
def test_text_ends_where_plain_decoding_ends_it(stop, gamma):
    """With every gamma the string lies differently against the rounds: inside an accepted block, at its edge, across
    two.
    """
    target, script = scripted()
    prompt, tokens = [script[:2]], 24
    everything = (script * 4)[2 : 2 + tokens]
    right = until(everything, [s for s in stop if isinstance(s, str)], byte_tokenizer())
    plain = speclib.generate(target, prompt, None, GREEDY, max_new_tokens=tokens, stop=stop)
    assert plain.tokens[0].tolist() == right and (len(right) < tokens) == (stop != ["never"])
    for drafter in (ModelDrafter(target), SyntheticDrafter(0.7)):
        for seed in range(2):
            out = speclib.generate(target, prompt, drafter, GREEDY, gamma, max_new_tokens=tokens, stop=stop, seed=seed)
            assert out.tokens[0].tolist() == right and out.texts == plain.texts


def test_the_cases_meant_above_do_occur():
    """A string that ends inside an accepted block, and one whose tokens come from two rounds."""
    target, script = scripted()
    inside, across = 0, 0
    for gamma in range(1, 10):
        last = speclib.generate(
            target, [script[:2]], ModelDrafter(target), GREEDY, gamma, max_new_tokens=24, stop=["日"]
        ).trace.rounds[-1]
        inside += len(last.emitted) < last.accepted + 1
        across += len(last.emitted) < 3
    assert inside > 0 and across > 0


class Letters:
    """The least tokenizer: token 0 is "a", token 1 is "b", and so on."""

    eos_token_id = None

    def __len__(self):
        return 2

    def decode(self, ids, **_):
        return "".join("ab"[i] for i in ids)

    def get_vocab(self):
        return {"a": 0, "b": 1}


def tiny(seed, layers):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=2,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LanguageModel(LlamaForCausalLM(config).double().eval(), Letters(), backend="fast")


@pytest.mark.parametrize("gamma", [1, 2])
@pytest.mark.parametrize("stop", [["ab"], ["aab", "bb"], ["aba"], ["bb", 0]], ids=str)
def test_the_law_of_text_with_stop_strings(stop, gamma):
    """Every path of generate() summed, with guesses and without: the same law of texts, most of them cut short."""
    target, draft = tiny(0, 2), tiny(1, 1)

    def law(drafter):
        return outcomes(
            lambda draw: tuple(
                speclib.generate(target, [[0, 1]], drafter, Sampling(), gamma, "token", 4, stop, draw=draw)
                .tokens[0]
                .tolist()
            )
        )

    right = law(None)
    assert sum(mass for text, mass in right.items() if len(text) < 4) > 0.05
    assert max_difference(law(ModelDrafter(draft)), right) < 1e-12


def cut_in_rounds(stops, tokens, seed):
    """What `Stops.cut` makes of a text that comes in rounds of one to five tokens, as `generate` asks."""
    chance, new, ended = random.Random(seed), [], False
    while len(new) < len(tokens) and not ended:
        emitted, ended = stops.cut(new, tokens[len(new) : len(new) + chance.randrange(1, 6)])
        new = new + emitted
    return new


@pytest.mark.parametrize("kind", alphabets.KINDS)
def test_only_the_end_is_decoded_and_nothing_is_missed(kind):
    """Any piece of a text as the stop string, characters of several tokens and mended spaces among them."""
    tokenizer, late = alphabets.tokenizer(kind), 0
    for seed in range(150):
        tokens, chance = alphabets.some_tokens(kind, seed), random.Random(seed)
        text = tokenizer.decode(tokens)
        begins = chance.randrange(len(text) - 6)
        stop = (text[begins : begins + chance.randrange(1, 6)], "never")
        right = until(tokens, stop, tokenizer)
        late += 30 < len(right) < len(tokens)
        assert cut_in_rounds(Stops(frozenset(), stop, tokenizer), tokens, seed) == right, (seed, stop)
    assert late > 20


class Counting:
    """A tokenizer that counts the tokens it decodes; 0 has no text, k > 0 is k times "a", 99 is "b"."""

    def __init__(self):
        self.decoded = 0

    def decode(self, ids):
        self.decoded += len(ids)
        return "".join("b" if i == 99 else "a" * i for i in ids)


def test_the_cost_of_a_token_does_not_grow_with_the_text():
    counts = {}
    for length in (200, 2000):
        tokenizer = Counting()
        stops, text = Stops(frozenset(), ("xyz", "b" * 20), tokenizer), [1] * length
        for k in range(0, length, 4):
            assert stops.cut(text[:k], text[k : k + 4]) == (text[k : k + 4], False)
        counts[length] = tokenizer.decoded / length
    assert counts[2000] < 1.2 * counts[200]


@pytest.mark.parametrize("silent", [0, 3, 17, 40, 300])
def test_tokens_without_text_hide_nothing(silent):
    """The string's beginning lies any number of silent tokens back; and it may stand at the front of a long last
    token.
    """
    stops = Stops(frozenset(), ("aba",), Counting())
    text = [2] * 50 + [99] + [0] * silent
    assert stops.cut(text, [0, 50, 1]) == ([0, 50], True)
    assert stops.cut([2] * 50 + [0] * silent, [99, 0, 0]) == ([99, 0, 0], False)


def test_a_part_of_the_text_is_not_taken_for_its_beginning():
    """A piece of a word is written with ## where a text begins with it: the text has none, wherever its end is cut
    off.
    """
    tokenizer = alphabets.tokenizer("WordPiece")
    piece = next(token for text, token in tokenizer.get_vocab().items() if text.startswith("##"))
    tokens = [*tokenizer("the fox")["input_ids"], *[piece] * 80]
    assert "##" not in tokenizer.decode(tokens)
    assert cut_in_rounds(Stops(frozenset(), ("##",), tokenizer), tokens, 0) == tokens
