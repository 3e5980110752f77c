"""The laboratory: its module against the library (by node), its page too (by a browser), and what the page promises."""

import html
import json
import random
import re
import runpy
import shutil
import subprocess
from collections import Counter
from itertools import product
from pathlib import Path

import browser as chromium
import pytest
import torch

from speclib.errors import InvalidArgument
from speclib.law.distributions import Sampling, overlap, residual
from speclib.law.exact import expected_accepted, fixed_table, law_variation, loop_of, plain_law, rule_law, warped
from speclib.law.rules import RULES
from speclib.law.statistics import empirical_variation, expected_empirical_variation, g_test
from speclib.museum import EXHIBITS, MATCH, PLAIN, by
from speclib.workbook import lab

FOLDER = Path(__file__).resolve().parent.parent / "notebooks" / "lab"
PAGE, MODULE = FOLDER / "index.html", FOLDER / "lab.mjs"
NODE = shutil.which("node")
SETTINGS = {
    "none": PLAIN,
    "temperature 0.5": Sampling(temperature=0.5),
    "top-k 2": Sampling(top_k=2),
    "top-p 0.8": Sampling(top_p=0.8),
}
NAMES = [*RULES, "match", *EXHIBITS]
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
no_browser = chromium.missing()
needs_browser = pytest.mark.skipif(no_browser is not None, reason=f"no browser: {no_browser}")


