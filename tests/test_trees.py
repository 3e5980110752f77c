"""Trees and ensembles of guesses: the law of generate() as it stands, greedy identity, and the mistakes that trees invite."""

import pytest
import torch
from test_exact import tiny
from test_lengths import PROMPT, right_law

from speclib import context as contexts
from speclib.decoding import generate, taken
from speclib.distributions import Sampling, residual, seeded
from speclib.drafters import EnsembleDrafter, LookupDrafter, ModelDrafter, TreeDrafter
from speclib.errors import InvalidArgument
from speclib.exact import law_variation, max_difference, outcomes
from speclib.models import LanguageModel
from speclib.rules import Verdict, drafted_probs, token_law, tree_law
from speclib.statistics import SIGNIFICANCE, g_test

TREES = {
    "sampled": lambda draft: TreeDrafter(draft, (2, 1)),
    "sampled, all siblings": lambda draft: TreeDrafter(draft, (3,)),
    "top-k": lambda draft: TreeDrafter(draft, (2, 2), sampled=False),
    "best first": lambda draft: TreeDrafter(draft, (2, 2, 1), sampled=False, budget=4),
    "ensemble of models": lambda draft: EnsembleDrafter([ModelDrafter(draft), ModelDrafter(tiny(draft.vocabulary, 7, 1))]),
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
    target, draft = tiny(vocabulary, 0, 2), tiny(vocabulary, 1, 1)
    found = law(target, TREES[kind](draft), length, stop=stop)
    assert max_difference(found, right_law(target, length, *stop)) < 1e-12
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("backend", ["eager", "fast"])
@pytest.mark.parametrize("kind", TREES)
def test_greedy_text_is_plain_text(kind, backend):
    target, draft = (LanguageModel(tiny(12, seed, layers).model, backend=backend) for seed, layers in ((3, 2), (4, 1)))
    drafter = TreeDrafter(draft, (3, 2, 1), sampled=False) if "sampled" in kind else TREES[kind](draft)
    greedy = Sampling(temperature=0)
    plain, tree = (generate(target, [PROMPT], d, greedy, 3, max_new_tokens=24, stop=[]) for d in (None, drafter))
    assert torch.equal(plain.tokens[0], tree.tokens[0])
    assert tree.trace.to_html() and 0 <= tree.summary()["alpha"] <= 1


def test_a_tree_of_one_branch_is_a_chain():
    target, draft = tiny(5, 0, 2), tiny(5, 1, 1)
    chain = generate(target, [PROMPT], ModelDrafter(draft), draft_length=3, max_new_tokens=25, stop=[], seed=4)
    tree = generate(target, [PROMPT], TreeDrafter(draft, (1, 1, 1)), draft_length=3, max_new_tokens=25, stop=[], seed=4)
    assert torch.equal(chain.tokens[0], tree.tokens[0])
    assert tree.summary()["alpha"] is not None


def test_siblings_are_told_truly():
    """Each sibling's q is the draft's distribution without its elder siblings, made to sum to 1."""
    draft, sampling = tiny(5, 1, 1), Sampling()
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
    draft = tiny(5, 1, 1)
    whole = TreeDrafter(draft, (3, 3), sampled=False).start(draft.context(PROMPT), Sampling(), seeded(0)).propose(list(PROMPT), 2)
    small = TreeDrafter(draft, (3, 3), sampled=False, budget=5).start(draft.context(PROMPT), Sampling(), seeded(0)).propose(list(PROMPT), 2)
    assert len(whole.tokens) == 12 and len(small.tokens) == 5
    assert all(-1 <= parent < child for child, parent in enumerate(small.parents))
    paths = [{tuple(path(g, k)) for k in range(len(g.tokens))} for g in (whole, small)]
    assert paths[1] <= paths[0]


def path(guess, node):
    return [*path(guess, guess.parents[node]), int(guess.tokens[node])] if node >= 0 else []


def test_taken_is_the_probability_that_some_guess_passes():
    assert taken([-1, 0], [0, 1], [0.5, 0.25, 0.25]) == pytest.approx([0.5, 0.5])
    assert taken([-1, -1], [1], [0.2, 0.3, 0.5]) == pytest.approx([0.8])


# --- what goes wrong with trees -------------------------------------------------------------------------------------------


def never_updated(p, q, drafted, parents):
    """Each sibling is tried against the whole of p, as if the ones before it had not been rejected."""
    given = drafted_probs(q, drafted)
    reached, missed, left = [torch.ones_like(p[:, 0, 0])], [torch.ones_like(p[:, 0, 0]) for _ in range(len(parents) + 1)], list(p.unbind(1))
    for child, parent in enumerate(parents):
        node = parent + 1
        accept = (p[:, node].gather(-1, drafted[:, child, None])[:, 0] / given[:, child]).clamp(max=1)
        reached.append(reached[node] * missed[node] * accept)
        missed[node], left[node] = missed[node] * (1 - accept), residual(p[:, node], q[:, child])
    return Verdict(torch.stack(reached, 1) * torch.stack(missed, 1), torch.stack(left, 1))


def test_siblings_that_ignore_each_other_are_caught(monkeypatch):
    from speclib import rules

    monkeypatch.setattr(rules, "tree_law", never_updated)
    target, draft = tiny(3, 0, 2), tiny(3, 1, 1)
    assert law_variation(law(target, TREES["sampled"](draft), 3), right_law(target, 3)) > 1e-3


@pytest.mark.parametrize("mistake", ["everybody sees everybody before", "positions follow slots"])
def test_wrong_attention_is_caught(monkeypatch, mistake):
    right = contexts.ancestry

    def wrong(parents):
        sees, depths = right(parents)
        if mistake == "positions follow slots":
            return sees, torch.arange(len(parents))
        return torch.ones_like(sees).tril(), depths

    monkeypatch.setattr(contexts, "ancestry", wrong)
    target, draft = tiny(3, 0, 2), tiny(3, 1, 1)
    assert law_variation(law(target, TreeDrafter(draft, (2, 1)), 3), right_law(target, 3)) > 1e-4


def test_one_round_of_a_tree_by_chance():
    """A G-test with N = 400,000 on the first two tokens of a round, and a control that must fail."""
    n, generator = 400_000, torch.Generator().manual_seed(11)
    draw = seeded(5)
    p = torch.rand(4, 3, generator=generator, dtype=torch.float64)  # after the text, and after each first token
    q = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    first = draw(q[0].expand(n, -1))
    rest = q[0].repeat(n, 1).scatter(1, first[:, None], 0)
    rest = rest / rest.sum(-1, keepdim=True)
    second = draw(rest)
    below = draw(q[1 + first])  # a child of the first sibling
    drafted, told = torch.stack([first, second, below], 1), torch.stack([q[0].expand(n, -1), rest, q[1 + first]], 1)
    seen = torch.stack([p[0].expand(n, -1), p[1 + first], p[1 + second], p[1 + below]], 1)
    expected = (p[0][:, None] * p[1:]).flatten()
    for rule, fails in ((tree_law, False), (never_updated, True)):
        verdict = rule(seen, told, drafted, [-1, -1, 0])
        stop = draw(verdict.stop_probs)
        token = draw(verdict.next_probs[torch.arange(n), stop])
        start = torch.where(stop == 0, token, torch.where(stop == 2, second, first))
        following = torch.where(stop == 3, below, torch.where(stop == 0, draw(p[1 + token]), token))
        counts = torch.bincount(start * 3 + following, minlength=9).double()
        assert (g_test(counts.numpy(), expected.numpy()).p_value < SIGNIFICANCE) == fails


def test_on_a_chain_the_tree_rule_is_the_token_rule():
    p, q = (torch.rand(6, n, 5, dtype=torch.float64).softmax(-1) for n in (4, 3))
    drafted = torch.randint(5, (6, 3))
    chain, tree = token_law(p, q, drafted), tree_law(p, q, drafted, [-1, 0, 1])
    assert torch.allclose(chain.stop_probs, tree.stop_probs, atol=1e-15) and torch.allclose(chain.next_probs, tree.next_probs, atol=1e-15)


def test_what_cannot_be():
    draft = tiny(3, 1, 1)
    for make in (lambda: TreeDrafter(draft, ()), lambda: TreeDrafter(draft, (0,)), lambda: TreeDrafter(draft, (2,), budget=3), lambda: EnsembleDrafter([])):
        with pytest.raises(InvalidArgument):
            make()
    with pytest.raises(InvalidArgument, match="token rule"):
        generate(tiny(3, 0, 2), [PROMPT], TreeDrafter(draft), rule="block")
