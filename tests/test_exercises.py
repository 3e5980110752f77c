"""Every exercise of every notebook: the stub is told "not done yet", right answers of many kinds "correct", plausible
wrong ones neither. Nothing raises, hangs, or escapes.
"""

import ast
import math
import random
import re
import sys
import threading
import time
from collections import Counter
from copy import deepcopy
from functools import cache, partial
from importlib import import_module
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from notebooks import build
from speclib.law import rules, several, theory
from speclib.law.distributions import overlap, residual
from speclib.workbook import common, n03, n04b, n05

EXERCISES = {
    exercise.check.split(".")[1].split("(")[0]: (entry, exercise)
    for entry in build.present()
    for exercise in build.exercises(build.read(build.FOLDER / entry.file))
}


@cache
def imported(entry) -> dict:
    """The names that a notebook's imports cell gives."""
    (imports,) = build.tagged(build.read(build.FOLDER / entry.file), "imports")
    names = {}
    exec(imports.source, names)
    return names


def check_of(name: str):
    return getattr(import_module(f"speclib.workbook.n{EXERCISES[name][0].number}"), name)


def told(check, answer, capsys) -> str:
    capsys.readouterr()
    check(answer)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", EXERCISES)
def test_the_stub_and_the_solution(name, monkeypatch, capsys):
    entry, exercise = EXERCISES[name]
    matplotlib.use("agg")
    monkeypatch.chdir(build.FOLDER)
    names = dict(imported(entry))
    for source, verdict in ((exercise.stub, "not done yet"), (exercise.solution, "correct")):
        exec(source, names)
        capsys.readouterr()
        exec(exercise.check, names)
        assert capsys.readouterr().out.startswith(verdict)


# --- wrong and right answers -----------------------------------------------------------------------------------------

pairwise = partial(zip, strict=False)


def rates(run, orders, warm=True, seeds=(0,)):
    """Tokens per second of each method, a list with an entry a run; orders: of each prompt, the methods in turn."""
    found = {"plain": [], "spec": []}
    for method in found if warm else ():
        run(method, orders[0][0], 0)
    for seed in seeds:
        for prompt, methods in orders:
            for method in methods:
                tokens, seconds = run(method, prompt, seed)
                found[method].append(tokens / seconds)
    return np.array(found["plain"]), np.array(found["spec"])


def in_turn(prompts, first=("plain", "spec"), then=("plain", "spec")):
    return [(prompt, then if k % 2 else first) for k, prompt in enumerate(prompts)]


def in_a_row(prompts, first="plain", second="spec"):
    return [(prompt, [method]) for method in (first, second) for prompt in prompts]


def mean_ratio(two):
    return two[1].mean() / two[0].mean()


def totals(run, prompts, warm=True, tokens=True):
    """By turns, sums over sums."""
    sums = dict.fromkeys(("plain", "spec"), (0, 0.0))
    for prompt in [*prompts[:warm], *prompts]:
        for method, (written, spent) in sums.items():
            n, seconds = run(method, prompt, 1)
            sums[method] = written + (n if tokens else 1), spent + seconds
        if warm:
            warm, sums = False, dict.fromkeys(sums, (0, 0.0))
    (a, b), (c, d) = sums.values()
    return (c / d) / (a / b)


def powers(a, gamma):
    return sum(a**i for i in range(gamma + 1))


def clipped(p, q):
    return [max(a - b, 0) for a, b in pairwise(p, q)]


def normed(values):
    return [v / sum(values) for v in values]


def ends(text, sizes):
    """The first of some lengths of the end of a text that occurred before."""
    for size in sizes:
        if any(text[end - size : end] == text[len(text) - size :] for end in range(size, len(text))):
            return size
    return 0


def entropy(counts, probabilities, both=2.0):
    n = sum(counts)
    return both * sum(c * math.log(c / (n * p)) for c, p in pairwise(counts, probabilities) if c)


def best_of(gammas, drafts):
    gains = [max(float(theory.speedup(a, g, c)) for g in gammas) for a, c in drafts]
    return gains.index(max(gains)) if max(gains) > 1 else None


def pick(score, drafts):
    return max(range(len(drafts)), key=lambda k: score(*drafts[k])) if any(a > c for a, c in drafts) else None


def speed(alpha, gamma, c, prices):
    return powers(alpha, gamma) / (gamma * c + prices[gamma + 1])


def voted(continuations, left_only=True):
    chain, left = [], continuations
    for i in range(len(continuations[0])):
        chain.append(Counter(c[i] for c in left).most_common(1)[0][0])
        left = [c for c in left if c[i] == chain[-1]] if left_only else left
    return chain


def remaining(q, x):
    """q without token x, made to sum to 1; all zeros where nothing is left."""
    rest = [0.0 if k == x else v for k, v in enumerate(q)]
    return normed(rest) if any(rest) else rest


def siblings(p, q, n, against=residual, out=remaining):
    """The law of what is emitted as one of n siblings, and ways to get it wrong."""
    emitted = [min(a, b) if n > 0 else 0.0 for a, b in pairwise(p, q)]
    lost = [b - k for k, b in pairwise(emitted, q)]
    for x, rejected in enumerate(lost):
        if n > 1 and rejected > 1e-9 and any(rest := out(q, x)):
            left = against(torch.tensor(p).double(), torch.tensor(q).double()).tolist()
            further = siblings(left, rest, n - 1, against, out)
            emitted = [e + rejected * f for e, f in pairwise(emitted, further)]
    return emitted


def siblings_summed(p, q, n):
    """The same by the library: over all draws, in the order in which they are tried."""
    emitted, rows = np.zeros(len(p)), torch.tensor(p).double().expand(1, n + 1, -1)
    for drawn, chance in several.draft_tuples(q, n, replacement=False).items():
        told = [q]
        for x in drawn[:-1]:
            told.append(remaining(told[-1], x))
        told = torch.tensor([told[: len(drawn)]]).double()
        verdict = rules.tree_law(rows[:, : len(drawn) + 1], told, torch.tensor([drawn]), [-1] * len(drawn))
        for x, stop in pairwise(drawn, verdict.stop_probs[0, 1:].tolist()):
            emitted[x] += chance * stop
    return emitted


def climbed(parents, node, last=-1):
    path = []
    while node > last:
        path.append(node)
        node = parents[node]
    return path


def witten(counts, shorter, m=None):
    total, m = sum(counts), sum(c > 0 for c in counts) if m is None else m
    return [(c + m * q) / (total + m) for c, q in pairwise(counts, shorter)] if total else shorter


def agreeing(guesses, says):
    right = 0
    while right < len(guesses) and guesses[right] == says[right]:
        right += 1
    return right


def by_position(rounds, reached=lambda i, n, a: i <= a, short=lambda i, n: i < n, least=1):
    """Kept over reached at each place, and ways to count wrongly who came there."""
    found = []
    for i in range(max(n for n, _ in rounds)):
        judged = [(n, a) for n, a in rounds if reached(i, n, a) and short(i, n)]
        found += [sum(a > i for _, a in judged) / len(judged)] if len(judged) >= least else []
    return found


def threshold(p, q, keep=lambda a, b: b <= a, rest=None):
    kept = [b if keep(a, b) else 0.0 for a, b in pairwise(p, q)]
    rest = rest or (normed(clipped(p, q)) if any(clipped(p, q)) else p)
    return [k + (1 - sum(kept)) * r for k, r in pairwise(kept, rest)]


def detective(sampler, draws=400, places=n04b.PLACES):
    known, scores = n04b.laws(), dict.fromkeys(n04b.suspects()["suspect"], 0.0)
    for case in places:
        for text in sampler.draw(case, draws):
            for name in scores:
                scores[name] += math.log(known[case][name].get(text, 1e-300))
    return max(scores, key=scores.get)


def followed(text, n, last=True):
    places = [k for k in range(len(text) - 1) if text[k] == text[-1]]
    return text[(place := places[-1 if last else 0]) + 1 : place + 1 + n] if places else []


