"""Wrong guessers, and wrong checks of trees: an honest guesser of `drafters` with one part replaced, in `generate` as
it stands. `exact.outcomes` sums its law.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..drafters.base import Draft, Drafter
from ..law.distributions import Draw, Sampling, residual
from ..law.rules import Rule, Verdict, drafted_probs, find, named, token_law
from ..loop.processors import Places


def unchanged(part):
    """What an honest guesser does to its draft, and an honest forward to the tree it is told of: nothing."""
    return part


@dataclass(frozen=True, kw_only=True)
class GuesserExhibit:
    """A guesser of `generate` with one part broken: `generate(target, prompt, exhibit.around(drafter),
    rule=exhibit.rule)`.

    where: as for Exhibit; what: the mistake and its effect; needs: which guessers show it. The parts, each honest
    unless given: draws: takes the place of chance in the guesser alone; hands: what becomes of its draft on the way to
    the check; reads: the parents of a tree that the target's forward is told (None: a chain); places: what becomes of
    the logits processors' places before the first round; rule: what checks.
    """

    name: str
    where: str
    what: str
    needs: str
    draws: Draw | None = None
    hands: Callable[[Draft], Draft] = unchanged
    reads: Callable[[Sequence[int] | None], Sequence[int] | None] = unchanged
    places: Callable[[Places], None] = unchanged
    rule: Rule = find("token")

    def around(self, drafter: Drafter) -> Drafter:
        """The same guesser with this mistake."""
        return Mistaken(self, drafter)


class Mistaken(Drafter):
    """A drafter with an exhibit's parts in place of its own."""

    def __init__(self, exhibit: GuesserExhibit, drafter: Drafter):
        self.exhibit, self.drafter = exhibit, drafter
        self.grows_trees = drafter.grows_trees

    def models(self):
        return self.drafter.models()

    def start(self, context, sampling: Sampling, draw: Draw):
        exhibit = self.exhibit
        exhibit.places(getattr(sampling, "places", None))
        session = self.drafter.start(context, sampling, exhibit.draws or draw)
        drafting, extend = session.drafting, context.extend

        def handed(*arguments):
            return exhibit.hands((yield from drafting(*arguments)))

        session.drafting = handed
        context.extend = lambda tokens, keep=None, parents=None: extend(tokens, keep, exhibit.reads(parents))
        return session


def favourite(probabilities: Tensor) -> Tensor:
    """Not a draw: the most probable token. [..., V] -> [...]"""
    return probabilities.argmax(-1)


def evenly(draft: Draft) -> Draft:
    """Says that each guess was drawn from all tokens evenly."""
    return replace(draft, probs=torch.full_like(draft.probs, 1 / draft.probs.shape[-1]))


def reversed_rows(draft: Draft) -> Draft:
    """Hands the last guess's distribution over with the first guess, and so on."""
    return replace(draft, probs=draft.probs.flip(0))


def eldest_rows(draft: Draft) -> Draft:
    """Hands over with each guess of a tree the distribution of its eldest sibling, as if none had been taken out of
    it.
    """
    return replace(draft, probs=draft.probs[[draft.parents.index(parent) for parent in draft.parents]])


def unlikely_dropped(draft: Draft) -> Draft:
    """Throws guesses away whose own q is below 0.45."""
    own = draft.probs.gather(-1, draft.tokens[:, None])[:, 0]
    return without_some(draft, own < 0.45)


def duplicates_dropped(draft: Draft) -> Draft:
    """Throws a guess away that an elder sibling has made already."""
    places = list(zip(draft.parents, draft.tokens.tolist(), strict=True))
    return without_some(draft, torch.tensor([place in places[:node] for node, place in enumerate(places)]))


def without_some(draft: Draft, dropped: Tensor) -> Draft:
    """A draft without the guesses marked in `dropped` [n], and without all that follows those."""
    chain = draft.parents is None
    place = {-1: -1}  # guess -> where it stands among those that stay
    for node, parent in enumerate(range(-1, len(dropped) - 1) if chain else draft.parents):
        if parent in place and not dropped[node]:
            place[node] = len(place) - 1
    nodes = list(place)[1:]
    return replace(
        draft,
        tokens=draft.tokens[nodes],
        probs=draft.probs[nodes],
        parents=None if chain else [place[draft.parents[node]] for node in nodes],
    )


def siblings_apart_law(p: Tensor, q: Tensor, drafted: Tensor, parents: Sequence[int]) -> Verdict:
    """`rules.tree_law`, except that each sibling is tried against the whole of p, as if the ones before it had not been
    rejected.
    """
    given = drafted_probs(q, drafted)  # [B, n]
    left = list(p.unbind(1))
    reached = [torch.ones_like(p[:, 0, 0])]
    missed = [torch.ones_like(p[:, 0, 0]) for _ in range(len(parents) + 1)]
    for child, parent in enumerate(parents):
        node = parent + 1
        accept = (p[:, node].gather(-1, drafted[:, child, None])[:, 0] / given[:, child]).clamp(max=1)
        reached.append(reached[node] * missed[node] * accept)
        missed[node] = missed[node] * (1 - accept)
        left[node] = residual(p[:, node], q[:, child])
    return Verdict(torch.stack(reached, 1) * torch.stack(missed, 1), torch.stack(left, 1))


SIBLINGS_APART = Rule("siblings apart", token_law, False, "rules.tree_law, broken", siblings_apart_law)

CONTROL = "a control in this library's tests"  # not met elsewhere

GUESSERS: dict[str, GuesserExhibit] = named(
    GuesserExhibit(
        name="looks back",
        where="public code",
        what="throws a guess away because its own q turned out low, or cuts such branches off a tree: the choice "
        "depends on the draw, so the text does",
        needs="guesses that are drawn",
        hands=unlikely_dropped,
    ),
    GuesserExhibit(
        name="favourite as drawn",
        where="a shipped library",
        what="takes the likeliest token and says it was drawn from q: that token comes too often",
        needs="guesses that are drawn",
        draws=favourite,
    ),
    GuesserExhibit(
        name="copied as drawn",
        where=CONTROL,
        what="says of a copied token that it was drawn evenly: what is copied comes too often",
        needs="guesses without chance, such as lookup",
        hands=evenly,
    ),
    GuesserExhibit(
        name="another head's q",
        where=CONTROL,
        what="hands over each guess with another head's distribution: each test compares the target with the "
        "wrong guess",
        needs="a chain of two or more",
        hands=reversed_rows,
    ),
    GuesserExhibit(
        name="siblings apart",
        where=CONTROL,
        what="tries each sibling against the whole of p: what the rejected ones took out of it comes once more",
        needs="a tree",
        rule=SIBLINGS_APART,
    ),
    GuesserExhibit(
        name="with replacement",
        where=CONTROL,
        what="draws siblings without replacement and says with: a second guess passes less often than it was "
        "proposed for",
        needs="a tree drawn without replacement",
        hands=eldest_rows,
    ),
    GuesserExhibit(
        name="duplicates dropped",
        where=CONTROL,
        what="leaves out what another oracle has guessed already: that both drew the same is not made up for",
        needs="a tree drawn with replacement, such as an ensemble's",
        hands=duplicates_dropped,
    ),
    GuesserExhibit(
        name="tree read as a chain",
        where=CONTROL,
        what="forgets the mask and the positions of the tree: a guess sees its siblings, and the target judges "
        "another text",
        needs="a tree",
        reads=lambda parents: None,
    ),
)
