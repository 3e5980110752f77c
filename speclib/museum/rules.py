"""Wrong rules, and wrong rows: the honest loop of `exact.Loop` with one part replaced, over models that are tables.

The part is the rule, what the loop makes of the target's rows, or what the drafter says about itself.
`exact.rule_law(exhibit, ...)` sums an exhibit's law, `exact.sample_many(exhibit, ...)` draws from it, and `exhibit.run`
is the loop to step through.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..law.distributions import Sampling, point_mass, residual
from ..law.exact import Loop, TableModel, TextLaw, plain_law, warped
from ..law.rules import Rule, Verdict, chain_stops, drafted_probs, named, ratios

PLAIN = Sampling()
NUCLEUS = Sampling(top_p=0.8)
COOL = Sampling(temperature=0.5)
TOP_TWO = Sampling(top_k=2)


@dataclass(frozen=True, kw_only=True)
class Exhibit(Loop):
    """A broken loop. where: in what sort of place it was met; what: the mistake and its effect; sampling: the settings
    the user asked for, which a right loop would have followed."""

    name: str
    where: str
    what: str
    sampling: Sampling = PLAIN

    def right_law(self, target: TableModel, length: int, eos: int | None = None) -> TextLaw:
        """The law of the text that the user asked for: plain decoding under `sampling`."""
        return plain_law(warped(target, by(self.sampling)), length, eos)


def by(sampling: Sampling) -> Callable[[Tensor], Tensor]:
    """The settings as a filter of probabilities, [..., V] -> [..., V]."""
    return lambda p: sampling.probabilities(p.log())


def filtered(sampling: Sampling) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """A drafter that follows the settings and says so."""
    return lambda q: (by(sampling)(q),) * 2


def accepts(p: Tensor, q: Tensor, drafted: Tensor) -> Tensor:
    """The acceptance probabilities of the right rule, min(1, p(x) / q(x)). [B, n]"""
    return ratios(p, q, drafted).clamp(max=1)


def residuals(p: Tensor, q: Tensor) -> Tensor:
    """The right law after each place to stop: the residual, and p itself after the last. [B, n+1, V]"""
    return torch.cat([residual(p[:, :-1], q), p[:, -1:]], 1)


def without(p: Tensor, drafted: Tensor) -> Tensor:
    """p without the drafted token, made to sum to 1 again. [B, n, V]"""
    rest = p.scatter(-1, drafted[..., None], 0.0)
    mass = rest.sum(-1, keepdim=True)
    return torch.where(mass > 0, rest / mass, p)


# --- one that is not wrong, though it looks it


def match_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """Draw from the target and keep the draft while the two are the same token. Lossless on a chain, and accepts
    less.
    """
    n = drafted.shape[1]
    made = drafted_probs(q, drafted) > 0
    others = torch.where(made[..., None], without(p[:, :n], drafted), p[:, :n])
    same = torch.where(made, drafted_probs(p[:, :n], drafted), 0.0)
    return Verdict(chain_stops(same), torch.cat([others, p[:, n:]], 1))


MATCH = Rule("match", match_law, True, "sample and match; engines that do not use the draft's probabilities")


# --- wrong rules


def threshold_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """Accept iff q(x) <= p(x), without chance."""
    n = drafted.shape[1]
    accept = (drafted_probs(q, drafted) <= drafted_probs(p[:, :n], drafted)).to(p.dtype)
    return Verdict(chain_stops(accept), residuals(p, q))


def resample_from_p_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """After a rejection draw from p, as if the rejected draft had said nothing."""
    return Verdict(chain_stops(accepts(p, q, drafted)), p)


def all_accepted_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """The test for "all passed" looks at positions and not at decisions, so it is always true."""
    return Verdict(chain_stops(torch.ones_like(accepts(p, q, drafted))), p)


def argmax_bonus_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """The token after a fully accepted draft is the target's favourite, not a draw."""
    favourite = point_mass(p[:, -1:].argmax(-1), p.shape[-1], p.dtype)
    return Verdict(chain_stops(accepts(p, q, drafted)), torch.cat([residuals(p, q)[:, :-1], favourite], 1))