def block(p, q, drafted, cut=min, rows=(1, 1), last=True):
    """The block rule on two tokens, and ways to get it wrong."""
    w1 = cut(1, p[0][drafted[0]] / q[0][drafted[0]])
    w2 = cut(1, w1 * p[1][drafted[1]] / q[1][drafted[1]])
    s1 = sum(max(w1 * a - b, 0) for a, b in pairwise(p[rows[0]], q[rows[1]]))
    h1 = s1 / (s1 + 1 - w1) if s1 + 1 - w1 > 0 else 0
    return [(1 - w2) * (1 - h1), (1 - w2) * h1, w2] if last else [1 - h1, h1 * (1 - w2), h1 * w2]


def least_cut(p, q, n, sizes=None, other=lambda inside, n: 1 - inside**n):
    tokens = range(len(p))
    sets = [a for size in sizes or range(len(p) + 1) for a in combinations(tokens, size)]
    return min(sum(p[x] for x in a) + other(sum(q[x] for x in a), n) for a in sets)


def three_claims(p, q, best=None, match=None):
    best = max(range(len(q)), key=q.__getitem__) if best is None else best(p, q)
    match = sum(a * b for a, b in pairwise(p, q)) if match is None else match(p, q)
    return [sum(map(min, p, q)), p[best], match]


def in_batch(alpha, times, draft, rows, tokens):
    return powers(alpha, tokens - 1) * times[rows, 1] / (times[rows, tokens] + (tokens - 1) * draft[rows])


def first_failing(alpha, times, draft):
    last = 0
    for rows in sorted(draft):
        if not any(in_batch(alpha, times, draft, b, n) > 1 for b, n in times if b == rows and n > 1):
            break
        last = rows
    return last


def seen_by(lengths, counts, last=lambda a, j, k: a + j, padding=lambda a, j: 0, slots=None):
    slots = slots or max(a + k for a, k in pairwise(lengths, counts))
    ends = [
        [last(a, j, k) if j < k else padding(a, j) for j in range(max(counts))] for a, k in pairwise(lengths, counts)
    ]
    return [[[slot <= end for slot in range(slots)] for end in row] for row in ends]


