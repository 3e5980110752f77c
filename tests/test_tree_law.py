"""The rule for trees, by enumeration: every tree that can be drawn, and every way through it, sums to the target's own
law.
"""

from functools import cache
from itertools import product

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from speclib import LanguageModel, generate
from speclib.drafters import Draft, Drafter, Session
from speclib.errors import InvalidArgument
from speclib.law.distributions import point_mass
from speclib.law.exact import TableModel, law_variation, max_difference, outcomes, plain_law, random_table
from speclib.law.rules import token_law, tree_law
from speclib.museum import siblings_apart_law

LENGTH = 3  # longer than most branches, so that what follows a branch is tested too

SHAPES = {
    "chain": [-1, 0],
    "two": [-1, -1],
    "three": [-1, -1, -1],
    "two with one below each": [-1, -1, 0, 1],
    "one above two": [-1, 0, 0],
    "uneven": [-1, 0, -1, 2, 2],
}


def random_parents(seed, n=5):
    generator = torch.Generator().manual_seed(seed)
    return [int(torch.randint(-1, child, (1,), generator=generator)) if child else -1 for child in range(n)]


TREES = SHAPES | {f"random {seed}": random_parents(seed) for seed in range(6)}


def line(parents, node):
    """The nodes from the text down to `node`, itself left out."""
    above = []
    while (node := parents[node]) >= 0:
        above.append(node)
    return above[::-1]


# How a child is drawn, given the draft's row after its parent and the tokens of its elder siblings -> its distribution,
# or None: there is no such child.


def with_replacement(rows, elder):
    return rows[0]


def without_replacement(rows, elder):
    left = rows[0].clone()
    left[elder] = 0
    return left / left.sum() if left.sum() > 1e-9 else None


def most_likely(rows, elder):
    """The best tokens one after the other, without chance."""
    left = rows[0].clone()
    left[elder] = -1
    return point_mass(left.argmax(), len(left), torch.float64)


def in_turn(rows, elder):
    """Each sibling from a draft of its own: an ensemble."""
    return rows[len(elder) % 2]


def mixed(rows, elder):
    """First the best token of one draft, then draws from another."""
    return most_likely(rows, elder) if not elder else rows[1]


WAYS = {way.__name__: way for way in (with_replacement, without_replacement, most_likely, in_turn, mixed)}


def drawn_trees(way, drafts, parents):
    """Every tree that can be drawn: [(tokens, q rows, probability)]."""
    trees = [([], [], 1.0)]
    for node, parent in enumerate(parents):
        more = []
        for tokens, rows, mass in trees:
            prefix = [tokens[i] for i in line(parents, node)]
            elder = [tokens[i] for i in range(node) if parents[i] == parent]
            q = way([draft(prefix) for draft in drafts], elder)
            for token in q.nonzero().flatten().tolist():
                more.append(([*tokens, token], [*rows, q], mass * float(q[token])))
        trees = more
    return trees


@cache
def models(kind, vocabulary):
    seed, zeros = {"full": (1, 0.0), "zeros": (2, 0.35)}[kind]
    return tuple(random_table(vocabulary, 10 * seed + i, zeros=zeros) for i in range(3))


def text_law(law, way, target, drafts, parents, told=None):
    """The law of LENGTH tokens or more after one round with a tree, and the target's own tokens after it.

    told: what the rule is told in place of the distributions that the tree was drawn from.
    """
    vocabulary = target.vocabulary
    trees = drawn_trees(way, drafts, parents)
    tokens = torch.tensor([t for t, _, _ in trees])  # [B, n]
    q = torch.stack([torch.stack(rows) for _, rows, _ in trees])  # [B, n, V]
    paths = [[*line(parents, node), node] for node in range(len(parents))]
    # [B, n+1, V]
    p = torch.stack([torch.stack([target([]), *(target([t[i] for i in path]) for path in paths)]) for t, _, _ in trees])
    verdict = law(p, q if told is None else told(q, tokens), tokens, parents)
    assert verdict.stop_probs.shape == (len(trees), len(parents) + 1) and verdict.stop_probs.min() >= 0
    assert (verdict.stop_probs.sum(-1) - 1).abs().max() < 1e-12 and (verdict.next_probs.sum(-1) - 1).abs().max() < 1e-12
    # [B, n+1, V]
    mass = (
        verdict.stop_probs[..., None]
        * verdict.next_probs
        * torch.tensor([m for _, _, m in trees], dtype=torch.float64)[:, None, None]
    )
    texts = {}
    for tree, place, token in product(range(len(trees)), range(len(parents) + 1), range(vocabulary)):
        text = (*(int(tokens[tree, i]) for i in ([] if place == 0 else paths[place - 1])), token)
        texts[text] = texts.get(text, 0.0) + float(mass[tree, place, token])
    finished = {}
    for text, weight in texts.items():
        rest = (
            {(): 1.0}
            if len(text) >= LENGTH
            else plain_law(
                TableModel(vocabulary, lambda suffix, text=text: target((*text, *suffix)).numpy()), LENGTH - len(text)
            )
        )
        for suffix, probability in rest.items():
            whole = (*text, *suffix)[:LENGTH]
            finished[whole] = finished.get(whole, 0.0) + weight * probability
    return finished


