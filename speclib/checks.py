"""What an exercise is told. Each check takes the reader's function, prints one verdict and never raises.

"not done yet" while the stub returns `...`; what differs, in words that teach; or "correct".
"""

from collections.abc import Callable, Iterable
from typing import Any


def _verdict(function: Callable, cases: Iterable[tuple[tuple, Callable[[Any], str | None]]], praise: str) -> None:
    """Runs `function` on each case's arguments; the case says what is wrong with the answer, or None if nothing is."""
    for arguments, complaint in cases:
        try:
            answer = function(*arguments)
        except Exception as error:
            print(f"{function.__name__} raised {type(error).__name__}: {error}")
            return
        if answer is ...:
            print("not done yet: replace the ... and run this cell again")
            return
        try:
            wrong = complaint(answer)
        except Exception as error:
            wrong = f"returned {answer!r}, which could not be compared ({type(error).__name__}: {error})"
        if wrong:
            print(f"not yet: {wrong}")
            return
    print(f"correct: {praise}")


def _law(wanted: list[float], why: str) -> Callable[[Any], str | None]:
    """A complaint about a list of probabilities that is not `wanted`."""

    def complaint(answer):
        values = [float(v) for v in answer]
        close = len(values) == len(wanted) and all(abs(a - b) < 1e-9 for a, b in zip(values, wanted, strict=True))
        return None if close else f"expected {[round(v, 4) for v in wanted]}, got {[round(v, 4) for v in values]}: {why}"

    return complaint


def _number(wanted: float, why: str) -> Callable[[Any], str | None]:
    """A complaint about a number that is not `wanted`."""
    return lambda answer: None if abs(float(answer) - wanted) < 1e-9 else f"expected {wanted:.6g}, got {float(answer):.6g}: {why}"


# --- notebook 03 -------------------------------------------------------------------------------------------------------


def my_residual(function: Callable) -> None:
    """norm(max(p - q, 0)), with its limit."""
    cases = [
        (([0.4, 0.3, 0.15, 0.15], [0.2, 0.45, 0.05, 0.3]), _law([2 / 3, 0, 1 / 3, 0], "clip p - q at 0, then divide by the sum")),
        (([1.0, 0.0], [0.0, 1.0]), _law([1.0, 0.0], "disjoint supports leave all of p")),
        (([0.5, 0.5], [0.5, 0.5]), _law([0.5, 0.5], "where p and q agree the sum is 0 and the limit is p")),
    ]
    _verdict(function, cases, "after a rejection the text continues from here")


def threshold_law(function: Callable) -> None:
    """The law of the rule that accepts iff q <= p."""
    cases = [
        (([0.5, 0.5], [0.8, 0.2]), _law([0.0, 1.0], "drafts of token 0 are always rejected, and the residual holds only token 1")),
        (([0.5, 0.3, 0.2], [0.5, 0.4, 0.1]), _law([0.5, 0.0, 0.5], "token 0 is kept (0.5 <= 0.5), token 1 never, and all of its mass moves to token 2")),
    ]
    _verdict(function, cases, "the rule is biased: it starves the tokens that the draft overrates")


def tokens_per_round(function: Callable) -> None:
    """1 + a + ... + a^gamma."""
    cases = [
        ((0.0, 3), _number(1.0, "with no guess accepted a round still yields the target's own token")),
        ((0.5, 2), _number(1.75, "1 + 0.5 + 0.25")),
        ((1.0, 4), _number(5.0, "all guesses and the bonus token")),
    ]
    _verdict(function, cases, "Leviathan et al., equation 1")


# --- notebook 00 -------------------------------------------------------------------------------------------------------


def per_round(function: Callable) -> None:
    """Tokens over target forwards."""
    cases = [((96, 96), _number(1.0, "plain decoding yields one token a pass")), ((96, 40), _number(2.4, "tokens over passes"))]
    _verdict(function, cases, "also called block efficiency")


def fewest_passes(function: Callable) -> None:
    """tokens / (gamma + 1), rounded up."""
    cases = [
        ((96, 0), _number(96, "without guesses every token is a pass")),
        ((96, 5), _number(16, "each pass yields its guesses and one token of the target's own")),
        ((96, 4), _number(20, "the last, shorter round is a pass too: round up")),
    ]
    _verdict(function, cases, "no guesser, however good, gets below that")