def squared_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """Accept with probability min(1, p / q) squared."""
    return Verdict(chain_stops(accepts(p, q, drafted) ** 2), residuals(p, q))


def reseeded_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """All tests of a round use the same random number u: k pass when u is below each of the first k ratios."""
    start = p.new_ones(len(p), 1)
    # P(u < every ratio so far), and not the product
    reached = torch.cat([start, accepts(p, q, drafted)], 1).cummin(1).values
    return Verdict(reached - torch.cat([reached[:, 1:], 0 * start], 1), residuals(p, q))


def shared_noise_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """One random number u a position, for all three: x = F_q^-1(u) is drafted, kept if u < ratio, else replaced by
    F_r^-1(u).
    """
    n = drafted.shape[1]
    chance, ratio, rest = drafted_probs(q, drafted), accepts(p, q, drafted), residual(p[:, :n], q)
    high = drafted_probs(q.cumsum(-1), drafted)  # x is drafted when low <= u < high
    low = high - chance
    kept = (torch.minimum(high, ratio) - low).clamp_min(0)
    begin = torch.maximum(low, ratio)[..., None]  # and then rejected when begin <= u < high
    ends = rest.cumsum(-1)
    hit = (torch.minimum(ends, high[..., None]) - torch.maximum(ends - rest, begin)).clamp_min(0)
    mass = hit.sum(-1, keepdim=True)
    recovered = torch.where(mass > 0, hit / mass, rest)
    accept = torch.where(chance > 0, kept / chance, 0.0).clamp(max=1)
    return Verdict(chain_stops(accept), torch.cat([recovered, p[:, n:]], 1))


def reused_noise_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """The exponential noise E that drafted argmax q / E draws from the residual r after a rejection, as argmax r / E.

    Given that x won with E(x) / q(x) = t, the others wait for t and then run freshly (no memory): token y enters the
    second race at t q(y) / r(y) and goes at rate r(y). Over t, which is exponential, the integral is rational.
    """
    n = drafted.shape[1]
    rest = residual(p[:, :n], q)
    begin, order = torch.where(rest > 0, q / rest, torch.inf).sort(-1)
    rate = rest.gather(-1, order).cumsum(-1)  # of all that have entered the race
    head_start = torch.where(rest > 0, q, 0.0).gather(-1, order).cumsum(-1)
    end = torch.cat([begin[..., 1:], torch.full_like(begin[..., :1], torch.inf)], -1)
    stretch = (1 / (1 + rate * begin - head_start) - 1 / (1 + rate * end - head_start)) / rate
    wins = stretch.flip(-1).cumsum(-1).flip(-1)  # from each token's entry on
    recovered = rest * torch.zeros_like(rest).scatter(-1, order, wins)
    return Verdict(chain_stops(accepts(p, q, drafted)), torch.cat([recovered, p[:, n:]], 1))


def coarse_noise_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """Accept iff r <= ratio, with r a multiple of 1/256 (a uniform in bfloat16): r = 0 accepts what the target
    forbids.
    """
    return Verdict(chain_stops((((256 * accepts(p, q, drafted)).floor() + 1) / 256).clamp(max=1)), residuals(p, q))


def dropped_draft_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """A drafted token whose own q is below 0.2 is thrown away, and the target's next token takes its place."""
    n = drafted.shape[1]
    dropped = drafted_probs(q, drafted) < 0.2
    accept = torch.where(dropped, 0.0, accepts(p, q, drafted))
    after = torch.where(dropped[..., None], p[:, :n], residual(p[:, :n], q))
    return Verdict(chain_stops(accept), torch.cat([after, p[:, n:]], 1))


def branches_apart_law(p: Tensor, q: Tensor, drafted: Tensor) -> Verdict:
    """Two branches leave the root: the drafted chain, and one more token from q. Each is matched against a draw of its
    own.
    """
    verdict = match_law(p, q, drafted)
    if not drafted.shape[1]:
        return verdict
    second = p[:, 0] * q[:, 0]  # the other branch's token, matched by the second draw
    neither = 1 - second.sum(-1, keepdim=True)
    root = second + neither * verdict.next_probs[:, 0]
    return Verdict(verdict.stop_probs, torch.cat([root[:, None], verdict.next_probs[:, 1:]], 1))


