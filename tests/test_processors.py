"""Logits processors under speculation: exactly the masked target's law, transformers' own text, and a clear no.

The masked law is summed here by itself, from the model's own forwards and a mask that is a function of the prefix.
"""

import json
import warnings

import llguidance
import llguidance.hf
import pytest
import torch
from models import GUESSER, PROMPT, TREES, VOCABULARY, draft, target
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    T5Config,
    T5ForConditionalGeneration,
)

from speclib import LanguageModel, Sampling, generate, load_pair
from speclib.drafters import (
    EagleDrafter,
    EnsembleDrafter,
    HeadsDrafter,
    LookupDrafter,
    ModelDrafter,
    TreeDrafter,
    load_eagle,
    load_heads,
)
from speclib.drafters.model import ModelSession
from speclib.errors import InvalidArgument, NonFiniteLogits
from speclib.law.distributions import seeded
from speclib.law.exact import TableModel, law_variation, max_difference, outcomes, plain_law
from speclib.loop.processors import GrammarProcessor, Places, ProcessedSampling
from speclib.museum import MASKS

LENGTH = 4
# an automaton: state -> tokens, and the state follows from all tokens before
AFTER = {
    0: {1, 2},
    1: {0, 2},
    2: {0, 3},
    3: {1, 3},
}


def state_after(tokens):
    state = 0
    for token in tokens:
        state = (2 * state + token + 1) % 4
    return state


def masked(scores, allowed):
    return scores.masked_fill(~torch.isin(torch.arange(scores.shape[-1]), torch.tensor(sorted(allowed))), -torch.inf)


class Automaton(LogitsProcessor):
    """In the style of a matcher: each call moves it by one token, the last one."""

    def __init__(self):
        self.state, self.calls = 0, 0

    def __call__(self, input_ids, scores):
        if self.calls:
            token = int(input_ids[0, -1])
            assert token in AFTER[self.state], "it was shown a token that it had forbidden"
            self.state = (2 * self.state + token + 1) % 4
        self.calls += 1
        return masked(scores, AFTER[self.state])


class Tiring(LogitsProcessor):
    """Its state depends on the scores it saw: each time the likeliest token becomes less likely, for ever."""

    def __init__(self):
        self.tired = torch.zeros(VOCABULARY, dtype=torch.float64)

    def __call__(self, input_ids, scores):
        scores = scores - self.tired
        self.tired[scores[0].argmax()] += 1.5
        return scores


def by_prefix():
    return PrefixConstrainedLogitsProcessor(
        lambda row, tokens: sorted(AFTER[state_after(tokens[len(PROMPT) :].tolist())]), 1
    )


def in_place(input_ids, scores):
    scores[:, input_ids[0, -1]] -= 2.0  # a function, and one that writes into what it is given
    return scores


PROCESSORS = {
    "a matcher": lambda: [Automaton()],
    "a function of the prefix": lambda: [by_prefix()],
    "repetition and n-grams": lambda: [RepetitionPenaltyLogitsProcessor(1.7), NoRepeatNGramLogitsProcessor(2)],
    "a state that the scores move": lambda: [Tiring()],
    "two, one writing in place": lambda: [in_place, Automaton()],
}


def plain_masked_law(make, sampling, length=LENGTH):
    """By one call a token along every text, as plain decoding calls them."""

    def row(prefix):
        processors = make()
        for size in range(len(prefix) + 1):
            tokens = torch.tensor([[*PROMPT, *prefix[:size]]])
            # a fresh one each time: no cache is trusted
            scores = target(torch.float64).context().extend(tokens)[:, -1].clone()
            for processor in processors:
                scores = processor(tokens, scores)
        return sampling.probabilities(scores)[0].numpy()

    class Lazy(TableModel):  # a table asks for all prefixes, forbidden ones too
        def __call__(self, prefix):
            with torch.inference_mode():
                return torch.from_numpy(row(tuple(prefix)))

    return plain_law(Lazy(VOCABULARY, row), length)


def law_of(drafter, processors, sampling, rule="token", length=LENGTH):
    sampling = Sampling(sampling.temperature, sampling.top_k, processors=processors)

    def run(draw):
        return tuple(
            generate(target(torch.float64), [PROMPT], drafter, sampling, 2, rule, length, [], draw=draw)
            .tokens[0]
            .tolist()
        )

    return outcomes(run)


TWO = Sampling(temperature=0.9, top_k=2)  # fewer paths


