"""Several drafts: the linear program against what is known by hand, and the block rule on several paths by
enumeration.
"""

from itertools import chain, combinations, product

import numpy as np
import pytest
import torch
from tables import disjoint_tables

from speclib.errors import InvalidArgument
from speclib.law.distributions import overlap
from speclib.law.exact import expected_accepted, max_difference, plain_law, random_table
from speclib.law.rules import block_law, tree_law
from speclib.law.several import best_acceptance, draft_tuples, paths_law


def laws(seed, vocabulary=4, zeros=0.2):
    return (random_table(vocabulary, seed + side, zeros=zeros)(()).numpy() for side in (0, 1000))


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_tuples_are_a_law_with_q_as_the_law_of_each_draft(n, replacement):
    _, q = laws(3)
    drafts = draft_tuples(q, n, replacement)
    assert sum(drafts.values()) == pytest.approx(1, abs=1e-12)
    firsts = np.bincount([drawn[0] for drawn in drafts], list(drafts.values()), len(q))
    assert np.allclose(firsts, q, rtol=0, atol=1e-12)
    assert replacement or all(len(set(drawn)) == len(drawn) for drawn in drafts)


def test_more_drafts_than_tokens_are_all_the_tokens():
    assert draft_tuples([0.5, 0.5, 0.0], 3, False) == {(0, 1): 0.5, (1, 0): 0.5}


def least_cut(p, q, n):
    """The same optimum by max-flow min-cut: the least, over sets A of tokens, of p(A) + 1 - q(A)^n."""
    sets = chain.from_iterable(combinations(range(len(p)), size) for size in range(len(p) + 1))
    return min(p[list(a)].sum() + 1 - q[list(a)].sum() ** n for a in sets)


@pytest.mark.parametrize("seed", range(12))
def test_the_program_finds_the_least_cut(seed):
    p, q = laws(seed, vocabulary=2 + seed % 4)
    for n in (1, 2, 3):
        assert best_acceptance(p, draft_tuples(q, n)) == pytest.approx(least_cut(p, q, n), abs=1e-9)
    single = overlap(torch.tensor(p), torch.tensor(q)).item()
    assert best_acceptance(p, draft_tuples(q, 1)) == pytest.approx(single, abs=1e-9)


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("seed", range(12))
def test_no_rule_keeps_more_than_the_program(seed, replacement):
    p, q = (torch.tensor(law) for law in laws(seed))
    drafts = draft_tuples(q, 2, replacement)
    kept = 0.0
    for drawn, mass in drafts.items():
        rows = torch.stack([q] * len(drawn))
        if not replacement and len(drawn) == 2:
            rows[1, drawn[0]] = 0
            rows[1] /= rows[1].sum()
        same = p.expand(1, len(drawn) + 1, -1)
        verdict = tree_law(same, rows[None], torch.tensor([drawn]), [-1] * len(drawn))
        kept += mass * (1 - float(verdict.stop_probs[0, 0]))
    assert kept <= best_acceptance(p, drafts) + 1e-9


def test_a_program_too_large_says_so():
    with pytest.raises(InvalidArgument, match="fewer"):
        best_acceptance(np.full(30, 1 / 30), draft_tuples(np.full(30, 1 / 30), 3))


def every_draft(target, draft, n, paths):
    """All that the draft can draw: p, q, drafted and the probability of each, for `paths_law`."""
    ways = list(product(range(draft.vocabulary), repeat=n))
    chances = [float(np.prod([draft(way[:i])[way[i]] for i in range(n)])) for way in ways]
    drawn = [k for k, chance in enumerate(chances) if chance > 0]
    found = list(product(drawn, repeat=paths))
    prefixes = [[ways[k][:i] for k in several for i in range(n + 1)] for several in found]
    p = torch.stack([torch.stack([target(()), *(target(x) for x in row if x)]) for row in prefixes])
    q = torch.stack([torch.stack([draft(x) for x in row if len(x) < n]) for row in prefixes])
    drafted = torch.tensor([[token for k in several for token in ways[k]] for several in found])
    return p, q, drafted, torch.tensor([np.prod([chances[k] for k in several]) for several in found])


def text_law(target, p, q, drafted, weights, paths, length):
    """The law of a first round's text, continued by the target alone."""
    n = drafted.shape[1] // paths
    verdict, law = paths_law(p, q, drafted, paths), {}
    places = [(), *((path, kept) for path in range(paths) for kept in range(1, n + 1))]
    for row, weight in enumerate(weights.tolist()):
        for place, at in enumerate(places):
            kept = drafted[row, at[0] * n : at[0] * n + at[1]].tolist() if at else []
            for token in range(target.vocabulary):
                text = (*kept, token)
                mass = weight * float(verdict.stop_probs[row, place] * verdict.next_probs[row, place, token])
                law[text] = law.get(text, 0.0) + mass
    for size in range(1, length):
        for text in [text for text in law if len(text) == size]:
            mass = law.pop(text)
            for token, chance in enumerate(target(text).tolist()):
                law[(*text, token)] = law.get((*text, token), 0.0) + mass * chance
    return law


PAIRS = {
    "random": lambda: (random_table(3, 1), random_table(3, 2)),
    "zeros": lambda: (random_table(3, 5, zeros=0.4), random_table(3, 6, zeros=0.4)),
    "equal": lambda: (random_table(3, 1), random_table(3, 1)),
    "disjoint": lambda: disjoint_tables(3, 4),
    "point masses": lambda: (random_table(3, 7, point_masses=0.5), random_table(3, 8, point_masses=0.5)),
}


@pytest.mark.parametrize(("n", "paths"), [(1, 1), (3, 1), (1, 3), (2, 2), (3, 2)])
@pytest.mark.parametrize("kind", PAIRS)
def test_several_paths_keep_the_law_and_no_fewer_guesses(kind, n, paths):
    target, draft = PAIRS[kind]()
    p, q, drafted, weights = every_draft(target, draft, n, paths)
    law = text_law(target, p, q, drafted, weights, paths, n + 1)
    assert max_difference(law, plain_law(target, n + 1)) < 1e-12
    far = torch.tensor([0, *(list(range(1, n + 1)) * paths)], dtype=torch.float64)
    kept = float(weights @ (paths_law(p, q, drafted, paths).stop_probs @ far))
    assert kept >= expected_accepted("block", target, draft, n) - 1e-12
    if kind == "random" and paths > 1:
        assert kept > expected_accepted("block", target, draft, n) + 0.02


def test_one_path_is_the_block_rule_to_the_bit():
    p, q, drafted, _ = every_draft(*PAIRS["random"](), 3, 1)
    one, block = paths_law(p, q, drafted, 1), block_law(p, q, drafted)
    assert torch.equal(one.stop_probs, block.stop_probs) and torch.equal(one.next_probs, block.next_probs)