# --- wrong rows


def short_nucleus(p: Tensor) -> Tensor:
    """The smallest set of total at least 0.8, less the token that crosses the line."""
    ordered, order = p.sort(-1, descending=True)
    keep = ordered.cumsum(-1) <= NUCLEUS.top_p
    keep[..., 0] = True
    kept = p * torch.zeros_like(keep).scatter(-1, order, keep)
    return kept / kept.sum(-1, keepdim=True)


def raw_last_row(p: Tensor) -> Tensor:
    """The temperature reaches every row but the last."""
    return torch.cat([by(COOL)(p[..., :-1, :]), p[..., -1:, :]], -2)


EXHIBITS: dict[str, Exhibit] = named(
    Exhibit(
        name="threshold",
        where="articles that explain the rule",
        what="accepts exactly when q <= p: mass moves to the tokens that the draft underrates",
        law=threshold_law,
    ),
    Exhibit(
        name="argmax draft",
        where="a shipped library",
        what="drafts the favourite and tells the rule it was drawn from q: the draft's favourite comes too often",
        proposes=lambda q: (point_mass(q.argmax(-1), q.shape[-1], q.dtype), q),
    ),
    Exhibit(
        name="one-sided top-k",
        where="public code",
        what="draws the draft from its top 2 and uses the unfiltered q in the ratio: the top 2 come too often",
        proposes=lambda q: (by(TOP_TWO)(q), q),
    ),
    Exhibit(
        name="resample from p",
        where="public code",
        what="draws from p and not from the residual after a rejection: what was accepted often comes once more",
        law=resample_from_p_law,
    ),
    Exhibit(
        name="all accepted",
        where="public code",
        what="tests positions where it should test decisions: every draft passes and the text is the draft's",
        law=all_accepted_law,
    ),
    Exhibit(
        name="argmax bonus",
        where="public code",
        what="takes the target's favourite after a fully accepted draft: a longer text hides it for gamma tokens",
        law=argmax_bonus_law,
    ),
    Exhibit(
        name="reseeded",
        where="public code",
        what="reseeds the generator in the acceptance loop: the first token is right, later ones share its number",
        law=reseeded_law,
    ),
    Exhibit(
        name="shared noise",
        where="a production engine",
        what="draft, acceptance and recovery share one random number: the rule's three chances are no longer "
        "independent",
        law=shared_noise_law,
    ),
    Exhibit(
        name="reused noise",
        where="production engines, met in 2026",
        what="draws from the residual with the noise that made the draft: what it underrates most comes too often",
        law=reused_noise_law,
    ),
    Exhibit(
        name="short nucleus",
        where="public code",
        what="drops the token that crosses the line of top-p: less than the nucleus is left",
        sampling=NUCLEUS,
        sees=short_nucleus,
        proposes=filtered(NUCLEUS),
    ),
    Exhibit(
        name="r <= ratio",
        where="public code",
        what="accepts when r equals the ratio: a token of probability 0 passes whenever r is 0 (here r has 8 bits)",
        sampling=TOP_TWO,
        law=coarse_noise_law,
        sees=by(TOP_TWO),
        proposes=filtered(TOP_TWO),
    ),
    Exhibit(
        name="squared ratio",
        where="a mutation that passes a shipped test (KL below 0.01)",
        what="accepts with probability (p / q)^2: mass moves to the tokens that the draft underrates",
        law=squared_law,
    ),
    Exhibit(
        name="branches apart",
        where="public code for trees",
        what="draws from the target in each branch: what the draft proposes gets a second chance",
        law=branches_apart_law,
    ),
    Exhibit(
        name="dropped draft",
        where="public code",
        what="throws a drafted token away because its own q is low: the choice depends on the token, so the text does",
        law=dropped_draft_law,
    ),
    Exhibit(
        name="raw bonus",
        where="public code",
        what="forgets the temperature on the bonus row: every (gamma + 1)th token of an accepted run is too random",
        sampling=COOL,
        sees=raw_last_row,
        proposes=filtered(COOL),
    ),
)
