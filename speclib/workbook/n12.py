"""Notebook 12, the engine: what a forward waits for on each backend, and the price of one fixed width."""

from .common import MARKERS, TARGET, exercise, plt, tight, width_prices

PARTS = {"memory": (TARGET, ""), "products beyond that": ("#7fb8d9", ".."), "overhead": ("white", "//")}


def waits(table) -> plt.Figure:
    """Milliseconds of a token by what it waits for: a row an engine, columns as in PARTS."""
    figure, axis = plt.subplots(figsize=(9, 0.6 * len(table) + 1.4))
    left = [0.0] * len(table)
    for part, (colour, hatch) in PARTS.items():
        axis.barh(table.index, table[part], left=left, color=colour, hatch=hatch, edgecolor="black", label=part)
        left = [a + b for a, b in zip(left, table[part], strict=True)]
    axis.invert_yaxis()
    axis.set(xlabel="ms of a forward over one token")
    axis.legend(fontsize=9, loc="lower right")
    return tight(figure)


def dtypes(curves) -> plt.Figure:
    """Milliseconds of a fast forward against its tokens: a column a dtype, the index tokens."""
    figure, axis = plt.subplots(figsize=(8, 3.8))
    for marker, name in zip(MARKERS, curves, strict=False):
        axis.plot(curves.index, curves[name], marker + "-", label=name)
    axis.set(xlabel="tokens in one forward", ylabel="ms", ylim=(0, None))
    axis.legend(fontsize=9)
    return tight(figure)


def _rates(r) -> tuple:
    """Some ways to decode, plain ones among them: (method, backend, dtype, tokens/s)."""
    ways = [(m, b, d) for m in ("plain", "eagle", "lookup") for b in ("eager", "fast") for d in ("float32", "bfloat16")]
    taken = r.sample(ways, r.randint(3, 12))
    if all(m == "plain" for m, _, _ in taken) or all(m != "plain" for m, _, _ in taken):
        taken = [("plain", "fast", "bfloat16"), ("eagle", "eager", "float32")]
    return ([(*way, round(r.uniform(20, 300), 1)) for way in taken],)


@exercise(
    "the best over the best, whatever each runs on",
    [
        (([("plain", "fast", "float32", 100.0), ("eagle", "fast", "float32", 180.0)],), "one engine: 180 / 100"),
        (
            (
                [
                    ("plain", "eager", "float32", 50.0),
                    ("plain", "fast", "bfloat16", 120.0),
                    ("eagle", "eager", "float32", 110.0),
                ],
            ),
            "2.2 on its own backend; over the best plain decoding it loses",
        ),
        (
            (
                [
                    ("eagle", "eager", "float32", 90.0),
                    ("plain", "fast", "float32", 100.0),
                    ("lookup", "fast", "bfloat16", 150.0),
                ],
            ),
            "the fastest guesser counts, not the first",
        ),
    ],
    _rates,
)
def honest_headline(rates):
    """The fastest speculative decoding over the fastest plain decoding."""
    plain = max(rate for method, _, _, rate in rates if method == "plain")
    return max(rate for method, _, _, rate in rates if method != "plain") / plain


def _shares(r) -> tuple:
    whole = round(r.uniform(2, 40), 1)
    products = round(whole * r.random(), 2)
    return round(r.uniform(20, 400), 1), round(r.uniform(5, 60), 1), products, whole


@exercise(
    "three shares that add up to one",
    [
        ((80.0, 20.0, 6.0, 10.0), "80 MB at 20 GB/s are 4 ms: .4, .2, .4"),
        ((80.0, 20.0, 4.0, 10.0), "the products wait for memory and nothing else: .4, 0, .6"),
        ((80.0, 20.0, 3.0, 10.0), "products quicker than memory lie in a cache: .3, 0, .7"),
    ],
    _shares,
)
def wait_shares(megabytes, gigabytes_per_second, products_ms, whole_ms):
    """Shares of a token: memory, products beyond it, overhead."""
    memory = min(products_ms, megabytes / gigabytes_per_second)
    return [part / whole_ms for part in (memory, products_ms - memory, whole_ms - products_ms)]


def _fixed(r) -> tuple:
    T = width_prices(r)
    return T, r.randint(1, 15), round(r.uniform(1, 5), 2), round(r.uniform(0, 0.4), 2)


@exercise(
    "what identity to the bit costs each of the two",
    [
        (({1: 1.0, 4: 1.2, 5: 1.3}, 3, 2.4, 0.0), "plain 1 / 1.2; speculative 2.4 / 1.2: the ratio is 2.4"),
        (({1: 1.0, 4: 1.2, 5: 1.3}, 3, 2.4, 0.1), "a round of three guesses costs 0.3 + 1.2"),
        (({4: 2.0, 1: 1.0, 2: 1.1}, 1, 1.7, 0.2), "one guess: both read two tokens, T(2) = 1.1"),
    ],
    _fixed,
)
def at_fixed_width(T, gamma, tokens_per_round, c):
    """Tokens per ordinary plain step, plain and speculative, when every forward reads gamma + 1 tokens."""
    width = T[gamma + 1] / T[1]
    return [1 / width, tokens_per_round / (gamma * c + width)]