@pytest.mark.parametrize("guesser", GUESSER)
def test_a_matcher_keeps_the_masked_law_with_every_guesser(guesser):
    law = law_of(GUESSER[guesser](torch.float64), [Automaton()], TWO, length=3)
    assert max_difference(law, plain_masked_law(PROCESSORS["a matcher"], TWO, 3)) < 1e-12 and len(law) == 8


@pytest.mark.parametrize("guesser", ["model", "lookup", "tree, likeliest", "tree of heads, drawn"])
@pytest.mark.parametrize("name", PROCESSORS)
def test_every_processor_keeps_its_law(name, guesser):
    law = law_of(GUESSER[guesser](torch.float64), PROCESSORS[name](), TWO, length=3)
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    assert max_difference(law, plain_masked_law(PROCESSORS[name], TWO, 3)) < 1e-12


@pytest.mark.parametrize("name", ["a matcher", "repetition and n-grams"])
def test_block_verification_keeps_it_too(name):
    """Texts longer than gamma + 1, so that the state goes from one round to the next."""
    law = law_of(ModelDrafter(draft(torch.float64)), PROCESSORS[name](), TWO, "block")
    assert max_difference(law, plain_masked_law(PROCESSORS[name], TWO)) < 1e-12


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_draft_that_is_the_target_is_always_right(name):
    """Its guesses are processed as the target's places are: at every depth, in chains and in trees."""
    model = target(torch.float64)
    for drafter, sampling in [
        (ModelDrafter(model), Sampling()),
        (TreeDrafter(model, (1, 1, 1, 1)), Sampling()),
        (TreeDrafter(model, (2, 2, 1, 1)), Sampling(0)),
    ]:
        sampling = Sampling(sampling.temperature, processors=PROCESSORS[name]())
        out = generate(model, [PROMPT], drafter, sampling, 4, max_new_tokens=11, stop=[], seed=1)
        assert [len(r.emitted) for r in out.trace.rounds] == [5, 5, 1]


def test_the_callers_processor_does_not_move():
    mine = Automaton()
    sampling = Sampling(processors=[mine])
    first, again = (
        generate(target(), [PROMPT, PROMPT[:3]], ModelDrafter(draft()), sampling, max_new_tokens=12, stop=[]).texts
        for _ in range(2)
    )
    assert first == again and (mine.state, mine.calls) == (0, 0)


def test_each_row_of_a_list_is_known_by_its_number():
    only = [{0, 1}, {2}, {1, 3}]
    sampling = Sampling(processors=[PrefixConstrainedLogitsProcessor(lambda row, tokens: sorted(only[row]), 1)])
    out = generate(target(), [PROMPT] * 3, ModelDrafter(draft()), sampling, max_new_tokens=20, stop=[])
    assert [set(tokens.tolist()) for tokens in out.tokens] == only


# --- clear answers
# --------------------------------------------------------------------------------------------------------


class Stuck(LogitsProcessor):
    def __init__(self):
        self.held = (part for part in "a generator")

    def __call__(self, input_ids, scores):
        return scores


def test_a_processor_that_cannot_be_copied_is_refused_before_work():
    with pytest.raises(InvalidArgument, match="Stuck cannot be copied.*__deepcopy__"):
        generate(target(), [PROMPT], None, Sampling(processors=[Stuck()]), max_new_tokens=4)


@pytest.mark.parametrize("wrong", [["repetition"], 3, Automaton(), [None]])
def test_what_is_no_list_of_processors_is_refused(wrong):
    with pytest.raises(InvalidArgument, match="processors must be a list"):
        Sampling(processors=wrong)


def test_probabilities_of_a_prefix_nobody_told_are_refused():
    with pytest.raises(InvalidArgument, match="tokens before"):
        Sampling(processors=[in_place]).probabilities(torch.zeros(1, 4))


def three_then_nothing(input_ids, scores):
    return scores if input_ids.shape[1] < len(PROMPT) + 3 else torch.full_like(scores, -torch.inf)


@pytest.mark.parametrize(
    "drafter",
    [None, ModelDrafter(draft()), TREES["tree, likeliest"](torch.float32), LookupDrafter()],
    ids=["plain", "model", "tree", "lookup"],
)
def test_a_dead_end_is_an_error_where_the_text_comes_to_it_and_nowhere_else(drafter):
    sampling = Sampling(0, processors=[three_then_nothing])
    assert len(generate(target(), [PROMPT], drafter, sampling, max_new_tokens=3, stop=[]).tokens[0]) == 3
    with pytest.raises(NonFiniteLogits, match="no token possible after 8 tokens"):
        generate(target(), [PROMPT], drafter, sampling, max_new_tokens=4, stop=[])
    with pytest.raises(NonFiniteLogits, match="after 8 tokens"):  # in the middle of guesses that are all right
        generate(target(), [PROMPT], ModelDrafter(target()), sampling, max_new_tokens=9, stop=[])
    last = generate(target(), [PROMPT], None, sampling, max_new_tokens=3, stop=[]).tokens[0].tolist()[2]
    assert len(generate(target(), [PROMPT], drafter, sampling, max_new_tokens=9, stop=[last]).tokens[0]) <= 3