@pytest.mark.parametrize("kind", ["full", "zeros"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tree", TREES)
def test_a_round_with_a_tree_keeps_the_law(tree, way, kind):
    parents = TREES[tree]
    most = max(parents.count(parent) for parent in parents)
    if way == "without_replacement" and (kind == "zeros" or most > 3):
        vocabulary, kind = 4, "full"  # there must be a token left for every sibling
    else:
        vocabulary = 3 if len(parents) < 5 else 2
    if way in ("most_likely", "mixed", "without_replacement"):
        vocabulary = max(vocabulary, most)
    target, *drafts = models(kind, vocabulary)
    law = text_law(tree_law, WAYS[way], target, drafts, parents)
    assert max_difference(law, plain_law(target, LENGTH)) < 1e-12


@pytest.mark.parametrize("n", [1, 2, 5])
def test_on_a_chain_it_is_the_token_rule(n):
    generator = torch.Generator().manual_seed(n)
    p, q = (
        torch.rand(50, n + 1, 4, generator=generator).double() ** 3,
        torch.rand(50, n, 4, generator=generator).double() ** 3,
    )
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    drafted = torch.multinomial(q.reshape(-1, 4), 1, generator=generator).reshape(50, n)
    before = [tensor.clone() for tensor in (p, q, drafted)]
    tree, chain = tree_law(p, q, drafted, list(range(-1, n - 1))), token_law(p, q, drafted)
    assert (tree.stop_probs - chain.stop_probs).abs().max() < 1e-12 and (
        tree.next_probs - chain.next_probs
    ).abs().max() < 1e-12
    assert all(torch.equal(a, b) for a, b in zip(before, (p, q, drafted), strict=True))


def test_two_siblings_by_hand():
    """p = (.5, .3, .2). First child 0 with q = (.8, .1, .1): taken with .5 / .8. Left: (0, .2, .1) / .3. Second child
    1, without chance: taken with 2/3.
    """
    p = torch.tensor([[[0.5, 0.3, 0.2]] * 3], dtype=torch.float64)
    q = torch.tensor([[[0.8, 0.1, 0.1], [0.0, 1.0, 0.0]]], dtype=torch.float64)
    verdict = tree_law(p, q, torch.tensor([[0, 1]]), [-1, -1])
    assert verdict.stop_probs[0].tolist() == pytest.approx([0.375 / 3, 0.625, 0.25])
    assert verdict.next_probs[0, 0].tolist() == pytest.approx([0, 0, 1])


def test_more_siblings_are_taken_more_often():
    """What trees are for: the probability that some first guess is taken grows with their number, most of all without
    replacement.
    """

    def taken(way, count):
        target, *drafts = models("full", 4)
        parents = [-1] * count
        total = 0.0
        for tokens, rows, mass in drawn_trees(WAYS[way], drafts, parents):
            verdict = tree_law(
                target([])[None, None].expand(1, count + 1, 4), torch.stack(rows)[None], torch.tensor([tokens]), parents
            )
            total += mass * float(1 - verdict.stop_probs[0, 0])
        return total

    alone, again, other = taken("with_replacement", 1), taken("with_replacement", 3), taken("without_replacement", 3)
    assert alone == pytest.approx(taken("without_replacement", 1)) and alone + 0.01 < again < other - 0.01


# --- generate() with trees
# ------------------------------------------------------------------------------------------------------


class Twigs(Drafter, Session):
    """The least guesser that grows trees: at each of two first places the draft's two best tokens, or two draws; below
    the second one more.
    """

    grows_trees = True

    def __init__(self, way, draft):
        self.way, self.draft = way, draft

    def start(self, context, sampling, draw):
        self.draw = draw
        return self

    def prepare(self, text):
        pass

    def propose(self, text, n, goes_on):
        parents = [-1, -1, 1][: 3 if n > 1 else 2]
        tokens, rows = [], []
        for node, parent in enumerate(parents):
            prefix = [*text, *(tokens[i] for i in line(parents, node))]
            rows.append(self.way([self.draft(prefix)], [tokens[i] for i in range(node) if parents[i] == parent]))
            tokens.append(int(self.draw(rows[-1])))
        return Draft(torch.tensor(tokens), torch.stack(rows), parents)


@cache
def tiny(backend):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=3,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LanguageModel(LlamaForCausalLM(config).double().eval(), backend=backend)


@pytest.mark.parametrize("stop", [[], [2]], ids=["no stop", "stop"])
@pytest.mark.parametrize("way", ["without_replacement", "most_likely"])
@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_generate_with_trees_keeps_the_law(backend, way, stop):
    """Tree attention, the branch that is kept, the rule and the stops together: every path of generate(), summed."""
    target, prompt = tiny(backend), [0, 1]
    drafter = Twigs(WAYS[way], random_table(3, 5))

    def row(prefix):
        with torch.inference_mode():
            return tiny("eager").model(torch.tensor([[*prompt, *prefix]])).logits[0, -1].softmax(-1).numpy()

    right = plain_law(TableModel(3, row), 3, eos=stop[0] if stop else None)
    law = outcomes(
        lambda draw: tuple(generate(target, [prompt], drafter, None, 2, "token", 3, stop, draw=draw).tokens[0].tolist())
    )
    # the fast decoder has its rotary tables and norms in another precision than transformers
    tolerance = 1e-12 if backend == "eager" else 1e-6
    assert max_difference(law, right) < tolerance
    assert (
        sum(law.values()) == pytest.approx(1, abs=1e-12)
        and law_variation(right, plain_law(random_table(3, 5), 3)) > 0.05
    )


def test_the_token_rule_alone_checks_trees():
    with pytest.raises(InvalidArgument, match="a tree of guesses is checked by the token rule"):
        generate(tiny("eager"), [[0]], Twigs(most_likely, random_table(3, 5)), rule="block")


# --- controls: what is wrong is seen
# -------------------------------------------------------------------------------------------


def test_a_residual_that_is_not_updated_is_seen():
    target, *drafts = models("full", 4)
    for way in ("with_replacement", "without_replacement", "in_turn"):
        assert (
            law_variation(text_law(siblings_apart_law, WAYS[way], target, drafts, [-1, -1]), plain_law(target, LENGTH))
            > 1e-3
        )
        only_child = text_law(siblings_apart_law, WAYS[way], target, drafts, [-1, 0])
        # without siblings there is nothing wrong with it
        assert max_difference(only_child, plain_law(target, LENGTH)) < 1e-12


def test_another_q_than_was_drawn_from_is_seen():
    """Drawn without replacement and told with it; the most likely tokens, said to be drawn by chance."""
    target, *drafts = models("full", 4)
    right = plain_law(target, LENGTH)
    row = drafts[0]([])
    for way in ("without_replacement", "most_likely"):
        wrong = text_law(tree_law, WAYS[way], target, drafts, [-1, -1], lambda q, tokens: row.expand_as(q))
        assert law_variation(wrong, right) > 1e-3


def test_a_point_mass_is_always_a_safe_thing_to_say():
    """Wherever a guess comes from, given the guess it is certain: the law is kept, though fewer are taken."""
    target, *drafts = models("full", 4)
    for way in WAYS.values():
        law = text_law(
            tree_law, way, target, drafts, [-1, -1, 0], lambda q, tokens: point_mass(tokens, 4, torch.float64)
        )
        assert max_difference(law, plain_law(target, LENGTH)) < 1e-12