def share(function: Callable) -> None:
    """Accepted over proposed, over all rounds."""
    cases = [
        (([(4, 4)],), _number(1.0, "all four passed")),
        (([(4, 2), (4, 0)],), _number(0.25, "two of eight")),
        (([(4, 4), (1, 0)],), _number(0.8, "four of five: sum over rounds before dividing")),
    ]
    _verdict(function, cases, "not to be mixed up with alpha, the mean acceptance probability of a position")


# --- notebook 05 -------------------------------------------------------------------------------------------------------


def acceptance_probability(function: Callable) -> None:
    """sum(min(p, q))."""
    cases = [
        (([0.5, 0.3, 0.2], [0.5, 0.3, 0.2]), _number(1.0, "equal distributions accept every draft")),
        (([1.0, 0.0], [0.0, 1.0]), _number(0.0, "what the target never says is never accepted")),
        (([0.4, 0.3, 0.3], [0.2, 0.7, 0.1]), _number(0.6, "a token is drafted with q(x) and kept with min(1, p(x)/q(x)): add up the products")),
    ]
    _verdict(function, cases, "the area that p and q share, which is 1 - TV")


def predicted_speedup(function: Callable) -> None:
    """Tokens per round over the cost of a round."""
    cases = [
        ((0.5, 0, 0.1, 1.0), _number(1.0, "without guesses a round is plain decoding")),
        ((1.0, 4, 0.0, 1.0), _number(5.0, "perfect and free guesses bring gamma + 1; mind the division by 1 - alpha")),
        ((0.5, 2, 0.1, 1.05), _number(1.4, "1.75 tokens in a round that costs 2 x 0.1 for drafts and 1.05 for the check")),
    ]
    _verdict(function, cases, "a speed-up is tokens per round over the cost of a round")


def better_draft(function: Callable) -> None:
    """The index of the draft of the greatest speed-up, each with the gamma that suits it best; None if none pays."""

    def chosen(wanted: int | None, why: str) -> Callable[[Any], str | None]:
        return lambda answer: None if answer == wanted else f"expected {wanted}, got {answer!r}: {why}"

    cases = [
        (([(0.6, 0.05), (0.7, 0.05)],), chosen(1, "at the same cost the more similar draft wins")),
        (([(0.6, 0.05), (0.7, 0.4)],), chosen(0, "0.7 is not worth eight times the cost")),
        (([(0.2, 0.3), (0.5, 0.6)],), chosen(None, "neither alpha exceeds its c: plain decoding is faster")),
    ]
    _verdict(function, cases, "similarity is not speed: what counts is similarity per cost")


# --- notebook 02 -------------------------------------------------------------------------------------------------------


def _same(wanted: Any, why: str) -> Callable[[Any], str | None]:
    """A complaint about anything that is not `wanted`."""
    return lambda answer: None if answer == wanted else f"expected {wanted!r}, got {answer!r}: {why}"


def round_adds(function: Callable) -> None:
    """The agreeing guesses and one token of the target's own."""
    cases = [
        (([5, 6, 7], [5, 6, 7, 8]), _same([5, 6, 7, 8], "all guesses right, and the target's token after them")),
        (([5, 6, 7], [5, 9, 7, 8]), _same([5, 9], "the second guess is wrong; the third was checked behind a wrong token and counts for nothing")),
        (([], [3]), _same([3], "without guesses a round is plain decoding")),
    ]
    _verdict(function, cases, "never less than one token a round")


def repaired_claim(function: Callable) -> None:
    """(n + 1) T(1) / T(n + 1)."""
    flat, rising = {1: 10.0, 2: 10.0, 4: 10.0}, {1: 10.0, 2: 12.0, 4: 20.0}
    cases = [((3, flat), _number(4.0, "if width costs nothing the claim is right")), ((3, rising), _number(2.0, "four tokens in 20 ms against 10 ms each"))]
    _verdict(function, cases, "the claim holds only where the width curve is flat")


def wasted(function: Callable) -> None:
    """Positions computed and not kept."""
    cases = [(([(4, 4)],), _number(0, "nothing was wrong")), (([(4, 1), (4, 0), (2, 2)],), _number(7, "3 + 4 + 0"))]
    _verdict(function, cases, "on a busy machine this work is not free: notebook 11 comes back to it")