# --- what a generation_config implies
# ----------------------------------------------------------------------------------------


def llama(**settings):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=96,
        bos_token_id=None,
        eos_token_id=7,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return configured(LlamaForCausalLM(config).double().eval(), settings)


def t5(**settings):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=61,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        eos_token_id=7,
        initializer_factor=4.0,
    )
    return configured(T5ForConditionalGeneration(config).double().eval(), settings)


def configured(model, settings):
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return model


IMPLIED = [
    {"repetition_penalty": 3.0},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[11], [23, 5]]},
    {"suppress_tokens": list(range(20))},
    {"begin_suppress_tokens": list(range(50))},
    {"forced_eos_token_id": 9},
    {"min_new_tokens": 30},
    {"sequence_bias": {(5,): 9.0, (5, 6): -20.0}},
    {"exponential_decay_length_penalty": (4, 1.3)},
    {"repetition_penalty": 1.3, "suppress_tokens": [1, 2, 3], "min_length": 20},
]
IMPLIED_WITH_AN_ENCODER = [
    {"forced_bos_token_id": 44},
    {"encoder_repetition_penalty": 1.6},
    {"encoder_no_repeat_ngram_size": 1},
    {"repetition_penalty": 2.0},
]


@pytest.mark.parametrize("settings", IMPLIED, ids=str)
@pytest.mark.parametrize("drafted", [False, True])
def test_greedy_text_is_transformers_own_under_a_generation_config(settings, drafted):
    model, prompt = llama(**settings), [5, 6, 7, 30, 31]
    drafter = EnsembleDrafter([LookupDrafter(), ModelDrafter(LanguageModel(llama()))]) if drafted else None
    right = model.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 5, dtype=torch.long), max_new_tokens=40, do_sample=False
    )[0, 5:]
    ours = generate(LanguageModel(model), [prompt], drafter, Sampling(0), max_new_tokens=40).tokens[0]
    assert ours.tolist() == right.tolist()


@pytest.mark.parametrize("settings", IMPLIED_WITH_AN_ENCODER, ids=str)
def test_and_so_it_is_with_an_encoder(settings):
    model, prompt = t5(**settings), [5, 6, 8, 30, 31]
    right = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False)[0, 1:]
    for drafter in (None, ModelDrafter(LanguageModel(t5()))):
        assert (
            generate(LanguageModel(model), [prompt], drafter, Sampling(0), max_new_tokens=20).tokens[0].tolist()
            == right.tolist()
        )


def test_the_callers_processors_come_after_those_of_the_config():
    """As in transformers: the last word is the caller's."""
    model = llama(repetition_penalty=2.0)
    loud = lambda input_ids, scores: scores.masked_fill(scores < scores.amax() - 5, -torch.inf)
    plain = generate(LanguageModel(model), [[5, 6]], None, Sampling(processors=[loud]), max_new_tokens=20, stop=[])
    torch.manual_seed(0)
    greedy = model.generate(
        torch.tensor([[5, 6]]),
        attention_mask=torch.ones(1, 2, dtype=torch.long),
        max_new_tokens=1,
        do_sample=False,
        logits_processor=[loud],
        output_scores=True,
        return_dict_in_generate=True,
    )
    possible = (greedy.scores[0][0] > -torch.inf).nonzero().flatten().tolist()
    assert plain.tokens[0][0].item() in possible and len(possible) < 61


@pytest.mark.parametrize("settings", [{"guidance_scale": 1.5}, {"typical_p": 0.5, "do_sample": True}], ids=str)
def test_what_is_not_followed_is_said(settings):
    with pytest.warns(UserWarning, match=next(iter(settings))):
        generate(LanguageModel(llama(**settings)), [[5, 6]], None, Sampling(0), max_new_tokens=2)


def test_a_config_that_implies_nothing_changes_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(
            LanguageModel(llama(temperature=0.3, top_k=5, do_sample=True)),
            [[5, 6]],
            None,
            Sampling(0),
            max_new_tokens=2,
        )


