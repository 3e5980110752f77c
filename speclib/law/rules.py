"""Verification rules. Each is a probability law, not a procedure that draws.

Given the target's probabilities p, the draft's q and the tokens drafted from q, a rule returns where verification stops
and which token comes next, as probabilities. `decoding` draws from that law; `exact` sums over it. What is proved is
therefore the very code that decodes.

A chain of n drafted tokens has n + 1 places to stop: after 0, 1, ..., n accepted tokens. A tree has as many: the text
and each of its n nodes. A guess not made (a shorter row of a batch) has a row of zeros in q: nothing is accepted where
q(x) = 0.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgument
from .distributions import Draw, entropy, residual


@dataclass(frozen=True)
class Verdict:
    """The law of one round. stop_probs [B, n+1]: k tokens are accepted with probability stop_probs[:, k]; next_probs
    [B, n+1, V]: the law of the next token, given that k were."""

    stop_probs: Tensor
    next_probs: Tensor

    def draw(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Where verification stops, and the token that follows there: [B], [B]."""
        stop = draw(self.stop_probs)
        places = stop[:, None, None].expand(-1, 1, self.next_probs.shape[-1])  # [B, 1, V]
        return stop, draw(self.next_probs.gather(1, places)[:, 0])


Law = Callable[[Tensor, Tensor, Tensor], Verdict]
TreeLaw = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Verdict]


@dataclass(frozen=True)
class Rule:
    """A named law: (p [B, n+1, V], q [B, n, V], drafted [B, n]) -> Verdict. `lossless` says whether text keeps its law.

    tree: the same for trees, with each guess's parent as a fourth argument, or None: the rule checks chains only.
    """

    name: str
    law: Law
    lossless: bool
    source: str
    tree: TreeLaw | None = None

    def verdict(self, p: Tensor, q: Tensor, drafted: Tensor, parents: Sequence[int] | None = None) -> Verdict:
        """The law of one round: of a chain, or of the tree that `parents` makes of the guesses. Raises InvalidArgument
        if the rule checks no trees.
        """
        if parents is None:
            return self.law(p, q, drafted)
        if self.tree is None:
            raise InvalidArgument(f"the rule {self.name!r} checks chains of guesses, not trees; use rule='token'")
        return self.tree(p, q, drafted, parents)


def chain_stops(accept: Tensor) -> Tensor:
    """Acceptance probability of each draft, given that all before it passed [B, n] -> stop_probs [B, n+1]."""
    ones = accept.new_ones(accept.shape[0], 1)
    reached = torch.cat([ones, accept.cumprod(-1)], -1)  # [B, n+1]: the first k drafts passed
    rejected = torch.cat([ones - accept, ones], -1)  # [B, n+1]: the next one does not, or there is none
    return reached * rejected


def drafted_probs(probs: Tensor, drafted: Tensor) -> Tensor:
    """The probability each row of `probs` [B, n, V] gives to its own drafted token [B, n] -> [B, n]."""
    return probs.gather(-1, drafted.unsqueeze(-1)).squeeze(-1)


def ratios(p: Tensor, q: Tensor, drafted: Tensor) -> Tensor:
    """p(x) / q(x) of each drafted token, and 0 for a guess that was not made. p [B, n+1, V], q [B, n, V] -> [B, n]"""
    given = drafted_probs(q, drafted)
    return torch.where(given > 0, drafted_probs(p[:, : drafted.shape[1]], drafted) / given, 0.0)


def token_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """Accept x with probability min(1, p(x) / q(x)), one token after the other; then draw from the residual.

    Leviathan et al. (2211.17192), algorithm 1; Chen et al. (2302.01318), algorithm 2. At temperature 0 every row is a
    point mass, and the rule becomes "accept while the draft is the target's argmax". When all pass, the bonus token is
    drawn from p's last row.
    """
    n = drafted.shape[1]
    ratio = ratios(p, q, drafted)
    return Verdict(chain_stops(ratio.clamp(max=1)), torch.cat([residual(p[:, :n], q), p[:, n:]], 1))


def tree_law(p: Tensor, q: Tensor, drafted: Tensor, parents: Sequence[int]) -> Verdict:
    """The token rule on a tree of guesses. Node i was drawn from q[:, i] and follows node parents[i] < i, or the text
    (-1).

    p: [B, n+1, V], first after the text, then after each node. The children of a node are tried in order: each against
    what the ones before it have left of p, by the token rule. Children may be drawn with or without replacement, as
    long as q says so; a guess without chance is a point mass. Multi-round speculative sampling: SpecInfer (2305.09781),
    algorithm 2; without replacement: Jeon et al. (2402.14160). On a chain it is `token_law`.
    """
    n = drafted.shape[1]
    given = drafted_probs(q, drafted)  # [B, n]
    left = list(p.unbind(1))  # what the children tried so far leave of the target's law
    reached = [torch.ones_like(p[:, 0, 0])]  # node -> probability that verification comes there
    missed = [torch.ones_like(p[:, 0, 0]) for _ in range(n + 1)]  # and that none of its children tried so far was taken
    for child, parent in enumerate(parents):
        node = parent + 1
        accept = (left[node].gather(-1, drafted[:, child, None])[:, 0] / given[:, child]).clamp(max=1)
        accept = torch.where(given[:, child] > 0, accept, 0.0)
        reached.append(reached[node] * missed[node] * accept)
        missed[node] = missed[node] * (1 - accept)
        left[node] = residual(left[node], q[:, child])
    return Verdict(torch.stack(reached, 1) * torch.stack(missed, 1), torch.stack(left, 1))