def what_followed(function: Callable) -> None:
    """The tokens behind the latest earlier occurrence of the last token."""
    cases = [
        (([1, 2, 3, 1], 2), _same([2, 3], "1 stood at the beginning, and 2, 3 followed")),
        (([1, 2, 1, 3, 1], 1), _same([3], "of two earlier occurrences the latest counts")),
        (([5, 5], 3), _same([5], "a slice past the end is short, and that is fine")),
        (([1, 2, 3], 4), _same([], "3 was never seen before: no guess; the last token itself is no earlier occurrence")),
    ]
    _verdict(function, cases, "a search engine in four lines; draft_and_check takes it as it is")


# --- notebook 04 -------------------------------------------------------------------------------------------------------


def my_alpha(function: Callable) -> None:
    """sum(min(p, q))."""
    cases = [
        (([0.5, 0.5], [0.5, 0.5]), _number(1.0, "equal distributions always agree")),
        (([1.0, 0.0], [0.0, 1.0]), _number(0.0, "disjoint ones never do")),
        (([0.4, 0.3, 0.3], [0.2, 0.5, 0.3]), _number(0.8, "0.2 + 0.3 + 0.3")),
    ]
    _verdict(function, cases, "one minus the total variation")


def resampled_law(function: Callable) -> None:
    """min(p, q) + P(rejection) p."""
    cases = [
        (([0.5, 0.5], [0.5, 0.5]), _law([0.5, 0.5], "nothing is rejected")),
        (([0.8, 0.2], [0.4, 0.6]), _law([0.4 + 0.4 * 0.8, 0.2 + 0.4 * 0.2], "token 1 is kept with 0.2, all that p gives it, and then comes once more after rejections")),
    ]
    _verdict(function, cases, "what was kept often comes once more: the law leans towards the draft")


def my_g(function: Callable) -> None:
    """2 sum c log(c / (n p))."""
    cases = [
        (([50, 50], [0.5, 0.5]), _number(0.0, "counts as expected")),
        (([60, 40], [0.5, 0.5]), _number(4.027102710137775, "2 (60 log 1.2 + 40 log 0.8)")),
        (([100, 0], [0.5, 0.5]), _number(138.62943611198907, "an empty cell adds nothing; the other has twice its share")),
    ]
    _verdict(function, cases, "chi-square distributed under equality, with one degree of freedom less than cells")


# --- notebook 01 -------------------------------------------------------------------------------------------------------


def most_tokens_per_second(function: Callable) -> None:
    """bandwidth / (parameters size)."""
    cases = [((7e9, 2, 3.5e12), _number(250.0, "14 GB at 3.5 TB/s")), ((1e9, 4, 40e9), _number(10.0, "4 GB at 40 GB/s"))]
    _verdict(function, cases, "faster than this needs more than one token a forward")


def ridge_width(function: Callable) -> None:
    """size operations / (2 bandwidth)."""
    cases = [((2, 3.35e12, 990e12), _number(990 / 3.35, "a large GPU in half precision: about 300 tokens")), ((4, 40e9, 200e9), _number(10.0, "4 bytes, 5 operations a byte"))]
    _verdict(function, cases, "up to there, further tokens are nearly free")


def uncached_positions(function: Callable) -> None:
    """prompt + (prompt + 1) + ..."""
    cases = [((100, 1), _number(100, "one token: the prompt once")), ((100, 3), _number(303, "100 + 101 + 102"))]
    _verdict(function, cases, "with a cache it would be prompt + new - 1")


# --- notebook 10 -------------------------------------------------------------------------------------------------------


def first_token(function: Callable) -> None:
    """decoder_start if there is one, else pad."""
    cases = [
        ((2, 1), _same(2, "the decoder start token, if the model names one")),
        ((None, 1), _same(1, "T5's custom: without one, the padding token")),
        ((0, 5), _same(0, "0 is a token like any other, and not the same as None")),
    ]
    _verdict(function, cases, "the source never stands at the beginning of the answer")


def caches_after(function: Callable) -> None:
    """(own + 1 + accepted, cross)."""
    cases = [
        ((10, 30, 4, 4), _same((15, 30), "the newest token and four guesses were read, and all of them stay")),
        ((10, 30, 4, 1), _same((12, 30), "the newest token and one guess stay; the source has nothing to do with guesses")),
        ((0, 30, 0, 0), _same((1, 30), "a plain round reads one token")),
    ]
    _verdict(function, cases, "the token that the round drew is read in the next one")


def whole_speedup(function: Callable) -> None:
    """(E + N) / (E + N / tau cost)."""
    cases = [
        ((0, 40, 4.0, 1.0), _number(4.0, "without an encoder it is the decoder's own speed-up")),
        ((40, 40, 4.0, 1.0), _number(1.6, "80 steps against 40 + 10")),
        ((5, 30, 3.0, 1.5), _number(1.75, "35 steps against 5 + 10 rounds of 1.5")),
    ]
    _verdict(function, cases, "what is not sped up sets the limit (Amdahl's law)")