def node(expression: str, given=None):
    """The value of an expression of the module's names (as `lab`) and `given`, computed by node."""
    script = f"""import * as lab from {json.dumps(MODULE.as_uri())};
    const given = {json.dumps(given)};
    console.log(JSON.stringify({expression}));"""
    done = subprocess.run([NODE, "--input-type=module", "-"], input=script, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Truth:
    """What the library says of a state of the page: bars p and q, a rule, a setting, gamma, n tokens."""

    def __init__(self, p, q, rule, setting="none", g=2, n=3):
        exhibit = EXHIBITS.get(rule)
        own = exhibit is not None and exhibit.sampling != PLAIN
        sampling = exhibit.sampling if own else SETTINGS[setting]
        self.sampling = sampling
        raw = [fixed_table([x / sum(row) for x in row]) for row in (p, q)]
        self.target, self.draft = raw if own or sampling == PLAIN else [warped(table, by(sampling)) for table in raw]
        self.loop = exhibit or loop_of(MATCH if rule == "match" else rule)
        self.gamma, self.n = g, n
        self.law = rule_law(self.loop, self.target, self.draft, g, n)
        self.right = plain_law(warped(raw[0], by(sampling)), n)
        self.accepted = expected_accepted(self.loop, self.target, self.draft, g)
        self.p = by(sampling)(raw[0](()))
        self.drawn, self.told = (row[0] for row in self.loop.proposes(self.draft(())[None]))
        rows = self.loop.sees(self.target(()).expand(1, g + 1, -1))
        self.rows, self.seen, self.last = rows, rows[0, 0], rows[0, -1]

    def verdict(self, drafted):
        """(stop [n+1], next [n+1, V]) of a draft."""
        found = self.loop.law(self.rows, self.told.expand(1, len(drafted), -1), torch.tensor([drafted]))
        return found.stop_probs[0].tolist(), found.next_probs[0].tolist()


def some_states(count: int, seed: int) -> list[dict]:
    """States in which no rounding decides: no two bars alike, and no total at a filter's line."""
    chance, states = random.Random(seed), []
    while len(states) < count:
        rows = []
        while len(rows) < 2:
            cuts = sorted(chance.sample(range(1, 100), 3))
            row = [b - a for a, b in zip([0, *cuts], [*cuts, 100], strict=True)]
            sums = {sum(part) for part in product(*((0, x) for x in row))}
            if len(set(row)) == 4 and 80 not in sums:
                rows.append(row)
        rule, setting = NAMES[len(states) % len(NAMES)], chance.choice(list(SETTINGS))
        states.append(
            {
                "p": rows[0],
                "q": rows[1],
                "rule": rule,
                "set": setting,
                "g": chance.randint(1, 3),
                "n": chance.randint(2, 4),
            }
        )
    return states


SAME, LEFT, RIGHT, SURE = [40, 30, 20, 10], [60, 40, 0, 0], [0, 0, 30, 70], [0, 100, 0, 0]
EDGES = [(SAME, SAME), (LEFT, RIGHT), (SAME, SURE), (SURE, SAME), (SURE, SURE), ([25] * 4, [50, 50, 0, 0])]


# --- the files -------------------------------------------------------------------------------------------------------


def test_the_page_holds_the_module_as_it_is():
    make = runpy.run_path(str(FOLDER / "make.py"))
    page = PAGE.read_text(encoding="utf-8")
    assert make["inlined"](page, MODULE.read_text(encoding="utf-8")) == page, "run: python notebooks/lab/make.py"


def test_size_and_no_network():
    page, module = PAGE.read_bytes(), MODULE.read_bytes()
    assert len(page) + len(module) < 80_000
    text = page.decode()
    assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"]  # a name, not an address
    asks = r"""\b(fetch|import)\b *\(|@import|<script[^>]* src=|<link(?![^>]*href="data:)|url\((?!#)"""
    assert not re.search(asks, text)


def test_recorded_rounds_are_rounds_of_the_embedded_pair():
    text = PAGE.read_text(encoding="utf-8").split('id="rounds">')[1].split("</script>")[0]
    kept, again = json.loads(text), runpy.run_path(str(FOLDER / "make.py"))["recorded"]()
    assert len(kept["rounds"]) >= 5 and {r["accepted"] for r in kept["rounds"]} >= {0, 1, 3}
    assert [{key: r[key] for key in ("drafted", "accepted", "next")} for r in kept["rounds"]] == [
        {key: r[key] for key in ("drafted", "accepted", "next")} for r in again["rounds"]
    ]
    for mine, other in zip(kept["rounds"], again["rounds"], strict=True):
        for place, twin in zip(mine["places"], other["places"], strict=True):
            assert place["overlap"] == pytest.approx(twin["overlap"], abs=2e-3)
            listed, found = ({row[0]: row[1:] for row in part["rows"]} for part in (place, twin))
            for token in listed.keys() & found.keys():
                assert listed[token] == pytest.approx(found[token], rel=0.02, abs=1e-3)


# --- the module, by node ---------------------------------------------------------------------------------------------


@needs_node
def test_the_module_by_its_own_tests():
    """The exactness vectors among them, where there are any."""
    done = subprocess.run(
        [NODE, "--test", "--test-reporter=tap", str(Path(__file__).with_name("lab.test.mjs"))],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    if skipped := re.search(r"# SKIP (.*)", done.stdout):
        pytest.skip(f"all but the vectors passed: {skipped[1]}")


@needs_node
def test_every_rule_of_the_library_is_in_the_module():
    assert set(NAMES) <= set(node("Object.keys(lab.RULES)"))


@needs_node
def test_laws_are_the_librarys():
    """Every rule, the museum's included: rows, verdicts, mean accepted guesses, the text's law and the target's."""
    edges = [{"p": p, "q": q, "rule": rule, "g": 2, "n": 3, "set": "none"} for rule in NAMES for p, q in EDGES]
    states = some_states(3 * len(NAMES), seed=1) + edges
    drafts = [list(product(range(4), repeat=state["g"])) for state in states]
    facts = """given.map(([state, drafts]) => {
      const all = { ...lab.DEFAULTS, ...state };
      const { law, right, accepted, seen, last, drawn, told } = lab.computed(all);
      const verdicts = drafts.map((d) => lab.computed({ ...all, n: 2, d: [...d, 0, 0].slice(0, 3) }).verdict);
      return { law, right, accepted, seen, last, drawn, told, verdicts };
    })"""
    few = [[d for k, d in enumerate(all_) if k % 7 == 0] for all_ in drafts]
    for state, some, found in zip(states, few, node(facts, list(zip(states, few, strict=True))), strict=True):
        truth = Truth(state["p"], state["q"], state["rule"], state["set"], state["g"], state["n"])
        texts = list(product(range(4), repeat=state["n"]))
        assert found["law"] == pytest.approx([truth.law.get(text, 0) for text in texts], abs=1e-12), state
        assert found["right"] == pytest.approx([truth.right.get(text, 0) for text in texts], abs=1e-12), state
        assert found["accepted"] == pytest.approx(truth.accepted, abs=1e-12), state
        for name in ("seen", "last", "drawn", "told"):
            assert found[name] == pytest.approx(getattr(truth, name).tolist(), abs=1e-12), (name, state)
        for drafted, verdict in zip(some, found["verdicts"], strict=True):
            if all(truth.drawn[x] > 0 and truth.told[x] > 0 for x in drafted):
                stop, after = truth.verdict(drafted)
                assert verdict["stop"] == pytest.approx(stop, abs=1e-12), (drafted, state)
                for chance, row, other in zip(stop, verdict["next"], after, strict=True):
                    if chance > 1e-12:
                        assert row == pytest.approx(other, abs=1e-9), (drafted, state)


@needs_node
def test_statistics_are_the_librarys():
    """The G-test with its pools, tails of the chi-square, and the mean distance of draws from their law."""
    chance, cases = random.Random(4), []
    for cells, n in product((2, 4, 16, 64, 256), (1, 7, 60, 1000, 30000)):
        weights = [chance.expovariate(1) ** 2 * (chance.random() > 0.1) for _ in range(cells)]
        law = [w / sum(weights) for w in weights]
        tilted = [x * (1 + 0.2 * (k % 2)) for k, x in enumerate(law)]
        counts = Counter(chance.choices(range(cells), chance.choice((law, tilted)), k=n))
        cases.append([[counts[k] for k in range(cells)], law])
    cases.append([[3, 0, 1], [0.5, 0.5, 0.0]])
    cases.append([[5, 5, 5, 5], [0.25] * 4])
    found = node(
        """given.map(([counts, law]) => {
          const test = lab.gTest(counts, law);
          return [test, lab.expectedVariation(law, test.n)];
        })""",
        cases,
    )
    for (counts, law), (test, mean) in zip(cases, found, strict=True):
        right = g_test(counts, law)
        assert test["dof"] == right.dof and test["n"] == right.n
        assert (test["statistic"] is None) == (right.statistic == float("inf"))  # JSON has no infinity
        assert test["p"] == pytest.approx(right.p_value, rel=1e-9, abs=1e-290)
        assert mean == pytest.approx(expected_empirical_variation(law, sum(counts)), rel=1e-9)
    points = [(x, dof) for x in (0.0, 1e-9, 0.5, 3, 30, 300, 1300) for dof in (1, 2, 15, 63, 255)]
    from scipy import stats

    tails = node("given.map(([x, dof]) => lab.chiSquareTail(x, dof))", points)
    assert tails == pytest.approx([float(stats.chi2.sf(*point)) for point in points], rel=1e-9)


# --- the page, by a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page():
    tab = chromium.Browser()
    yield tab
    tab.close()


SHOWN = """(() => {
  const find = (id) => document.getElementById(id);
  const text = (id) => find(id).textContent;
  const words = (cell) => cell.querySelector("select")?.value ?? cell.textContent;
  const table = (id) => [...find(id).rows].map((row) => [...row.cells].map(words));
  const numbers = (side) => [..."ABCD"].map((name) => +find(side + name).value);
  const said = (side) => [..."ABCD"].map((name) => parseInt(text(side + name + "-is")));
  const chosen = (name) => +document.querySelector(`input[name=${name}]:checked`).value;
  return {
    p: numbers("p"), q: numbers("q"), said: [said("p"), said("q")],
    rule: find("rule").value, set: find("set").value, g: chosen("g"), n: chosen("n"), at: +find("at").value,
    overlap: text("overlap"), accepted: text("accepted"), tokens: text("tokens"), distance: text("distance"),
    rows: table("rows"), guesses: table("guesses"), stops: table("stops"), worst: table("worst"),
    reading: text("reading"), verdict: text("verdict"), draws: +text("draws").replaceAll(",", ""),
    tv: text("tv"), tv0: text("tv0"), pvalue: text("pvalue"),
    say: text("say"), hash: location.hash, note: text("text-note"),
  };
})()"""
LETTERS = "ABCD"


def near(text: str, value: float) -> bool:
    """Is that number, as the page prints it, the value?"""
    given = float(text.replace("−", "-").replace("+", ""))
    return abs(given - value) <= (0.051 * abs(value) if "e" in text else 5.1e-4)


def agree(page: chromium.Browser) -> dict:
    """Compares every number that stands on the page with the library's, for the state that its controls show."""
    page.until("document.getElementById('draws').dataset.busy === 'false'")
    shown = page.evaluate(SHOWN)
    assert shown["said"] == [shown["p"], shown["q"]] and sum(shown["p"]) == sum(shown["q"]) == 100
    truth = Truth(shown["p"], shown["q"], shown["rule"], shown["set"], shown["g"], shown["n"])
    variation = law_variation(truth.law, truth.right)
    assert SETTINGS[shown["set"]] == truth.sampling
    assert near(shown["overlap"], float(overlap(truth.seen, truth.told)))
    assert near(shown["accepted"], truth.accepted) and near(shown["tokens"], 1 + truth.accepted)
    assert variation < 1e-12 if shown["distance"] == "none" else near(shown["distance"], variation)
    assert ("exactly the target’s law" in shown["verdict"]) == (variation < 1e-12)

    rows = {name: values for name, *values in shown["rows"]}
    known = {
        "target p": truth.p,
        "p as the rule sees it": truth.seen,
        "p on the last row": truth.last,
        "draft q": truth.told,
        "guesses drawn from": truth.drawn,
        "overlap": torch.minimum(truth.seen, truth.told),
        "residual": residual(truth.seen, truth.told),
    }
    for name, values in rows.items():
        assert all(map(near, values, known[name.split(":")[0]].tolist())), (
            name,
            values,
            known[name.split(":")[0]],
            shown,
        )
    assert ("guesses drawn from" in rows) == (not torch.allclose(truth.drawn, truth.told))

    drafted = [int(row[1]) for row in shown["guesses"]]
    assert len(drafted) == shown["g"] and len(shown["stops"]) == shown["g"] + 1
    for _, token, *values in shown["guesses"]:
        p, q, drawn = (float(row[int(token)]) for row in (truth.seen, truth.told, truth.drawn))
        assert all(map(near, values, (drawn, q, p, min(1.0, p / q) if q else 0.0)))
    if all(truth.drawn[x] > 0 and truth.told[x] > 0 for x in drafted):
        for (_, chance, *after), stop, row in zip(shown["stops"], *truth.verdict(drafted), strict=True):
            assert near(chance, stop)
            assert (after == ["–"] * 4) if stop == 0 else (stop < 1e-12 or all(map(near, after, row)))

    text, target, mine = re.match(r"([A-D]+) target ([\d.]+), rule ([\d.]+)", shown["reading"]).groups()
    cell = tuple(map(LETTERS.index, text))
    assert int("".join(map(str, cell)), 4) == shown["at"]
    assert near(target, truth.right.get(cell, 0.0)) and near(mine, truth.law.get(cell, 0.0))
    if variation > 1e-12:
        cells = product(range(4), repeat=shown["n"])
        gaps = {cell: truth.law.get(cell, 0) - truth.right.get(cell, 0) for cell in cells}
        largest = sorted(map(abs, gaps.values()), reverse=True)
        for (name, right, law, gap), size in zip(shown["worst"], largest, strict=False):
            cell = tuple(map(LETTERS.index, name))
            assert near(right, truth.right.get(cell, 0.0)) and near(law, truth.law.get(cell, 0.0))
            assert near(gap, gaps[cell])
            assert abs(gaps[cell]) == pytest.approx(size, abs=1e-9)
    else:
        assert shown["worst"] == [["Nowhere."]]
    if shown["draws"]:
        assert near(shown["tv0"], expected_empirical_variation(truth.right, shown["draws"]))
    else:
        assert shown["tv"] == shown["tv0"] == shown["pvalue"] == "–"
    assert not page.errors
    return shown | {"truth": truth}


def click(page, identity: str) -> None:
    page.evaluate(f"document.getElementById({identity!r}).click()")


def choose(page, identity: str, value: str) -> None:
    page.evaluate(f"document.getElementById({identity!r}).value = {value!r}")
    page.evaluate(f"document.getElementById({identity!r}).dispatchEvent(new Event('change'))")


def focus(page, identity: str) -> None:
    page.evaluate(f"document.getElementById({identity!r}).focus()")


@needs_browser
def test_the_first_figure_stands_in_under_a_second(page):
    times = []
    for _ in range(3):
        page.open(PAGE.as_uri())
        times.append(page.until("performance.getEntriesByName('first figure')[0]?.startTime"))
        page.until("performance.getEntriesByName('first-contentful-paint')[0]?.startTime")
        assert page.evaluate("document.querySelectorAll('#place rect').length") == 12
    assert min(times) < 1000
    assert set(page.requests) <= {"about:blank", PAGE.as_uri(), "data:,"} and not page.errors


@needs_browser
def test_every_bar_and_preset(page):
    page.open(PAGE.as_uri() + "#draws=300")
    agree(page)
    for side, name in product("pq", LETTERS):
        before = page.evaluate(SHOWN)[side][LETTERS.index(name)]
        focus(page, side + name)
        page.press("ArrowRight", 3)
        assert agree(page)[side][LETTERS.index(name)] == before + 3
        page.press("ArrowLeft", 3)
    assert page.evaluate(SHOWN)["p"] == [40, 30, 20, 10]  # what the other bars were is not forgotten on the way
    focus(page, "pA")
    page.press("End")
    assert agree(page)["p"] == [100, 0, 0, 0]
    page.press("Home")
    assert agree(page)["p"] == [0, 50, 33, 17]
    presets = page.evaluate("[...document.querySelectorAll('#presets button')].map((b) => b.textContent)")
    assert {"temperature", "filter", "argmax draft", "disjoint"} <= set(presets)
    for k, name in enumerate(presets):
        page.evaluate(f"document.querySelectorAll('#presets button')[{k}].click()")
        shown = agree(page)
        assert (shown["distance"] == "none") and (name != "disjoint" or float(shown["overlap"]) == 0)


@needs_browser
def test_every_rule_setting_and_size(page):
    page.open(PAGE.as_uri() + "#p=43-29-19-9&q=14-36-11-39")
    listed = page.evaluate("[...document.getElementById('rule').options].map((o) => o.value)")
    assert set(NAMES) <= set(listed)
    for k, name in enumerate(NAMES):
        choose(page, "rule", name)
        click(page, f"g{1 + k % 3}")
        click(page, f"n{2 + k % 3}")
        for x in range(1 + k % 3):
            choose(page, f"d{x}", str((k + x) % 4))
        shown = agree(page)
        assert shown["rule"] == name and (shown["distance"] == "none" or name not in ("token", "block", "match"))
    assert page.evaluate("document.getElementById('set').disabled")  # the last exhibit sets its own
    for name in ("token", "block", "match", "lenience", "squared ratio"):
        choose(page, "rule", name)
        for setting in SETTINGS:
            choose(page, "set", setting)
            shown = agree(page)
            assert shown["set"] == setting and (name in ("lenience", "squared ratio") or shown["distance"] == "none")


@needs_browser
def test_a_round_step_by_step(page):
    page.open(PAGE.as_uri() + "#g=3&n=4&rule=block")
    kept = set()
    for _ in range(12):
        click(page, "forth")
        drawn = agree(page)
        guesses = [int(row[1]) for row in drawn["guesses"]]
        assert ", ".join(LETTERS[x] for x in guesses) in drawn["say"]
        click(page, "forth")
        stopped = agree(page)
        uniform = float(re.search(r"number, (0\.\d+|1\.000),", stopped["say"])[1])
        ends = [sum(stopped["truth"].verdict(guesses)[0][: k + 1]) for k in range(4)]
        k = page.evaluate("[...document.getElementById('stops').rows].findIndex((row) => row.className === 'drawn')")
        assert (ends[k - 1] if k else 0) - 1e-3 <= uniform <= ends[k] + 1e-3
        click(page, "forth")
        wrote = re.search(r"wrote ([A-D, ]+):", agree(page)["say"])[1].split(", ")
        assert wrote[:-1] == [LETTERS[x] for x in guesses[:k]]
        kept.add(k)
    assert len(kept) > 1
    guesses = page.evaluate(SHOWN)["guesses"]
    for _ in range(3):
        click(page, "back")
    assert page.evaluate("document.getElementById('back').disabled")
    assert agree(page)["guesses"] == guesses


@needs_browser
@pytest.mark.parametrize("rule", ["token", "resample from p", "r <= ratio"])
def test_draws_and_their_tests(page, rule):
    """16 cells, read one by one: what stands there is what the library makes of these counts."""
    page.open(PAGE.as_uri() + f"#n=2&rule={rule.replace(' ', '+')}")
    for button in (1, 2, 0):
        page.evaluate(f"document.querySelectorAll('[data-more]')[{button}].click()")
        agree(page)
    counts = {}
    focus(page, "at")
    page.press("Home")
    for cell in product(range(4), repeat=2):
        counts[cell] = int(re.search(r"drawn ([\d,]+) of", agree(page)["reading"])[1].replace(",", ""))
        page.press("ArrowRight")
    shown = agree(page)
    assert sum(counts.values()) == shown["draws"] == 10101
    right = {cell: shown["truth"].right.get(cell, 0.0) for cell in counts}
    assert near(shown["tv"], empirical_variation(counts, right))
    p_value = g_test(counts, right).p_value
    assert near(shown["pvalue"], p_value) if p_value else shown["pvalue"] in ("0", "below 1e-300")
    assert (p_value > 1e-6) == (rule == "token")
    assert g_test(counts, {cell: shown["truth"].law.get(cell, 0.0) for cell in counts}).p_value > 1e-6
    first = page.evaluate("document.getElementById('tv').textContent")
    page.open(PAGE.as_uri() + f"#n=2&draws=10101&rule={rule.replace(' ', '+')}")  # the address gives the same draws
    assert agree(page)["tv"] == first
    click(page, "clear")
    assert agree(page)["draws"] == 0
    click(page, "run")
    page.until("parseInt(document.getElementById('draws').textContent) > 0")
    click(page, "run")
    assert agree(page)["draws"] > 0


@needs_browser
def test_the_address_holds_the_state(page):
    state = "p=10-20-30-40&q=25-25-25-25&rule=squared+ratio&g=3&n=4&d=DCB&draws=777&at=200&real=4&theme=dark"
    page.open(f"{PAGE.as_uri()}#{state}")
    before = agree(page)
    assert [row[1] for row in before["guesses"]] == ["3", "2", "1"] and before["draws"] == 777 and before["at"] == 200
    focus(page, "pA")
    page.press("ArrowRight")
    page.until("location.hash.includes('p=11-')")
    moved = agree(page)
    page.open(PAGE.as_uri() + moved["hash"])
    again = agree(page)
    assert {k: again[k] for k in again if k != "truth"} == {k: moved[k] for k in moved if k != "truth"}
    click(page, "reset")
    page.until("location.hash === '' || location.hash === '#theme=dark'")
    assert agree(page)["p"] == [40, 30, 20, 10]
    page.open(PAGE.as_uri() + "#p=x&rule=%3Cscript%3E&n=99&d=<b>")
    assert agree(page)["rule"] == "token"


@needs_browser
def test_recorded_rounds_are_shown_as_recorded(page):
    page.open(PAGE.as_uri())
    rounds = json.loads(page.evaluate("document.getElementById('rounds').textContent"))
    written = rounds["prompt"]
    place = "[...document.getElementById('probable').rows].map((row) => [...row.cells].map((c) => c.textContent))"
    for number, r in enumerate(rounds["rounds"], 1):
        for k, at in enumerate(r["places"]):
            fate, rows = page.evaluate("document.getElementById('fate').textContent"), page.evaluate(place)
            p, q = at["rows"][at["guess"]][1:]
            assert f"Round {number}, guess {k + 1} of" in fate and ("and kept" in fate) == (k < r["accepted"])
            assert near(re.search(r"probability ([\d.]+),", fate)[1], min(1, p / q))
            assert near(re.search(r"overlap ([\d.]+);", fate)[1], at["overlap"])
            for (name, *shown), (_, *right) in zip(rows, at["rows"], strict=False):
                assert all(map(near, shown, right)), name
            assert rows[-1][0] == "all others"
            assert [name.endswith("(guess)") for name, *_ in rows].index(True) == at["guess"]
            assert page.evaluate("document.getElementById('code').textContent").startswith(written)
            click(page, "after")
        written += "".join(r["drafted"][: r["accepted"]]) + r["next"]
    assert page.evaluate("document.getElementById('after').disabled")
    focus(page, "real")
    page.press("Home")
    assert "Round 1, guess 1" in page.evaluate("document.getElementById('fate').textContent")
    assert page.evaluate("document.getElementById('before').disabled") and not page.errors


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_telephone_and_both_themes(page, dark):
    for state in (
        "",
        "#rule=argmax+draft&g=3&n=4&draws=1000&step=3",
        "#rule=raw+bonus&p=1-1-1-97&q=97-1-1-1&n=2&real=3",
    ):
        for width in (360, 390):
            page.open(PAGE.as_uri() + state, width, 740, dark)
            agree(page)
            assert page.evaluate("document.documentElement.scrollWidth") == width
        small = page.evaluate("""[...document.querySelectorAll("button, .choice span")]
          .filter((e) => e.offsetHeight && e.offsetHeight < 32).map((e) => e.textContent)""")
        assert small == []  # a finger finds them
    contrast = """(() => {
      const probe = document.body.appendChild(document.createElement("i"));
      const light = (colour) => {
        probe.style.color = colour;
        const linear = (x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        const [r, g, b] = getComputedStyle(probe).color.match(/[\\d.]+/g).map((x) => linear(x / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
      };
      const ratio = (a, b) => Math.max(light(a), light(b)) / Math.min(light(a), light(b));
      return ["ink", "soft", "p", "q", "kept", "odd"].map((name) => ratio(`var(--${name})`, "var(--paper)"));
    })()"""
    ink, soft, *marks = page.evaluate(contrast)
    assert ink > 12 and soft > 4.5 and min(marks) > 3
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    click(page, "theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != colour


@needs_browser
def test_by_keyboard_alone_and_by_name(page):
    page.open(PAGE.as_uri() + "#draws=10&step=1&real=2")
    agree(page)
    reachable = page.evaluate("""[...document.querySelectorAll("button, select, input")]
      .filter((e) => !e.disabled && !e.hidden && (e.type !== "radio" || e.checked))
      .map((e, k) => (e.id ||= "focus" + k))""")
    reached = []
    for _ in range(len(reachable) + 6):
        page.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert set(reachable) <= set(reached)
    order = [identity for identity in reached if identity in reachable]
    assert order[: len(reachable)] == reachable  # as they stand on the page
    focus(page, "g2")
    page.press("ArrowRight")
    assert agree(page)["g"] == 3
    focus(page, "forth")
    page.press("Enter")
    assert "uniform number" in agree(page)["say"]
    focus(page, "d1")
    page.press("ArrowDown")
    focus(page, "rule")
    page.press("End")
    assert agree(page)["rule"] == page.evaluate("[...document.getElementById('rule').options].at(-1).value")
    nodes = page("Accessibility.getFullAXTree")["nodes"]
    names = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n.get("ignored")]
    asked = [(role, name) for role, name in names if role in ("button", "slider", "combobox", "radio", "image")]
    assert len(asked) > 30 and all(name.strip() for _, name in asked)


# --- in a notebook ---------------------------------------------------------------------------------------------------


@needs_browser
def test_in_a_notebook(page, tmp_path):
    shown = lab.laboratory("rule=argmax+draft&n=2&g=1", height=500)
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!DOCTYPE html><title>a notebook</title>{shown._repr_html_()}", encoding="utf-8")
    page.requests.clear()
    page.open(notebook.as_uri(), 1000)
    inside = "document.querySelector('iframe').contentDocument"
    page.until(f"{inside}?.getElementById('distance')?.textContent")
    assert page.evaluate(f"{inside}.getElementById('rule').value") == "argmax draft"
    page.evaluate(f"{inside}.getElementById('g3').click()")
    truth = Truth([40, 30, 20, 10], [15, 35, 10, 40], "argmax draft", g=3, n=2)
    assert near(page.evaluate(f"{inside}.getElementById('accepted').textContent"), truth.accepted)
    assert page.evaluate(f"{inside}.getElementById('copy').hidden")  # there is no address to copy
    assert not page.errors and set(page.requests) <= {"about:blank", "about:srcdoc", "data:,", notebook.as_uri()}


def test_a_notebook_keeps_the_page_once():
    assert len(repr(lab.laboratory())) < 100 < len(lab.laboratory().data)


def test_a_state_cannot_leave_its_attribute_and_a_missing_page_is_said(tmp_path, monkeypatch):
    page = html.unescape(re.search(r'srcdoc="([^"]*)"', lab.laboratory('#"><script>').data)[1])
    assert page.replace(' data-state="&quot;&gt;&lt;script&gt;"', "") == PAGE.read_text(encoding="utf-8") != page
    monkeypatch.setattr(lab, "PAGE", tmp_path / "index.html")
    with pytest.raises(InvalidArgument, match="clone the repository"):
        lab.laboratory()