def test_a_draft_that_knows_fewer_tokens_is_processed_alike():
    """The processors may name tokens that only the target has; the draft never guesses them."""
    sampling = ProcessedSampling(
        places=Places([5, 6], [SequenceBiasLogitsProcessor({(55,): 5.0})], torch.device("cpu"))
    )
    guesser = ModelSession(LanguageModel(llama()).context([5, 6]), 61, sampling, seeded(0))
    q = guesser.law(torch.zeros(1, 40), lambda: [[]])
    assert q.shape == (1, 61) and q[0, :40].eq(1 / 40).all() and not q[0, 40:].any()


# --- a grammar
# -------------------------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["self", "return", "x"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "size"],
    "additionalProperties": False,
}
COMPACT = {"whitespace_flexible": False}  # else a text of white space is as good as any


def matcher(pair):
    grammar = llguidance.LLMatcher.grammar_from_json_schema(SCHEMA, defaults=COMPACT)
    return llguidance.LLMatcher(llguidance.hf.from_tokenizer(pair.tokenizer), grammar)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_json_schema_is_always_kept(temperature):
    pair = load_pair(backend="fast")
    sampling = Sampling(temperature, processors=[GrammarProcessor(matcher(pair))])
    drafters = [
        None,
        ModelDrafter(pair.draft),
        TreeDrafter(pair.draft, (2, 2, 1)),
        EagleDrafter(load_eagle()),
        HeadsDrafter(load_heads(), 3),
        LookupDrafter(),
    ]
    texts = []
    for drafter in drafters:
        texts.append(
            generate(pair.target, ["the arguments are ", "def"], drafter, sampling, 4, max_new_tokens=60, seed=3).texts
        )
        for text in texts[-1]:
            value = json.loads(text)
            assert (
                set(value) == {"name", "size"} and value["name"] in ("self", "return", "x") and 0 <= value["size"] <= 99
            )
    assert temperature or all(text == texts[0] for text in texts)


def test_a_grammar_is_kept_by_the_matchers_own_copies():
    pair = load_pair(backend="fast")
    processor = GrammarProcessor(matcher(pair))
    generate(pair.target, "x", ModelDrafter(pair.draft), Sampling(processors=[processor]), max_new_tokens=8)
    assert (
        processor.read is None
        and not processor.matcher.is_stopped()
        and processor.matcher.consume_tokens(pair.tokenizer.encode('{"'))
    )
    with pytest.raises(InvalidArgument, match="does not allow"):
        broken = GrammarProcessor(matcher(pair))
        broken(torch.tensor([[1]]), torch.zeros(1, pair.target.vocabulary))
        broken(torch.tensor([[1, *pair.tokenizer.encode("no")]]), torch.zeros(1, pair.target.vocabulary))


# --- the museum
# --------------------------------------------------------------------------------------------------------------


class Lenient(Automaton):
    """Goes on, whatever it is shown."""

    def __call__(self, input_ids, scores):
        if self.calls:
            self.state = (2 * self.state + int(input_ids[0, -1]) + 1) % 4
        self.calls += 1
        return masked(scores, AFTER[self.state])


@pytest.mark.parametrize(
    ("name", "guesser"), [(name, "model") for name in MASKS] + [(name, "lookup") for name in list(MASKS)[:2]]
)
def test_every_mask_in_the_wrong_place_is_seen(name, guesser):
    """Its exact law is off, and writes texts that the grammar forbids."""
    exhibit = MASKS[name]
    right = plain_masked_law(PROCESSORS["a matcher"], Sampling(), 3)
    law = law_of(exhibit.around(GUESSER[guesser](torch.float64)), [Lenient()], Sampling(), length=3)
    assert sum(law.values()) == pytest.approx(1, abs=1e-12) and law_variation(law, right) > 1e-2
    assert sum(mass for text, mass in law.items() if text not in right) > 1e-2
    assert exhibit.name == name and exhibit.where and exhibit.needs and ":" in exhibit.what


def test_the_honest_one_stands_beside_them():
    law = law_of(GUESSER["model"](torch.float64), [Lenient()], Sampling(), length=3)
    assert max_difference(law, plain_masked_law(PROCESSORS["a matcher"], Sampling(), 3)) < 1e-12


def test_chance_is_the_same_with_and_without_processors():
    """One that changes nothing changes no text, though no program draws for it."""
    idle = Sampling(processors=[lambda input_ids, scores: scores])
    with_one, without = (
        generate(target(), [PROMPT], ModelDrafter(draft()), sampling, max_new_tokens=20, stop=[], seed=5).tokens[0]
        for sampling in (idle, Sampling())
    )
    assert torch.equal(with_one, without) and int(seeded(0)(torch.tensor([0.0, 1.0]))) == 1