# --- notebook 07 -------------------------------------------------------------------------------------------------------


def round_row(function: Callable) -> None:
    """Symmetric round-to-nearest with one scale."""
    cases = [
        (([1.27, -0.634, 0.0], 8), _law([1.27, -0.63, 0.0], "the step is the largest size over 127; every entry goes to the nearest multiple")),
        (([0.9, -0.3, 0.1], 2), _law([0.9, 0.0, 0.0], "with 2 bits only -1, 0 and 1 times the largest size are left")),
        (([3.0, 1.4, -1.6], 3), _law([3.0, 1.0, -2.0], "with 3 bits the largest whole number is 3")),
    ]
    _verdict(function, cases, "an 8-bit copy of a matrix is these whole numbers and one scale a row")


def layer_skip_speedup(function: Callable) -> None:
    """Expected tokens over gamma k / N + 1."""
    cases = [
        ((0.8, 2, 6, 24), _number(2.44 / 1.5, "1 + 0.8 + 0.64 tokens; two guesses of a quarter each, and one check")),
        ((1.0, 3, 24, 24), _number(1.0, "all layers: always right, and nothing gained")),
        ((0.0, 4, 6, 24), _number(0.5, "never right: one token for the price of two")),
    ]
    _verdict(function, cases, "half of the layers can never give more than a factor of two")


def heads_tokens(function: Callable) -> None:
    """1 + b1 + b1 b2 + ..."""
    cases = [
        (([0.5],), _number(1.5, "one guess: 1 + b1")),
        (([0.8, 0.5, 0.25],), _number(2.3, "1 + 0.8 + 0.4 + 0.1: a guess counts only behind the accepted ones")),
        (([0.9, 0.0, 0.9],), _number(1.9, "nothing counts behind a head that is never right")),
    ]
    _verdict(function, cases, "`theory.expected_tokens_from_positions` does the same")


# --- notebook 99 -------------------------------------------------------------------------------------------------------


def accepted_share(function: Callable) -> None:
    """(a + a^2) / 2 at gamma 2."""
    cases = [((0.8,), _number(0.72, "(0.8 + 0.64) / 2: the second guess counts only behind an accepted first")), ((1.0,), _number(1.0, "all accepted"))]
    _verdict(function, cases, "lower than alpha, though it speaks of the same draft")


def pays(function: Callable) -> None:
    """alpha > c."""
    cases = [((0.5, 0.1), _same(True, "more acceptance than cost")), ((0.1, 0.2), _same(False, "less acceptance than cost")), ((0.3, 0.3), _same(False, "at equality nothing is won"))]
    _verdict(function, cases, "Leviathan et al., corollary 3.9")


def chens_residual(function: Callable) -> None:
    """norm((q - p)+), with Chen's letters."""
    cases = [(([0.9, 0.1], [0.5, 0.5]), _law([0.0, 1.0], "their q is the target: what it has above the draft")), (([0.2, 0.4, 0.4], [0.4, 0.5, 0.1]), _law([2 / 3, 1 / 3, 0.0], "0.2 and 0.1"))]
    _verdict(function, cases, "the same residual, other letters")


# --- notebook 06 -------------------------------------------------------------------------------------------------------


def best_gamma(function: Callable) -> None:
    """The draft length of the greatest predicted speed-up."""
    flat, bumpy = {n: 1.0 for n in range(1, 10)}, {1: 1.0, 2: 1.4, 3: 1.4, 4: 1.4, 5: 1.1, 6: 1.5}
    cases = [
        ((0.8, 0.1, flat), _same(6, "with a flat width curve, divide the sum of powers by gamma * c + 1")),
        ((0.5, 0.05, bumpy), _same(4, "five tokens are cheaper to check than four here: use the price of gamma + 1 tokens")),
        ((0.1, 0.5, flat), _same(0, "where alpha is below c, plain decoding is best")),
    ]
    _verdict(function, cases, "and near the optimum one more or less hardly matters")