def block_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """Judge the drafted block as a whole: never fewer accepted tokens than token by token, on average.

    Sun et al. (2403.10444), algorithm 2. With weight w_0 = 1 and w_i = min(1, w_{i-1} p(x_i) / q(x_i)), the block is
    kept up to the *last* i that passes its own test of probability h_i, and the residual is norm(max(w_i p - q, 0)).
    """
    n = drafted.shape[1]
    ratio = ratios(p, q, drafted)
    weights = [torch.ones_like(p[:, 0, 0])]
    for i in range(n):
        weights.append((weights[-1] * ratio[:, i]).clamp(max=1))
    w = torch.stack(weights, 1)  # [B, n+1]
    excess = (w[:, :n, None] * p[:, :n] - q).clamp_min(0)  # [B, n, V]
    mass = excess.sum(-1)  # [B, n]
    room = mass + (1 - w[:, :n])  # in this order: (mass + 1) - w rounds below mass, and mass / room above 1
    # room is 0 only where w = 1 and p = q: stopping there or going on gives the same text; go on
    passes = torch.cat([torch.where(room > 0, mass / room, 0.0), w[:, n:]], 1)  # h_i, and h_n = w_n
    passes = torch.cat([torch.ones_like(passes[:, :1]), passes[:, 1:]], 1)  # keeping nothing always passes
    none_after = torch.cat([(1 - passes[:, 1:]).flip(1).cumprod(1).flip(1), torch.ones_like(passes[:, :1])], 1)
    law = torch.where(mass[..., None] > 0, excess / mass[..., None], p[:, :n])
    return Verdict(passes * none_after, torch.cat([law, p[:, n:]], 1))


def typical_law(p: Tensor, q: Tensor, drafted: Tensor, epsilon: float = 0.09, delta: float = 0.3) -> Verdict:
    """LOSSY. Keep a draft if the target finds it typical: p(x) > min(epsilon, delta exp(-H(p))).

    Typical acceptance, Medusa (2401.10774), section 2.3. No chance is involved, and of q only whether a guess was made:
    text comes out more probable than the target's own.
    """
    n = drafted.shape[1]
    threshold = (delta * (-entropy(p[:, :n])).exp()).clamp(max=epsilon)  # [B, n]
    kept = ((drafted_probs(p[:, :n], drafted) > threshold) & (drafted_probs(q, drafted) > 0)).to(p.dtype)
    return Verdict(chain_stops(kept), p)


def lenience_law(p: Tensor, q: Tensor, drafted: Tensor, lenience: float = 0.5) -> Verdict:
    """LOSSY. Accept with probability min(1, p(x) / (l q(x))): no token becomes more than 1/l times as probable.

    Leviathan et al., appendix A.5. At lenience l = 1 it is `token_law`.
    """
    if not 0 < lenience <= 1:
        raise InvalidArgument(f"lenience must be above 0 and at most 1, not {lenience!r}")
    n = drafted.shape[1]
    ratio = ratios(p, q, drafted) / lenience
    return Verdict(chain_stops(ratio.clamp(max=1)), torch.cat([residual(p[:, :n], lenience * q), p[:, n:]], 1))


def ensemble_law(p: Tensor, q: Tensor, drafted: Tensor, weight: float = 0.5) -> Verdict:
    """LOSSY. Test drafted places against weight p + (1 - weight) q; the bonus token is p's own.

    DIVERSE (2604.07622); `assistant_ensemble_weight` of transformers. A token that a guess was made for follows the
    mixture, every other one follows p: the law of the text depends on gamma. At weight 1 it is `token_law`.
    """
    if not 0 < weight <= 1:
        raise InvalidArgument(f"weight must be above 0 and at most 1, not {weight!r}")
    n, made = drafted.shape[1], drafted_probs(q, drafted) > 0
    accept = torch.where(made, (1 - weight + weight * ratios(p, q, drafted)).clamp(max=1), 0.0)
    return Verdict(chain_stops(accept), torch.cat([residual(p[:, :n], q), p[:, n:]], 1))


def named(*things) -> dict:
    """A table of things that have a `name`, by it, in the order given."""
    return {thing.name: thing for thing in things}


RULES = named(
    Rule(
        "token",
        token_law,
        True,
        "Leviathan et al. 2211.17192, algorithm 1; Chen et al. 2302.01318, algorithm 2",
        tree_law,
    ),
    Rule("block", block_law, True, "Sun et al. 2403.10444, algorithm 2"),
    Rule("typical", typical_law, False, "Medusa 2401.10774, section 2.3"),
    Rule("lenience", lenience_law, False, "Leviathan et al. 2211.17192, appendix A.5"),
    Rule("ensemble", ensemble_law, False, "DIVERSE 2604.07622"),
)


def find(rule: str | Rule) -> Rule:
    """The rule of that name; a Rule of your own passes through. Raises InvalidArgument with the names there are."""
    if isinstance(rule, Rule):
        return rule
    if rule not in RULES:
        raise InvalidArgument(
            f"no rule is called {rule!r}; choose one of {', '.join(RULES)}, or pass a speclib.rules.Rule"
        )
    return RULES[rule]
