"""Trees and ensembles of guesses: the law of generate() as it stands, greedy identity, and wrong attention. By chance,
and with the museum: test_every_guesser.py.
"""

import pytest
import torch
from models import llama, right_law

from speclib import context as contexts
from speclib.drafters import EnsembleDrafter, LookupDrafter, ModelDrafter, TreeDrafter
from speclib.drafters import tree as trees
from speclib.errors import InvalidArgument
from speclib.law.distributions import Sampling, seeded
from speclib.law.exact import law_variation, max_difference, outcomes
from speclib.law.rules import token_law, tree_law
from speclib.loop.decoding import generate, taken
from speclib.model.language_model import LanguageModel

PROMPT = [0, 1]
TREES = {
    "sampled": lambda draft: TreeDrafter(draft, (2, 1)),
    "sampled, all siblings": lambda draft: TreeDrafter(draft, (3,)),
    "sampled, best first": lambda draft: TreeDrafter(draft, (2, 2, 2), budget=3),
    "top-k": lambda draft: TreeDrafter(draft, (2, 2), sampled=False),
    "best first": lambda draft: TreeDrafter(draft, (2, 2, 1), sampled=False, budget=4),
    "ensemble of models": lambda draft: EnsembleDrafter(
        [ModelDrafter(draft), ModelDrafter(llama(draft.vocabulary, 7, 1))]
    ),
    "model and lookup": lambda draft: EnsembleDrafter([LookupDrafter(2), ModelDrafter(draft)]),
}


def law(target, drafter, length, depth=2, stop=(), sampling=None):
    def run(draw):
        out = generate(target, [PROMPT], drafter, sampling, depth, "token", length, list(stop), draw=draw)
        return tuple(out.tokens[0].tolist())

    return outcomes(run, limit=400_000)


@pytest.mark.parametrize("kind", TREES)
@pytest.mark.parametrize(("vocabulary", "length", "stop"), [(2, 4, ()), (2, 4, (1,)), (3, 3, ())])
def test_trees_keep_the_law(kind, vocabulary, length, stop):
    target, draft = llama(vocabulary, 0, 2), llama(vocabulary, 1, 1)
    found = law(target, TREES[kind](draft), length, stop=stop)
    assert max_difference(found, right_law(target, Sampling(), length, PROMPT, *stop)) < 1e-12
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("backend", ["eager", "fast"])
@pytest.mark.parametrize("kind", TREES)
def test_greedy_text_is_plain_text(kind, backend):
    target, draft = (LanguageModel(llama(12, seed, layers).model, backend=backend) for seed, layers in ((3, 2), (4, 1)))
    drafter = TreeDrafter(draft, (3, 2, 1), sampled=False) if "sampled" in kind else TREES[kind](draft)
    greedy = Sampling(temperature=0)
    plain, tree = (generate(target, [PROMPT], d, greedy, 3, max_new_tokens=24, stop=[]) for d in (None, drafter))
    assert torch.equal(plain.tokens[0], tree.tokens[0])
    assert tree.trace.to_html() and 0 <= tree.summary()["alpha"] <= 1


def test_a_tree_of_one_branch_is_a_chain():
    target, draft = llama(5, 0, 2), llama(5, 1, 1)
    chain = generate(target, [PROMPT], ModelDrafter(draft), draft_length=3, max_new_tokens=25, stop=[], seed=4)
    tree = generate(target, [PROMPT], TreeDrafter(draft, (1, 1, 1)), draft_length=3, max_new_tokens=25, stop=[], seed=4)
    assert torch.equal(chain.tokens[0], tree.tokens[0])
    assert tree.summary()["alpha"] is not None


def test_siblings_are_told_truly():
    """Each sibling's q is the draft's distribution without its elder siblings, made to sum to 1."""
    draft, sampling = llama(5, 1, 1), Sampling()
    guesser = TreeDrafter(draft, (3, 1)).start(draft.context(PROMPT), sampling, seeded(0))
    guess = guesser.propose(list(PROMPT), 2)
    q = sampling.probabilities(draft.context().extend(torch.tensor([PROMPT]))[0, -1])
    assert guess.parents[:3] == [-1, -1, -1] and sorted(guess.parents[3:]) == [0, 1, 2]
    for k in range(3):
        left = q.clone()
        left[guess.tokens[:k]] = 0
        assert torch.allclose(guess.probs[k], left / left.sum())
    below = sampling.probabilities(draft.context().extend(torch.tensor([[*PROMPT, int(guess.tokens[1])]]))[0, -1])
    assert torch.allclose(guess.probs[guess.parents.index(1)], below, atol=1e-12)