def oracle_speed(function: Callable) -> None:
    """Tokens per plain step of an oracle that stops before the first rejection."""
    prices = {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3}
    cases = [
        (([0, 0], 0.1, prices), _number(1.0, "nothing passes: plain decoding")),
        (([3], 0.1, prices), _number(4 / 1.6, "four tokens for three guesses and one check of four tokens")),
        (([0, 3, 1], 0.1, prices), _number(7 / (1.0 + 1.6 + 1.2), "sum the tokens, sum the time, divide once")),
    ]
    _verdict(function, cases, "no plan can do better on these rounds")


def next_length(function: Callable) -> None:
    """The heuristic schedule."""
    cases = [
        ((5, 5, 5, 16), _same(7, "all passed: two more")), ((5, 5, 4, 16), _same(4, "one failed: one fewer")),
        ((1, 1, 0, 16), _same(1, "never below 1")), ((15, 15, 15, 16), _same(16, "never above most")),
    ]  # fmt: skip
    _verdict(function, cases, "a few lines that cost nothing")


# --- notebook 08 -------------------------------------------------------------------------------------------------------


def longest_match(function: Callable) -> None:
    """The length of the longest end of a text, up to `most` tokens, that occurred before."""
    cases = [
        (([1, 2, 3, 1, 2], 4), _same(2, "1, 2 stood at the beginning; 3, 1, 2 never before")),
        (([1, 2, 3], 4), _same(0, "3 was never seen before; the end itself is no earlier occurrence")),
        (([5, 5, 5, 5], 4), _same(3, "5, 5, 5 ended one token earlier: an occurrence may overlap the end")),
        (([5, 5, 5, 5], 2), _same(2, "at most `most` tokens")),
    ]
    _verdict(function, cases, "the longer the match, the safer the guess")


def witten_bell(function: Callable) -> None:
    """(counts + m shorter) / (N + m)."""
    cases = [
        (([3, 1, 0, 0], [0.25, 0.25, 0.25, 0.25]), _law([3.5 / 6, 1.5 / 6, 0.5 / 6, 0.5 / 6], "N = 4 and m = 2: the shorter context weighs 2 / 6")),
        (([0, 0], [0.3, 0.7]), _law([0.3, 0.7], "a context that was never seen leaves all to the shorter one; mind the division by 0")),
        (([5, 0], [0.5, 0.5]), _law([5.5 / 6, 0.5 / 6], "N = 5 and m = 1: a context that is always followed by one token is trusted more")),
    ]
    _verdict(function, cases, "a distribution, with nothing to tune")


def most_followed(function: Callable) -> None:
    """The most frequent first token, then the most frequent second one among those that agree, and so on."""
    cases = [
        (([[1, 2], [1, 3], [1, 3], [4, 3]],), _same([1, 3], "1 is the most frequent; behind it comes 3 twice and 2 once")),
        (([[1, 2], [1, 3], [4, 5], [4, 5], [1, 6], [1, 6]],), _same([1, 6], "4, 5 never comes up: 1 wins the first vote")),
        (([[7, 7, 7]],), _same([7, 7, 7], "one occurrence decides alone")),
    ]
    _verdict(function, cases, "REST's idea, as a chain; notebook 09 makes trees of such branches")


# --- notebook 09 -------------------------------------------------------------------------------------------------------


def sibling_law(function: Callable) -> None:
    """What the next sibling is drawn from, without replacement."""
    cases = [
        (([0.5, 0.3, 0.2], []), _law([0.5, 0.3, 0.2], "the first sibling is drawn from q itself")),
        (([0.5, 0.3, 0.2], [0]), _law([0.0, 0.6, 0.4], "leave out what was drawn, and divide by the rest")),
        (([0.4, 0.3, 0.2, 0.1], [0, 3]), _law([0.0, 0.6, 0.4, 0.0], "leave out all elder siblings")),
    ]
    _verdict(function, cases, "and that is what the rule must be told")


def way_down(function: Callable) -> None:
    """The nodes from the first guess to one of them."""
    parents = [-1, -1, 0, 0, 2]
    cases = [
        ((parents, 4), _same([0, 2, 4], "4 follows 2, which follows 0")),
        ((parents, 1), _same([1], "a first guess is its own path")),
        ((parents, -1), _same([], "-1 is the text: no guess at all")),
    ]
    _verdict(function, cases, "these stay in the cache")


def tree_size(function: Callable) -> None:
    """The number of nodes of a tree."""
    cases = [
        (((1, 1, 1),), _same(3, "a chain of three")),
        (((3, 2, 1),), _same(15, "3, then 6, then 6 again")),
        (((4,),), _same(4, "four siblings")),
    ]
    _verdict(function, cases, "the width of the check is one more")