# name -> (wrong answers of its own, right ones of its own); `general` ones are added to both
ANSWERS = {
    "per_round": (
        [lambda t, n: t // n, lambda t, n: n / t, lambda t, n: t / n - 1, lambda t, n: (t - n) / n],
        [lambda t, n: sum([1 / n] * t), lambda t, n: torch.tensor(t) / n],
    ),
    "fewest_passes": (
        [
            lambda t, g: t // (g + 1),
            lambda t, g: t / (g + 1),
            lambda t, g: math.ceil(t / max(g, 1)),
            lambda t, g: t // (g + 1) + 1,
            lambda t, g: round(t / (g + 1)),
        ],
        [lambda t, g: math.ceil(t / (g + 1)), lambda t, g: (t + g) // (g + 1)],
    ),
    "share": (
        [
            lambda rounds: sum(a / p for p, a in rounds if p) / len(rounds),
            lambda rounds: sum(a for _, a in rounds) / len(rounds),
            lambda rounds: sum(p for p, _ in rounds) / max(1, sum(a for _, a in rounds)),
            lambda rounds: sum(a == p for p, a in rounds) / len(rounds),
        ],
        [
            lambda rounds: (lambda table: table[:, 1].sum() / table[:, 0].sum())(np.array(rounds)),
            lambda rounds: 1 - sum(p - a for p, a in rounds) / sum(p for p, _ in rounds),
        ],
    ),
    "fastest": (
        [lambda n, s, b: b / n, lambda n, s, b: b * s / n, lambda n, s, b: n * s / b, lambda n, s, b: b // (n * s)],
        [lambda n, s, b: 1 / (n * s / b), lambda n, s, b: b / n / s],
    ),
    "speedup": (
        [
            lambda r, p: sum(t for _, t in r) / len(r),
            lambda r, p: sum(t for _, t in r) * p[1] / sum(p[w] for w, _ in r[:1]),
            lambda r, p: sum(t * p[1] / p[w] for w, t in r) / len(r),
            lambda r, p: len(r) * p[1] / sum(p[w] for w, _ in r),
            lambda r, p: sum(w for w, _ in r) * p[1] / sum(p[w] for w, _ in r),
        ],
        [
            lambda r, p: sum(t for _, t in r) / sum(p[w] / p[1] for w, _ in r),
            lambda r, p: p[1] / (sum(p[w] for w, _ in r) / sum(t for _, t in r)),
        ],
    ),
    "parting": (
        [
            lambda a, b: next((k for k, (x, y) in enumerate(pairwise(a, b)) if x != y), None),
            lambda a, b: next((k for k, (x, y) in enumerate(pairwise(a, b)) if x != y), min(len(a), len(b))),
            lambda a, b: sum(x == y for x, y in pairwise(a, b)),
            lambda a, b: next((k + 1 for k, (x, y) in enumerate(pairwise(a, b)) if x != y), None),
        ],
        [
            lambda a, b: None if a == b else next(k for k in range(99) if a[: k + 1] != b[: k + 1]),
            lambda a, b: next((k for k in range(max(len(a), len(b))) if a[k : k + 1] != b[k : k + 1]), None),
        ],
    ),
    "most_tokens_per_second": (
        [lambda n, s, b: b / n, lambda n, s, b: b * s / n, lambda n, s, b: n * s / b, lambda n, s, b: b // (n * s)],
        [lambda n, s, b: 1 / (n * s / b), lambda n, s, b: b / n / s],
    ),
    "ridge_width": (
        [
            lambda s, b, o: o / b,
            lambda s, b, o: s * o / b,
            lambda s, b, o: o / (2 * b),
            lambda s, b, o: s * b / (2 * o),
            lambda s, b, o: round(s * o / (2 * b)),
        ],
        [lambda s, b, o: (o / b) * s / 2, lambda s, b, o: (o / 2) / (b / s)],
    ),
    "uncached_positions": (
        [
            lambda p, n: p + n - 1,
            lambda p, n: p * n,
            lambda p, n: sum(p + i for i in range(n + 1)),
            lambda p, n: sum(p + i for i in range(1, n + 1)),
            lambda p, n: p * n + n * n // 2,
        ],
        [lambda p, n: p * n + n * (n - 1) // 2, lambda p, n: sum(range(p, p + n))],
    ),
    "round_adds": (
        [
            lambda g, s: g[: agreeing(g, s)],
            lambda g, s: [a for a, b in pairwise(g, s) if a == b] + [s[-1]],
            lambda g, s: [x for x in g if x in s] + [s[len([x for x in g if x in s])]],
            lambda g, s: g[: agreeing(g, s)] + [s[-1]],
            lambda g, s: s,
        ],
        [lambda g, s: s[: agreeing(g, s) + 1], lambda g, s: (x for x in s[: agreeing(g, s) + 1])],
    ),
    "repaired_claim": (
        [
            lambda n, T: n + 1,
            lambda n, T: n * T[1] / T[n + 1],
            lambda n, T: (n + 1) * T[1] / T[max(n, 1)],
            lambda n, T: (n + 1) / T[n + 1],
            lambda n, T: (n + 1) * T[n + 1] / T[1],
            lambda n, T: (n + 1) * list(T.values())[0] / T[n + 1],
        ],
        [lambda n, T: (n + 1) / (T[n + 1] / T[1]), lambda n, T: T[1] / (T[n + 1] / (n + 1))],
    ),
    "wasted": (
        [
            lambda rounds: sum(p - a + 1 for p, a in rounds),
            lambda rounds: sum(a < p for p, a in rounds),
            lambda rounds: sum(a for _, a in rounds),
            lambda rounds: rounds[0][0] * len(rounds) - sum(a for _, a in rounds),
        ],
        [
            lambda rounds: sum(p for p, _ in rounds) - sum(a for _, a in rounds),
            lambda rounds: np.array(rounds) @ [1, -1] @ np.ones(len(rounds)),
        ],
    ),
    "what_followed": (
        [
            lambda text, n: followed(text, n, last=False),
            lambda text, n: text[len(text) - 1 - text[::-1].index(text[-1]) + 1 :][:n],
            lambda text, n: followed(text, 1),
            lambda text, n: followed(text, n) or [text[-1]] * n,
            lambda text, n: (followed(text, n) * n)[:n],
            lambda text, n: (followed(text, n), text.append(0))[0],
        ],
        [
            followed,
            lambda text, n: tuple(followed(text, n)),
            lambda text, n: next(
                (text[k + 1 : k + 1 + n] for k in reversed(range(len(text) - 1)) if text[k] == text[-1]), []
            ),
        ],
    ),
    "my_residual": (
        [
            clipped,
            lambda p, q: normed(clipped(p, q)) if any(clipped(p, q)) else [0.0] * len(p),
            lambda p, q: normed(clipped(p, q)) if any(clipped(p, q)) else [1 / len(p)] * len(p),
            lambda p, q: normed(clipped(q, p)) if any(clipped(q, p)) else p,
            lambda p, q: normed([abs(a - b) for a, b in pairwise(p, q)]) if p != q else p,
            lambda p, q: p,
            lambda p, q: normed(clipped(p, q)),
        ],
        [
            lambda p, q: residual(torch.tensor(p), torch.tensor(q)),
            lambda p, q: (lambda e: e / e.sum() if e.sum() else p)(np.maximum(np.array(p) - np.array(q), 0)),
        ],
    ),
    "threshold_law": (
        [
            lambda p, q: p,
            lambda p, q: threshold(p, q, lambda a, b: b < a),
            lambda p, q: threshold(p, q, rest=p),
            lambda p, q: threshold(p, q, lambda a, b: b >= a),
            lambda p, q: normed([b if b <= a else 0 for a, b in pairwise(p, q)]),
        ],
        [threshold, lambda p, q: np.array(threshold(p, q), dtype=np.float32)],
    ),
    "tokens_per_round": (
        [
            lambda a, g: 1 + a + (g - 1) * a**2 if g else 1,
            lambda a, g: powers(a, g - 1),
            lambda a, g: powers(a, g) - 1,
            lambda a, g: 1 + a * g,
            lambda a, g: 1 / (1 - a) if a < 1 else g + 1,
            lambda a, g: (1 - a ** (g + 1)) / (1 - a),
        ],
        [
            lambda a, g: (1 - a ** (g + 1)) / (1 - a) if a < 1 else g + 1,
            lambda a, g: (torch.tensor(a) ** torch.arange(g + 1)).sum(),
        ],
    ),
    "my_alpha": (
        [
            lambda p, q: 1 - max(abs(a - b) for a, b in pairwise(p, q)),
            lambda p, q: 1 - sum(abs(a - b) for a, b in pairwise(p, q)),
            lambda p, q: 1 - sum(a - b for a, b in pairwise(p, q)) / 2,
            lambda p, q: sum(a * b for a, b in pairwise(p, q)),
            lambda p, q: sum(map(max, p, q)),
            lambda p, q: sum(math.sqrt(a * b) for a, b in pairwise(p, q)),
        ],
        [
            lambda p, q: 1 - sum(abs(a - b) for a, b in pairwise(p, q)) / 2,
            lambda p, q: overlap(torch.tensor(p), torch.tensor(q)),
            lambda p, q: 1 - sum(clipped(p, q)),
        ],
    ),
    "resampled_law": (
        [
            lambda p, q: p,
            lambda p, q: normed(list(map(min, p, q))) if any(map(min, p, q)) else p,
            lambda p, q: [min(a, b) + (1 - sum(map(min, p, q))) * b for a, b in pairwise(p, q)],
            lambda p, q: [min(a, b) + sum(map(min, p, q)) * a for a, b in pairwise(p, q)],
        ],
        [
            lambda p, q: np.minimum(p, q) + (1 - np.minimum(p, q).sum()) * np.array(p),
            lambda p, q: [a - max(a - b, 0) + sum(clipped(p, q)) * a for a, b in pairwise(p, q)],
        ],
    ),
    "my_g": (
        [
            lambda c, p: entropy(c, p, 1.0),
            lambda c, p: entropy(c, p) / math.log(10),
            lambda c, p: sum((x - sum(c) * y) ** 2 / (sum(c) * y) for x, y in pairwise(c, p)),
            lambda c, p: entropy(c, [1 / len(p)] * len(p)),
            lambda c, p: 2 * sum(x * math.log(x / (sum(c) * y)) for x, y in pairwise(c, p)),
            lambda c, p: 2 * sum(x * abs(math.log(x / (sum(c) * y))) for x, y in pairwise(c, p) if x),
        ],
        [
            entropy,
            lambda c, p: 2 * torch.special.xlogy(torch.tensor(c), torch.tensor(c) / (sum(c) * torch.tensor(p))).sum(),
        ],
    ),
    "my_suspicion": (
        [
            lambda texts, law: list(dict.fromkeys(t for t in texts if t not in law)),
            lambda texts, law: [t for t in texts if t in law],
            lambda texts, law: {t for t in texts if t not in law},
            lambda texts, law: [t for t in law if t not in texts],
            lambda texts, law: sum(t not in law for t in texts),
            lambda texts, law: [t for t in texts if law.get(t, 0) < 0.2],
        ],
        [
            lambda texts, law: [t for t in texts if law.get(t, 0) == 0],
            lambda texts, law: [list(t) for t in texts if t not in law],
            lambda texts, law: (t for t in texts if t not in law),
            lambda texts, law: tuple(filter(lambda t: not law.get(t), texts)),
        ],
    ),
    "my_log_likelihood": (
        [
            lambda texts, law: sum(math.log(law[t]) for t in texts if t in law),
            lambda texts, law: math.prod(law.get(t, 0) for t in texts),
            lambda texts, law: sum(math.log(law.get(t, 1e-300)) for t in texts),
            lambda texts, law: sum(math.log2(law[t]) if t in law else -math.inf for t in texts),
            lambda texts, law: sum(math.log(law[t]) for t in texts),
            lambda texts, law: sum(math.log(law[t]) if t in law else -math.inf for t in dict.fromkeys(texts)),
        ],
        [
            lambda texts, law: math.log(x) if (x := math.prod(law.get(t, 0) for t in texts)) else -math.inf,
            lambda texts, law: torch.tensor([law.get(t, 0.0) for t in texts]).log().sum(),
        ],
    ),
    "my_detective": (
        [
            lambda sampler: "squared ratio",
            lambda sampler: n04b.PLACES[0],
            lambda sampler: detective(sampler, 1),
            lambda sampler: detective(sampler, places=n04b.PLACES[:1]),
            lambda sampler: detective(sampler, 0),
            lambda sampler: [n04b.reference(sampler)],
            lambda sampler: n04b.reference(sampler).upper(),
            lambda sampler: detective(sampler, 10_000),
            lambda sampler: sampler.number,
        ],
        [n04b.reference, detective, partial(detective, draws=600), lambda sampler: np.str_(detective(sampler, 500))],
    ),
    "acceptance_probability": (
        [
            lambda p, q: 1 - max(abs(a - b) for a, b in pairwise(p, q)),
            lambda p, q: sum(b * a for a, b in pairwise(p, q)),
            lambda p, q: sum(min(1, a / b) for a, b in pairwise(p, q) if b),
            lambda p, q: sum(b for a, b in pairwise(p, q) if b <= a),
        ],
        [
            lambda p, q: sum(b * min(1, a / b) for a, b in pairwise(p, q) if b),
            lambda p, q: 1 - sum(clipped(q, p)),
        ],
    ),
    "predicted_speedup": (
        [
            lambda a, g, c, w: (1 + a + (g - 1) * a**2 if g else 1) / (g * c + w),
            lambda a, g, c, w: powers(a, g) / (g * c + 1),
            lambda a, g, c, w: powers(a, g) / ((g + 1) * c + w),
            lambda a, g, c, w: powers(a, g) / (c + w),
            lambda a, g, c, w: powers(a, g - 1) / (g * c + w),
            lambda a, g, c, w: powers(a, g) / (g * c * w + w),
        ],
        [
            lambda a, g, c, w: ((1 - a ** (g + 1)) / (1 - a) if a < 1 else g + 1) / (g * c + w),
            lambda a, g, c, w: float(theory.expected_tokens(a, g)) / (g * c + w),
        ],
    ),
    "measure": (
        [
            lambda run, P: mean_ratio(rates(run, in_a_row(P), warm=False)),
            lambda run, P: mean_ratio(rates(run, in_a_row(P))),
            lambda run, P: mean_ratio(rates(run, in_a_row(P, "spec", "plain"))),
            lambda run, P: mean_ratio(rates(run, in_turn(P), warm=False)),
            lambda run, P: 1 / mean_ratio(rates(run, in_turn(P))),
            lambda run, P: mean_ratio(rates(run, [(p, [m]) for p, m in pairwise(P, 7 * ["plain", "spec"])])),
            lambda run, P: mean_ratio(rates(run, [(p, ["spec" if p > "d" else "plain"]) for p in P])),
            lambda run, P: mean_ratio(rates(run, in_turn(P[:1]))),
            lambda run, P: totals(run, P, tokens=False),
            lambda run, P: totals(run, P, warm=False),
            lambda run, P: totals(lambda method, prompt, seed: run("plain", prompt, seed), P),
            lambda run, P: np.subtract(*reversed(rates(run, in_turn(P)))).mean(),
            lambda run, P: list(np.divide(*reversed(rates(run, in_turn(P))))),
            lambda run, P: mean_ratio(rates(run, in_turn(P), seeds=range(2))) - 1,
        ],
        [
            totals,
            lambda run, P: mean_ratio(rates(run, in_turn(P))),
            lambda run, P: mean_ratio(rates(run, in_turn(P, then=("spec", "plain")))),
            lambda run, P: np.exp(np.log(np.divide(*reversed(rates(run, in_turn(P, then=("spec", "plain")))))).mean()),
            lambda run, P: np.median(np.divide(*reversed(rates(run, in_turn(P, ("spec", "plain")), seeds=range(3))))),
            lambda run, P: mean_ratio(rates(run, in_turn(P), seeds=range(4))),
            lambda run, P: 1 / np.divide(*rates(run, in_turn(P))).mean(),
        ],
    ),
    "better_draft": (
        [
            partial(pick, lambda a, c: a / c),
            partial(pick, lambda a, c: a - c),
            partial(pick, lambda a, c: a),
            partial(pick, lambda a, c: -c),
            partial(best_of, [1]),
            partial(best_of, [4]),
            partial(best_of, [16]),
            partial(best_of, range(1, 5)),
            lambda d: max(
                range(len(d)), key=lambda k: max(float(theory.speedup(*[d[k][0], g, d[k][1]])) for g in range(1, 17))
            ),
        ],
        [
            partial(best_of, range(1, 17)),
            lambda d: (lambda k: k if k is None else np.int64(k))(best_of(range(1, 17), d)),
            lambda d: best_of(list(range(1, 17)), list(d)),
        ],
    ),
    "best_gamma": (
        [
            lambda a, c, T: max((n for n in T), key=lambda n: speed(a, n - 1, c, T)),
            lambda a, c, T: max((n - 1 for n in T), key=lambda g: powers(a, g) / (g * c + 1)),
            lambda a, c, T: max((n - 1 for n in T if n > 1), key=lambda g: speed(a, g, c, T), default=0),
            lambda a, c, T: max((n - 1 for n in T), key=lambda g: powers(a, g)),
            lambda a, c, T: max((n - 1 for n in T), key=lambda g: powers(a, g) / (g * c + T.get(g, 1.0))),
            lambda a, c, T: max(range(len(T)), key=lambda g: powers(a, g) / (g * c + T.get(g + 1, 9.0))),
            lambda a, c, T: max(speed(a, n - 1, c, T) for n in T),
        ],
        [
            lambda a, c, T: max(sorted(T), key=lambda n: speed(a, n - 1, c, T)) - 1,
            lambda a, c, T: min((n - 1 for n in T), key=lambda g: 1 / speed(a, g, c, T)),
        ],
    ),
    "hazards": (
        [
            lambda R: by_position(R, short=lambda i, n: True),
            lambda R: by_position(R, reached=lambda i, n, a: True),
            lambda R: by_position(R, lambda i, n, a: True, lambda i, n: True),
            lambda R: by_position(R, reached=lambda i, n, a: i < a),
            lambda R: by_position(R, reached=lambda i, n, a: i <= a < n),
            lambda R: by_position([(n, a) for n, a in R if n == max(m for m, _ in R)]),
            lambda R: by_position(R, least=2),
            lambda R: by_position(R)[1:],
            lambda R: (h := by_position(R)) + [0.0] * (max(n for n, _ in R) - len(h)),
            lambda R: [sum(a for _, a in R) / sum(n for n, _ in R)] * len(by_position(R)),
            lambda R: [sum(a for _, a in R) / sum(min(n, a + 1) for n, a in R)] * len(by_position(R)),
        ],
        [
            by_position,
            lambda R: np.array(by_position(R), dtype=np.float32),
            lambda R: [
                k / (k + sum(a == i < n for n, a in R))
                for i in range(9)
                if (k := sum(a > i for _, a in R)) + sum(a == i < n for n, a in R)
            ],
            lambda R: theory.hazard_by_position([([a > i for i in range(n)], a) for n, a in R])[0][
                : len(by_position(R))
            ],
        ],
    ),
    "foresight_speed": (
        [
            lambda A, c, T: sum((a + 1) / (a * c + T[a + 1]) for a in A) / len(A),
            lambda A, c, T: sum(A) / sum(a * c + T[a + 1] for a in A),
            lambda A, c, T: sum(a + 1 for a in A) / sum(a * c + 1 for a in A),
            lambda A, c, T: sum(a + 1 for a in A) / sum(a * c + T[max(a, 1)] for a in A),
            lambda A, c, T: sum(a + 1 for a in A) / sum((a + 1) * c + T[a + 1] for a in A),
        ],
        [
            lambda A, c, T: (sum(A) + len(A)) / (sum(A) * c + sum(T[a + 1] for a in A)),
            lambda A, c, T: (np.array(A) + 1).sum() / (np.array(A) * c + [T[a + 1] for a in A]).sum(),
        ],
    ),
    "block_stops": (
        [
            partial(block, last=False),
            partial(block, rows=(0, 0)),
            partial(block, rows=(1, 0)),
            partial(block, rows=(0, 1)),
            partial(block, cut=lambda one, w: w),
            lambda p, q, d: block(p, q, d)[::-1],
            lambda p, q, d: (lambda a, b: [1 - a, a * (1 - b), a * b])(
                *(min(1, p[i][d[i]] / q[i][d[i]]) for i in (0, 1))
            ),
            lambda p, q, d: (lambda w: [1 - w[0], w[0] - w[1], w[1]])(
                [min(1, (r := p[0][d[0]] / q[0][d[0]])), min(1, r, r * p[1][d[1]] / q[1][d[1]])]
            ),
        ],
        [block, lambda p, q, d: np.array(block(p, q, d)), lambda p, q, d: (x for x in block(p, q, d))],
    ),
    "best_of": (
        [
            lambda p, q, n: sum(map(min, p, q)),
            lambda p, q, n: 1 - (1 - sum(map(min, p, q))) ** n,
            lambda p, q, n: min(1, n * sum(map(min, p, q))),
            partial(least_cut, sizes=[1]),
            partial(least_cut, sizes=[0, 1, 2]),
            partial(least_cut, other=lambda inside, n: (1 - inside) ** n),
            partial(least_cut, other=lambda inside, n: 1 - inside * n),
            lambda p, q, n: least_cut(q, p, n),
            lambda p, q, n: sum(min(a, 1 - (1 - b) ** n) for a, b in pairwise(p, q)),
        ],
        [
            least_cut,
            lambda p, q, n: min(
                sum(a for k, a in enumerate(p) if bits >> k & 1)
                + 1
                - sum(b for k, b in enumerate(q) if bits >> k & 1) ** n
                for bits in range(2 ** len(p))
            ),
        ],
    ),
    "claimed_alphas": (
        [
            partial(three_claims, best=lambda p, q: p.index(max(p))),
            partial(three_claims, best=lambda p, q: len(q) - 1 - q[::-1].index(max(q))),
            partial(three_claims, match=lambda p, q: sum(b * b for b in q)),
            partial(three_claims, match=lambda p, q: sum(a * a for a in p)),
            partial(three_claims, match=lambda p, q: sum(min(a, b) * b for a, b in pairwise(p, q))),
            lambda p, q: [sum(map(min, p, q)), max(p), sum(a * b for a, b in pairwise(p, q))],
            lambda p, q: [sum(map(min, p, q)), min(p[q.index(max(q))], max(q)), three_claims(p, q)[2]],
            lambda p, q: three_claims(p, q)[::-1],
            lambda p, q: [1 - max(abs(a - b) for a, b in pairwise(p, q)), *three_claims(p, q)[1:]],
        ],
        [
            three_claims,
            lambda p, q: np.array([np.minimum(p, q).sum(), p[int(np.argmax(q))], np.dot(p, q)]),
            lambda p, q: (1 - sum(clipped(p, q)), p[q.index(max(q))], float(torch.tensor(p) @ torch.tensor(q))),
        ],
    ),
    "wait_shares": (
        [
            lambda mb, gb, products, whole: [mb / gb / whole, (products - mb / gb) / whole, 1 - products / whole],
            lambda mb, gb, products, whole: [min(products, mb / gb), products - mb / gb, whole - products],
            lambda mb, gb, products, whole: [(m := min(products, mb / gb)) / whole, products / whole, 1 - m / whole],
            lambda mb, gb, products, whole: [(m := min(whole, mb / gb)) / whole, 0.0, 1 - m / whole],
            lambda mb, gb, products, whole: [
                (m := min(products, gb / mb)) / whole,
                (products - m) / whole,
                1 - products / whole,
            ],
            lambda mb, gb, products, whole: [
                max(products, mb / gb) / whole,
                abs(products - mb / gb) / whole,
                1 - products / whole,
            ],
            lambda mb, gb, products, whole: [
                (m := min(products, mb / gb)) / products if products else 0,
                (products - m) / whole,
                1 - products / whole,
            ],
        ],
        [
            lambda mb, gb, products, whole: np.diff([0, min(products, mb / gb), products, whole]) / whole,
            lambda mb, gb, products, whole: (
                (m := min(products, mb / gb)) / whole,
                (products - m) / whole,
                (whole - products) / whole,
            ),
        ],
    ),
    "honest_headline": (
        [
            lambda rates: max(r[3] for r in rates) / max(r[3] for r in rates if r[0] == "plain"),
            lambda rates: max(r[3] for r in rates if r[0] != "plain") / min(r[3] for r in rates if r[0] == "plain"),
            lambda rates: max(
                s / p
                for m, b, d, s in rates
                for n, *_, p in [r for r in rates if r[0] == "plain" and r[1:3] == (b, d)] or rates[:1]
                if m != "plain"
            ),
            lambda rates: rates[-1][3] / rates[0][3],
            lambda rates: max(r[3] for r in rates if r[0] == "plain") / max(r[3] for r in rates if r[0] != "plain"),
            lambda rates: (
                np.mean([r[3] for r in rates if r[0] != "plain"]) / np.mean([r[3] for r in rates if r[0] == "plain"])
            ),
        ],
        [
            lambda rates: (lambda best: max(v for k, v in best.items() if k != "plain") / best["plain"])(
                {m: max(r[3] for r in rates if r[0] == m) for m, *_ in rates}
            ),
        ],
    ),
    "at_fixed_width": (
        [
            lambda T, g, t, c: [1, t / (g * c + T[g + 1] / T[1])],
            lambda T, g, t, c: [T[1] / T[g + 1], t / (g * c + T[g + 1])],
            lambda T, g, t, c: [T[1] / T[g + 1], t * T[1] / T[g + 1]],
            lambda T, g, t, c: [T[1] / T[g], t / (g * c + T[g] / T[1])] if g in T else [1, t],
            lambda T, g, t, c: [T[g + 1] / T[1], t / (g * c + T[g + 1] / T[1])],
            lambda T, g, t, c: [1 / T[g + 1], t / (g * c + T[g + 1])],
            lambda T, g, t, c: [T[1] / T[g + 1], t / (c + T[g + 1] / T[1])],
        ],
        [
            lambda T, g, t, c: [T[1] / T[g + 1], t * T[1] / (g * c * T[1] + T[g + 1])],
            lambda T, g, t, c: np.array([1, t]) / [T[g + 1] / T[1], g * c + T[g + 1] / T[1]],
        ],
    ),
    "next_length": (
        [
            lambda n, d, a, most: min(most, n + 2) if a == d else max(1, a),
            lambda n, d, a, most: min(most, d + 2) if a == d else max(1, d - 1),
            lambda n, d, a, most: min(most, n + 2) if a == n else max(1, n - 1),
            lambda n, d, a, most: n + 2 if a == d else max(1, n - 1),
            lambda n, d, a, most: min(most, n + 2) if a == d else n - 1,
            lambda n, d, a, most: min(most, n + 1) if a == d else max(1, n - 1),
            lambda n, d, a, most: min(16, n + 2) if a == d else max(1, n - 1),
        ],
        [
            lambda n, d, a, most: max(1, min(most, n + (2 if a >= d else -1))),
            lambda n, d, a, most: int(np.clip(n + (3 * (a == d) - 1), 1, most)),
        ],
    ),
    "round_row": (
        [
            lambda row, bits: [round(x / (max(map(abs, row)) / 127)) * max(map(abs, row)) / 127 for x in row],
            lambda row, bits: (lambda s: [round(x / s) * s for x in row])(max(map(abs, row)) / 2 ** (bits - 1)),
            lambda row, bits: (lambda s: [round(x / s) for x in row])(max(map(abs, row)) / (2 ** (bits - 1) - 1)),
            lambda row, bits: (lambda s: [int(x / s) * s for x in row])(max(map(abs, row)) / (2 ** (bits - 1) - 1)),
            lambda row, bits: (lambda s: [round(x / s) * s for x in row])(max(row) / (2 ** (bits - 1) - 1)),
            lambda row, bits: (lambda s: [round(x / s) * s for x in row])(max(map(abs, row)) / (2**bits - 1)),
        ],
        [
            lambda row, bits: (lambda s: np.round(np.array(row) / s) * s)(np.abs(row).max() / (2 ** (bits - 1) - 1)),
            lambda row, bits: (lambda s: (torch.tensor(row) / s).round() * s)(
                max(map(abs, row)) / (2 ** (bits - 1) - 1)
            ),
        ],
    ),
    "layer_skip_speedup": (
        [
            lambda a, g, k, n: (1 + a + (g - 1) * a**2 if g else 1) / (g * k / n + 1),
            lambda a, g, k, n: powers(a, g) / (g * k / n),
            lambda a, g, k, n: powers(a, g) / (g * n / k + 1),
            lambda a, g, k, n: powers(a, g) / (k / n + 1),
            lambda a, g, k, n: powers(a, g) / (g * k / n + 1 - k / n),
            lambda a, g, k, n: powers(a, g) / (g * (k // n) + 1),
        ],
        [
            lambda a, g, k, n: n * powers(a, g) / (g * k + n),
            lambda a, g, k, n: float(theory.speedup(a, g, k / n)),
        ],
    ),
    "heads_tokens": (
        [
            lambda b: 1 + sum(b),
            lambda b: 1 + math.prod(b),
            lambda b: sum(math.prod(b[: i + 1]) for i in range(len(b))),
            lambda b: powers(sum(b) / len(b), len(b)),
            lambda b: 1 + b[0] + sum(x * y for x, y in pairwise(b, b[1:])),
        ],
        [
            lambda b: 1 + torch.tensor(b).cumprod(0).sum(),
            lambda b: 1 + np.cumprod(b).sum(),
            lambda b: float(theory.expected_tokens_from_positions(b)),
        ],
    ),
    "longest_match": (
        [
            lambda text, most: ends(text, range(1, most + 1)),
            lambda text, most: ends(text, range(len(text) - 1, 0, -1)),
            lambda text, most: min(most, sum(t == text[-1] for t in text) - 1),
            lambda text, most: len(text) and ends(text, range(min(most, len(text) // 2), 0, -1)),
            lambda text, most: most if ends(text, [1]) else 0,
            lambda text, most: ends(text, range(min(most, len(text)), 0, -1)) or 1,
        ],
        [
            lambda text, most: ends(text, range(min(most, len(text) - 1), 0, -1)),
            lambda text, most: max((k for k in range(1, min(most, len(text) - 1) + 1) if ends(text, [k])), default=0),
        ],
    ),
    "witten_bell": (
        [
            lambda c, s: witten(c, s, 1),
            lambda c, s: witten(c, s, len(c)),
            lambda c, s: normed(c) if sum(c) else s,
            lambda c, s: [
                (x + sum(y > 0 for y in c) * q) / (sum(c) + sum(y > 0 for y in c)) for x, q in pairwise(c, s)
            ],
            lambda c, s: s,
            lambda c, s: witten(c, s) if sum(c) else [1 / len(c)] * len(c),
            lambda c, s: witten(c, [1 / len(s)] * len(s)) if sum(c) else s,
        ],
        [
            witten,
            lambda c, s: (lambda m, n: (np.array(c) + m * np.array(s)) / (n + m) if n else s)(
                np.count_nonzero(c), sum(c)
            ),
        ],
    ),
    "most_followed": (
        [
            lambda rows: voted(rows, left_only=False),
            lambda rows: list(Counter(map(tuple, rows)).most_common(1)[0][0]),
            lambda rows: rows[0],
            lambda rows: rows[-1],
            lambda rows: voted(rows)[:1],
            lambda rows: [max(row[i] for row in rows) for i in range(len(rows[0]))],
        ],
        [voted, lambda rows: np.array(voted(rows)), lambda rows: tuple(voted(rows))],
    ),
    "sibling_law": (
        [
            lambda q, taken: [0.0 if k in taken else v for k, v in enumerate(q)],
            lambda q, taken: normed([v for k, v in enumerate(q) if k not in taken]),
            lambda q, taken: normed([0.0 if k in taken[-1:] else v for k, v in enumerate(q)]),
            lambda q, taken: [0.0 if k in taken else 1 / (len(q) - len(taken)) for k in range(len(q))],
            lambda q, taken: q,
            lambda q, taken: normed([0.0 if v in [q[t] for t in taken] else v for v in q]),
        ],
        [
            lambda q, taken: (lambda left: left / left.sum())(
                torch.tensor(q).index_fill(0, torch.tensor(taken).long(), 0)
            ),
            lambda q, taken: (
                np.where([k in taken for k in range(len(q))], 0, q) / sum(v for k, v in enumerate(q) if k not in taken)
            ),
        ],
    ),
    "tree_law": (
        [
            lambda p, q, n: siblings(p, q, min(n, 1)),
            lambda p, q, n: siblings(p, q, min(n, 2)),
            lambda p, q, n: siblings(p, q, n + 1),
            lambda p, q, n: siblings(p, q, max(n, 1)),
            lambda p, q, n: siblings(p, q, n, out=lambda q, x: q),
            lambda p, q, n: siblings(p, q, n, out=lambda q, x: [0.0 if k == x else v for k, v in enumerate(q)]),
            lambda p, q, n: siblings(p, q, n, against=lambda p, q: p),
            lambda p, q, n: siblings(p, q, n, against=lambda p, q: (p - q).clamp_min(0)),
            lambda p, q, n: siblings(p, q, n, against=lambda p, q: (p - q).abs() / (p - q).abs().sum()),
            lambda p, q, n: p if n else [0.0] * len(p),
            lambda p, q, n: [a * (1 - (1 - sum(map(min, p, q))) ** n) for a in p],
            lambda p, q, n: [min(a, 1 - (1 - b) ** n) for a, b in pairwise(p, q)],
            lambda p, q, n: sum(siblings(p, q, n)),
            lambda p, q, n: [a - e for a, e in pairwise(p, siblings(p, q, n))],
        ],
        [
            siblings,
            siblings_summed,
            lambda p, q, n: torch.tensor(siblings(p, q, n)),
            lambda p, q, n: siblings(p, q, min(n, sum(b > 0 for b in q))),
            lambda p, q, n: tuple(min(a, b) for a, b in pairwise(p, siblings(p, q, n))),
        ],
    ),
    "way_down": (
        [
            climbed,
            lambda parents, node: climbed(parents, node, 0)[::-1],
            lambda parents, node: [-1, *climbed(parents, node)[::-1]],
            lambda parents, node: climbed(parents, node)[::-1][:-1],
            lambda parents, node: [k for k in range(node + 1)],
            lambda parents, node: [node] if node >= 0 else [],
            lambda parents, node: len(climbed(parents, node)),
        ],
        [
            lambda parents, node: climbed(parents, node)[::-1],
            lambda parents, node: reversed(climbed(parents, node)),
            lambda parents, node: sorted(climbed(parents, node)),
        ],
    ),
    "tree_size": (
        [
            math.prod,
            sum,
            lambda b: 1 + sum(math.prod(b[: k + 1]) for k in range(len(b))),
            lambda b: sum(b[0] ** (k + 1) for k in range(len(b))) if b else 0,
            lambda b: len(b),
            lambda b: sum(math.prod(b[k:]) for k in range(len(b))),
        ],
        [
            lambda b: int(np.cumprod(b).sum()),
            lambda b: sum(math.prod(b[: k + 1]) for k in range(len(b))),
        ],
    ),
    "first_token": (
        [
            lambda start, pad: start or pad,
            lambda start, pad: pad,
            lambda start, pad: start,
            lambda start, pad: pad if pad is not None else start,
            lambda start, pad: max(start or 0, pad or 0),
        ],
        [
            lambda start, pad: pad if start is None else start,
            lambda start, pad: [x for x in (start, pad) if x is not None][0] if (start, pad) != (None, None) else None,
        ],
    ),
    "caches_after": (
        [
            lambda own, cross, n, a: (own + a, cross),
            lambda own, cross, n, a: (own + 1 + n, cross),
            lambda own, cross, n, a: (own + 1 + a, cross + 1 + a),
            lambda own, cross, n, a: (cross, own + 1 + a),
            lambda own, cross, n, a: own + 1 + a,
            lambda own, cross, n, a: (own + 1 + a, 30),
            lambda own, cross, n, a: (own + 1 + a, cross - n + a),
        ],
        [
            lambda own, cross, n, a: [own + 1 + a, cross],
            lambda own, cross, n, a: (own + n + 1 - (n - a), cross),
        ],
    ),
    "whole_speedup": (
        [
            lambda e, n, tau, c: tau / c,
            lambda e, n, tau, c: (e + n) / (e + n / tau),
            lambda e, n, tau, c: n / (e + n / tau * c),
            lambda e, n, tau, c: (e + n) / (e + n / (tau * c)),
            lambda e, n, tau, c: (e + n) / ((e + n) / tau * c),
            lambda e, n, tau, c: (e + n) / (e + n // tau * c),
        ],
        [
            lambda e, n, tau, c: 1 / (e / (e + n) + n / (e + n) * c / tau),
            lambda e, n, tau, c: (e + n) * tau / (e * tau + n * c),
        ],
    ),
    "accepted_share": (
        [
            lambda a: a,
            lambda a: a**2,
            lambda a: (1 + a) / 2,
            lambda a: a + a**2,
            lambda a: (a + a**2 + a**3) / 3,
            lambda a=0.8: 0.72,
        ],
        [lambda a: a * (1 + a) / 2, lambda a: a / 2 + a * a / 2],
    ),
    "pays": (
        [
            lambda a, c, T: a > c,
            lambda a, c, T: 1 + a > c + T[2],
            lambda a, c, T: speed(a, max(T) - 1, c, T) > 1,
            lambda a, c, T: any(speed(a, n - 1, c, T) >= 1 for n in T),
            lambda a, c, T: all(speed(a, n - 1, c, T) > 1 for n in T if n > 1),
            lambda a, c, T: any(powers(a, n - 1) > n * c + T[n] for n in T if n > 1),
            lambda a, c, T: any(powers(a, n) > (n - 1) * c + T[n] for n in T if n > 1),
        ],
        [
            lambda a, c, T: max(speed(a, n - 1, c, T) for n in T) > 1 + 1e-9,
            lambda a, c, T: np.any([powers(a, n - 1) - (n - 1) * c - T[n] > 1e-9 for n in T if n > 1]),
        ],
    ),
    "batch_speedup": (
        [
            lambda a, g, b, T, d: powers(a, g) / (T[b, g + 1] / T[b, 1] + g * d[b]),
            lambda a, g, b, T, d: powers(a, g) * T[b, 1] / T[b, g + 1],
            lambda a, g, b, T, d: powers(a, g) * T[b, 1] / (T[b, g + 1] + d[b]),
            lambda a, g, b, T, d: powers(a, g) * T[min(T)] / (T[b, g + 1] + g * d[b]),
            lambda a, g, b, T, d: powers(a, g) * T[b, 1] / (T[b, g + 1] + g * d[min(d)]),
            lambda a, g, b, T, d: b * powers(a, g) * T[b, 1] / (T[b, g + 1] + g * d[b]),
            lambda a, g, b, T, d: (a * g + 1) * T[b, 1] / (T[b, g + 1] + g * d[b]),
        ],
        [
            lambda a, g, b, T, d: float(theory.expected_tokens(a, g)) / ((T[b, g + 1] + g * d[b]) / T[b, 1]),
            lambda a, g, b, T, d: float(theory.speedup(a, g, d[b] / T[b, 1], T[b, g + 1] / T[b, 1])),
        ],
    ),
    "row_mask": (
        [
            lambda L, C: seen_by(L, C, last=lambda length, place, count: length + count - 1),
            lambda L, C: seen_by(L, C, last=lambda length, place, count: length + place - 1),
            lambda L, C: seen_by(L, C, last=lambda length, place, count: max(L) + place),
            lambda L, C: seen_by(L, C, padding=lambda length, place: length + place),
            lambda L, C: seen_by(L, C, padding=lambda length, place: -1),
            lambda L, C: seen_by(L, C, slots=max(L) + max(C)),
            lambda L, C: [seen_by([a], [k])[0] for a, k in pairwise(L, C)],
            lambda L, C: [
                [[slot == a + j for slot in range(max(L) + max(C))] for j in range(k)] for a, k in pairwise(L, C)
            ],
        ],
        [
            lambda L, C: seen_by(L, C),
            lambda L, C: np.array(seen_by(L, C)),
            lambda L, C: (
                torch.arange(max(a + k for a, k in pairwise(L, C)))[None, None]
                <= torch.tensor([[a + j if j < k else 0 for j in range(max(C))] for a, k in pairwise(L, C)])[..., None]
            ),
        ],
    ),
    "last_batch": (
        [
            lambda a, T, d: max(b for b, n in T if in_batch(a, T, d, b, n) >= 1),
            lambda a, T, d: max(
                (b for b, n in T if n == max(m for _, m in T) and in_batch(a, T, d, b, n) > 1), default=0
            ),
            lambda a, T, d: max((b for b, n in T if n > 1 and powers(a, n - 1) * T[b, 1] > T[b, n] + d[b]), default=0),
            lambda a, T, d: max((b for b, n in T if n > 1 and powers(a, n - 1) * T[b, 1] > T[b, n]), default=0),
            lambda a, T, d: max((b for b, n in T if n > 1 and in_batch(a, T, d, b, n) > 1), default=None),
            lambda a, T, d: next((b for b, n in reversed(T) if n > 1 and in_batch(a, T, d, b, n) > 1), 0),
            lambda a, T, d: max((in_batch(a, T, d, b, n) for b, n in T if n > 1), default=0),
            lambda a, T, d: sum(any(in_batch(a, T, d, b, n) > 1 for c, n in T if c == b and n > 1) for b in d),
            lambda a, T, d: max((b for b in d if a > d[b] / T[b, 1]), default=0),
            lambda a, T, d: first_failing(a, T, d),
        ],
        [
            lambda a, T, d: max([0, *(b for b, n in T if n > 1 and in_batch(a, T, d, b, n) > 1 + 1e-9)]),
            lambda a, T, d: next(
                (
                    b
                    for b in sorted(d, reverse=True)
                    if any(in_batch(a, T, d, *k) > 1 for k in T if k[0] == b and k[1] > 1)
                ),
                0,
            ),
        ],
    ),
    "chens_residual": (
        [
            lambda p, q: normed(clipped(p, q)),
            lambda p, q: clipped(q, p),
            lambda p, q: normed([abs(a - b) for a, b in pairwise(p, q)]),
            lambda p, q: q,
        ],
        [
            lambda p, q: normed(clipped(q, p)),
            lambda p, q: residual(torch.tensor(q), torch.tensor(p)),
        ],
    ),
}


def inputs(check, n: int = 400) -> list[tuple]:
    """The arguments of the teaching cases, and n others."""
    chance = random.Random(1)
    drawn = [check.draw(chance) for _ in range(n)] if check.draw else []
    return [arguments for arguments, _ in check.teach] + [arguments for arguments in drawn if arguments]


def general(check) -> tuple[dict, dict]:
    """(wrong, right) answers that any exercise may get, made from its reference; what differs anywhere is wrong."""
    right, cases = check.__wrapped__, inputs(check)
    first, second = cases[0], cases[1]
    wrong = {
        "None": lambda *_: None,
        "nothing": lambda *_: [],
        "text": lambda *a: str(common.plain(right(*a))),
        "raises": lambda *_: {}["a reader's mistake"],
        "always the same": lambda *_: deepcopy(right(*first)),
        "the cases that teach by heart": lambda *a: right(*a) if a in [c for c, _ in check.teach] else right(*first),
        "another call's": (lambda last: lambda *a: last.append(right(*a)) or last[-2])([right(*first)]),
    }
    if len(first) > 1:
        wrong["first two arguments swapped"] = lambda a, b, *rest: right(b, a, *rest)
    for k in range(len(first)):
        for kind, example in (("first", first), ("second", second)):
            wrong[f"argument {k} ignored, {kind}"] = lambda *a, k=k, e=example: right(*a[:k], e[k], *a[k + 1 :])
        if any(isinstance(case[k], list | dict) for case in cases):
            wrong[f"argument {k} eaten"] = lambda *a, k=k: (common.plain(right(*a)), a[k].clear())[0]
    answer = common.plain(right(*cases[-1]))
    nested = any(
        isinstance(entry, list) for case in cases if isinstance(answer, list) for entry in common.plain(right(*case))
    )
    answers = {"a function": right, "a partial": partial(right)}
    if isinstance(answer, list):
        change = {
            "backwards": lambda v: v[::-1],
            "sorted": sorted,
            "without its last": lambda v: v[:-1],
            "with one more": lambda v: [*v, 0],
            "a generator with one more": lambda v: (x for x in [*v, 0]),
            "as texts": lambda v: [str(x) for x in v],
            "in a list": lambda v: [v],
            "the set": lambda v: set(map(str, v)),
        }
        wrong |= {name: lambda *a, f=f: f(common.plain(right(*a))) for name, f in change.items()}
        forms = {"tuple": tuple, "generator": iter, "map": lambda v: map(lambda x: x, v), "list": list}
        forms |= {} if nested else {"float32": np.float32, "torch": torch.tensor}
    elif isinstance(answer, bool):
        wrong |= {"the other": lambda *a: not right(*a), "words": lambda *a: "yes" if right(*a) else "no"}
        forms = {"numpy": np.bool_, "torch": torch.tensor, "whole number": int, "bool": bool}
    elif not isinstance(answer, str):
        change = {
            "ten percent more": lambda v: 1.1 * v,
            "one more": lambda v: v + 1,
            "a little less": lambda v: v - max(0.01, 2 * check.near * abs(v)),
            "the other sign": lambda v: -v,
            "its inverse": lambda v: 1 / v if v else 0,
            "in a list": lambda v: [v],
            "squared": lambda v: v * v,
        }
        wrong |= {name: lambda *a, f=f: None if (v := right(*a)) is None else f(v) for name, f in change.items()}
        forms = {"float32": np.float32, "torch": torch.tensor, "an array": lambda v: np.array([v]), "float": float}
    else:
        forms = {}
    for name, form in forms.items():
        answers[name] = lambda *a, f=form: None if (v := common.plain(right(*a))) is None else f(v)
    return wrong, answers


def differs(answer, check) -> bool:
    """Whether an answer is wrong somewhere, by another judge than the check's."""
    for arguments in inputs(check):
        given = deepcopy(arguments)
        try:
            said = answer(*given)
            said = said.tolist() if hasattr(said, "tolist") else list(said) if hasattr(said, "__next__") else said
            wanted = common.plain(check.__wrapped__(*deepcopy(arguments)))
            same = np.shape(said) == np.shape(wanted) and np.allclose(
                np.array(said, float), np.array(wanted, float), rtol=1e-4, atol=1e-3, equal_nan=True
            )
        except Exception:
            return True
        if not same or repr(given) != repr(arguments):
            return True
    return False


@pytest.mark.parametrize("name", ANSWERS)
def test_no_wrong_answer_is_accepted(name, capsys):
    check = check_of(name)
    own = {f"own {k}": answer for k, answer in enumerate(ANSWERS[name][0])}
    if name != "my_detective":
        same = [kind for kind, answer in own.items() if not differs(answer, check)]
        assert not same, "the table calls these wrong, and they are right"
        own |= {kind: answer for kind, answer in general(check)[0].items() if differs(answer, check)}
    assert len(own) >= 8
    said = {kind: told(check, answer, capsys) for kind, answer in own.items()}
    assert not {kind: text for kind, text in said.items() if not text.startswith("not yet: ")}


@pytest.mark.parametrize("name", ANSWERS)
def test_no_right_answer_is_refused(name, capsys):
    check = check_of(name)
    answers = {f"own {k}": answer for k, answer in enumerate(ANSWERS[name][1])}
    answers |= general(check)[1] if name != "my_detective" else {}
    assert len(answers) >= 4
    said = {kind: told(check, answer, capsys) for kind, answer in answers.items()}
    assert not {kind: text for kind, text in said.items() if not text.startswith("correct: ")}


def test_the_table_is_whole():
    assert set(ANSWERS) == set(EXERCISES)


@pytest.mark.parametrize("name", sorted(set(ANSWERS) - {"my_detective"}))
def test_every_argument_varies_on_its_own(name):
    check = check_of(name)
    cases = inputs(check)
    assert len(cases) >= common.TRIALS
    assert all(len({repr(case[k]) for case in cases}) > 3 for k in range(len(cases[0])))


# --- the fence -------------------------------------------------------------------------------------------------------


def endless(p, q):
    while True:
        pass


def leaves(p, q):
    sys.exit()


def prints(p, q):
    print("0.8")


@pytest.mark.parametrize(
    "answer, words",
    [
        (endless, "had not come to an end"),
        (leaves, "left Python by exit"),
        (prints, "is the word `return` missing?; expected [0.666667, 0.0, 0.333333, 0.0]; it printed '0.8"),
        (lambda p, q: p.sort() or p, "changed what it was given, to [0.15, 0.15, 0.3, 0.4]"),
        (lambda p, q: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda p: p, "raised TypeError"),
        (lambda p, q: "1.0", "returned '1.0' (text, not a list)"),
        (lambda p, q: (x for x in [1 / 0]), "raised ZeroDivisionError"),
    ],
)
def test_what_goes_wrong_is_told_after_the_call(answer, words, capsys):
    said = told(n03.my_residual, answer, capsys)
    assert said.startswith("not yet: my_residual([0.4, 0.3, 0.15, 0.15], [0.2, 0.45, 0.05, 0.3]) ") and words in said


def test_a_value_is_no_function(capsys):
    assert "wants the function, not 0.72" in told(n03.my_residual, 0.72, capsys)


def test_what_swallows_every_exception_is_left_behind(capsys):
    enough = threading.Event()

    def stubborn(p, q):
        while not enough.is_set():
            try:  # noqa: SIM105
                time.sleep(0.01)
            except:  # noqa: E722
                pass

    try:
        assert "had not come to an end" in told(n03.my_residual, stubborn, capsys)
    finally:
        enough.set()


def test_an_answer_that_remembers_is_told(capsys):
    calls = []
    right = n03.my_residual.__wrapped__
    answer = lambda p, q: calls.append(p) or (right(p, q) if len(calls) <= 33 else p)
    assert "was right the first time" in told(n03.my_residual, answer, capsys)


def test_no_thread_is_left_of_a_call():
    before = set(threading.enumerate())  # what another test left behind may end meanwhile
    n03.my_residual(n03.my_residual.__wrapped__)
    assert set(threading.enumerate()) <= before


def test_names_in_solutions_are_the_exercises():
    for name, (_, exercise) in EXERCISES.items():
        defined = [node.name for node in ast.parse(exercise.solution).body if isinstance(node, ast.FunctionDef)]
        assert defined[-1] == name


def test_a_stub_stands_in_the_cell_above_its_check():
    for entry, exercise in EXERCISES.values():  # the verdict says "the cell above", "that cell" and "this one"
        above, here = build.read(build.FOLDER / entry.file).cells[exercise.cell :][:2]
        assert above.source == exercise.stub and here.source == exercise.check, exercise.check


def test_a_notebook_that_a_verdict_names_exists():
    there = {entry.number for entry in build.present()}
    named = {
        (number, file.name)
        for file in Path(common.__file__).parent.glob("*.py")
        for number in re.findall(r"[Nn]otebook (\d\d[a-z]?)\b", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 10 and {number for number, _ in named} <= there


def test_a_simulated_machine_repeats_itself_and_knows_two_methods():
    first, prompts = deepcopy(n05.measure.teach[-1][0])
    again = deepcopy(first)
    runs = [[machine(method, p, 0) for p in prompts for method in ("plain", "spec")] for machine in (first, again)]
    assert runs[0] == runs[1] and first.done == again.done == 8 * ["plain", "spec"]
    with pytest.raises(ValueError, match="not 'fast'"):
        again("fast", "a", 0)