def test_a_budget_keeps_the_most_probable_connected_nodes():
    draft = llama(5, 1, 1)
    whole = (
        TreeDrafter(draft, (3, 3), sampled=False)
        .start(draft.context(PROMPT), Sampling(), seeded(0))
        .propose(list(PROMPT), 2)
    )
    small = (
        TreeDrafter(draft, (3, 3), sampled=False, budget=5)
        .start(draft.context(PROMPT), Sampling(), seeded(0))
        .propose(list(PROMPT), 2)
    )
    assert len(whole.tokens) == 12 and len(small.tokens) == 5
    assert all(-1 <= parent < child for child, parent in enumerate(small.parents))
    paths = [{tuple(path(g, k)) for k in range(len(g.tokens))} for g in (whole, small)]
    assert paths[1] <= paths[0]


def test_a_sampled_tree_grows_where_it_promises_most():
    """Sure of itself the draft goes deep, unsure it goes broad; a node that comes second of its siblings is drawn after
    the first.
    """
    draft = llama(5, 1, 1)
    found = {}
    for top, shape in (
        (0.99, [-1, 0, 1, 2]),
        (-0.9, [-1, -1, -1, -1]),
    ):  # -0.9: an elder sibling is taken to fail for certain
        guesser = TreeDrafter(draft, (4, 4, 4, 4), budget=4).start(draft.context(PROMPT), Sampling(), seeded(0))
        promises = lambda _, elder, top=top: (0.45 + 0.5 * top) if elder == 0 else (0.55 - 0.5 * top) * 0.9**elder
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trees, "chance_kept", promises)
            guess = guesser.propose(list(PROMPT), 4)
        assert guess.parents == shape and len(set(guess.tokens.tolist())) > 1
        found[top] = guess
    assert torch.allclose(found[-0.9].probs[1], trees.without(found[-0.9].probs[0], int(found[-0.9].tokens[0]))[0])
    assert max(guess.parents.count(-1) for guess in found.values()) == 4


def path(guess, node):
    return [*path(guess, guess.parents[node]), int(guess.tokens[node])] if node >= 0 else []


def test_taken_is_the_probability_that_some_guess_passes():
    assert taken([-1, 0], [0, 1], [0.5, 0.25, 0.25]) == pytest.approx([0.5, 0.5])
    assert taken([-1, -1], [1], [0.2, 0.3, 0.5]) == pytest.approx([0.8])


@pytest.mark.parametrize("mistake", ["everybody sees everybody before", "positions follow slots"])
def test_wrong_attention_is_caught(monkeypatch, mistake):
    right = contexts.ancestry

    def wrong(parents):
        sees, depths = right(parents)
        if mistake == "positions follow slots":
            return sees, torch.arange(len(parents))
        return torch.ones_like(sees).tril(), depths

    monkeypatch.setattr(contexts, "ancestry", wrong)
    target, draft = llama(3, 0, 2), llama(3, 1, 1)
    for model in (target, draft):  # the probe sees it too: tests/test_probe.py
        monkeypatch.setattr(model, "probe", False)
    assert law_variation(law(target, TreeDrafter(draft, (2, 1)), 3), right_law(target, Sampling(), 3, PROMPT)) > 1e-4


def test_on_a_chain_the_tree_rule_is_the_token_rule():
    p, q = (torch.rand(6, n, 5, dtype=torch.float64).softmax(-1) for n in (4, 3))
    drafted = torch.randint(5, (6, 3))
    chain, tree = token_law(p, q, drafted), tree_law(p, q, drafted, [-1, 0, 1])
    assert torch.allclose(chain.stop_probs, tree.stop_probs, atol=1e-15) and torch.allclose(
        chain.next_probs, tree.next_probs, atol=1e-15
    )


def test_what_cannot_be():
    draft = llama(3, 1, 1)
    for make in (
        lambda: TreeDrafter(draft, ()),
        lambda: TreeDrafter(draft, (0,)),
        lambda: TreeDrafter(draft, (2,), budget=0),
        lambda: EnsembleDrafter([]),
    ):
        with pytest.raises(InvalidArgument):
            make()
    with pytest.raises(InvalidArgument, match="token rule"):
        generate(llama(3, 0, 2), [PROMPT], TreeDrafter(draft), rule="block")
