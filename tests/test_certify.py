"""Certify: right programs pass, in three languages; wrong ones fail and are named; what could not be seen is said;
nothing answered is lost.
"""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import speclib
from speclib.__main__ import main
from speclib.commands.certify import MARK, table
from speclib.errors import InvalidArgument
from speclib.exactness import fingerprints
from speclib.exactness.judge import FEATURES, LEVEL, Suite, all_cases, chosen, read_draws, suite_of
from speclib.exactness.library import SUSPECTS, Suspect, law, verdict
from speclib.law.distributions import seeded
from speclib.law.exact import Loop
from speclib.law.rules import RULES, Verdict, chain_stops
from speclib.law.statistics import g_test
from speclib.museum import EXHIBITS, accepts, residuals

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "data" / "vectors"
NAMES = [name for name in SUSPECTS if name != "the token rule"]


@pytest.fixture(scope="module")
def suite():
    return suite_of(("token",), frozenset(), False)


def certify(arguments, capsys):
    code = main(["certify", *arguments])
    return code, capsys.readouterr().out


def sampler(suspect=None):
    """A function that draws by a suspect's law (None: the right one), and another that states it."""

    def draws(case, n, seed):
        exact = law(case, suspect)
        texts = list(exact)
        chances = np.array([exact[text] for text in texts])
        return [list(texts[i]) for i in np.random.default_rng(seed).choice(len(texts), n, p=chances / chances.sum())]

    def states(case):
        if case["task"] == "text":
            return {"law": {",".join(map(str, text)): chance for text, chance in law(case, suspect).items()}}
        found = verdict(case, suspect)
        return {"stop": found.stop_probs[0].tolist(), "next": found.next_probs[0].tolist()}

    return draws, states


def test_certify_is_found_when_it_is_asked_for():
    asks = (
        "import sys, speclib; assert 'scipy.stats' not in sys.modules; from speclib import certify; "
        "print(certify.__name__)"
    )
    assert (
        subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, check=True).stdout == "certify\n"
    )
    with pytest.raises(AttributeError, match="no attribute 'certified'"):
        speclib.certified  # noqa: B018


# --- programs in other languages -------------------------------------------------------------------------------------


@pytest.fixture
def compiled(tmp_path):
    """Compiles a C file and returns the program's path."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is installed")

    def made(source):
        subprocess.run([compiler, "-Wall", "-Werror", "-o", tmp_path / "rule", source, "-lm"], check=True)
        return str(tmp_path / "rule")

    return made


def test_an_adapter_in_c(compiled, capsys):
    source = VECTORS / "adapters" / "token_rule.c"
    code, out = certify(["--", compiled(source)], capsys)
    assert code == 0 and "112 right, 0 wrong, 0 skipped, 0 unanswered" in out
    unseen = "argmax draft, one-sided top-k, short nucleus, raw bonus"  # it writes no texts
    assert f"COULD NOT BE SEEN by this run: {unseen}" in out
    assert len(source.read_text().splitlines()) <= 40 and max(map(len, source.read_text().splitlines())) <= 120


def test_every_rule_and_every_case_in_c(compiled, capsys):
    code, out = certify(["--", compiled(ROOT / "tests" / "all_rules.c")], capsys)
    assert code == 0 and f"{len(all_cases())} right, 0 wrong, 0 skipped, 0 unanswered" in out


def test_an_adapter_in_javascript(capsys):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    source = VECTORS / "adapters" / "token_rule.mjs"
    code, out = certify(["--quick", "--n", "2000", "--", "node", str(source)], capsys)
    assert code == 0 and "25 right, 0 wrong, 0 skipped, 0 unanswered" in out
    assert len(source.read_text().splitlines()) <= 40 and max(map(len, source.read_text().splitlines())) <= 120


def pages_code(page):
    return re.findall(r"```python\n(.*?)```", (VECTORS / page).read_text(encoding="utf-8"), re.S)


def test_the_program_of_the_protocols_page(tmp_path, capsys):
    """Word for word; and with one slip it is named."""
    program = tmp_path / "mine.py"
    program.write_text(pages_code("PROTOCOL.md")[0])
    code, out = certify(["--quick", "--n", "2000", "--", sys.executable, str(program)], capsys)
    assert code == 0 and "12 right, 0 wrong" in out
    program.write_text(program.read_text().replace("max(a - b, 0) for a, b in", "a for a, b in"))
    code, out = certify(["--quick", "--n", "2000", "--", sys.executable, str(program)], capsys)
    assert (
        code == 1
        and "MOST PROBABLY resample from p: draws from p" in out
        and "(the right law cannot give these answers; see notebook 04)" in out
    )


# --- engines ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engines():
    return SimpleNamespace(**runpy.run_path(str(VECTORS / "adapters" / "engines.py")))


def rounds(rule, p, q, drafted, generator):
    """What each row's round emits: (accepted [B], next [B])."""
    chance = float(torch.rand((), generator=generator)) if generator else float(torch.rand(()))
    stop, after = RULES[rule].verdict(p.double(), q.double(), drafted.long()).draw(seeded(int(chance * 1e9)))
    return stop, after


def padded(drafted, stop, after):
    """Accepted guesses and the next token, -1 behind them. [B, n+1]"""
    place = torch.arange(drafted.shape[1] + 1)
    tokens = torch.cat([drafted, drafted[:, :1]], 1).where(place < stop[:, None], -1)
    return tokens.where(place != stop[:, None], after[:, None].to(tokens.dtype)).int()


def flashinfers(draft_probs, draft_token_ids, target_probs, maybe_output_accepted_token_num=None):
    assert draft_token_ids.dtype == torch.int32 and target_probs.dtype == draft_probs.dtype == torch.float32
    stop, after = rounds("token", target_probs, draft_probs, draft_token_ids, None)
    return padded(draft_token_ids, stop, after), stop, stop


def vllms(drafted, counts, longest, ends, draft_probs, target_logits, bonus, settings, synthetic_mode=False):
    n, g = len(counts), longest
    assert drafted.ndim == 1 and draft_probs.shape == target_logits.shape == (n * g, target_logits.shape[-1])
    assert counts == [g] * n and ends.tolist() == [g * (k + 1) for k in range(n)] and bonus.shape == (n, 1)
    assert all(part.is_contiguous() for part in (drafted, draft_probs, target_logits, bonus))
    assert not settings.all_greedy and settings.all_random and (settings.temperature == 1).all()
    last = torch.nn.functional.one_hot(bonus.long(), target_logits.shape[-1])
    p = torch.cat([target_logits.softmax(-1).reshape(n, g, -1), last], 1)
    return padded(
        drafted.reshape(n, g), *rounds("token", p, draft_probs.reshape(n, g, -1), drafted.reshape(n, g), None)
    )


def vllms_of_2025(drafted, counts, longest, ends, draft_probs, target_probs, bonus, settings):
    return vllms(drafted, counts, longest, ends, draft_probs, target_probs.log(), bonus, settings)


def sglangs(predicts, path, accepted, candidates, index, child, sibling, coins, last, p, q, single, total, same,
            *, block_verification=False):  # fmt: skip
    assert (single, total) == (1.0, 1.0) and coins.shape == candidates.shape == index.shape == child.shape == p.shape[
        :2
    ]
    assert last.shape == accepted.shape and predicts.shape == (index.numel(),) and (sibling == -1).all()
    guesses = candidates[:, 1:]
    if q.shape == p.shape:  # a tree with an empty q: siblings pass by the target's own chances
        assert not q.any()
        q = torch.nn.functional.one_hot(guesses, p.shape[-1])
    stop, after = rounds("block" if block_verification else "token", p, q, guesses, None)
    for row, k in enumerate(stop.tolist()):
        assert [child[row, i] for i in range(k)] == list(range(1, k + 1))
        accepted[row], path[row, : k + 1] = k, index[row, : k + 1].int()
        predicts[index[row, : k + 1]] = torch.cat([guesses[row, :k], after[row, None]]).int()


def rejections(draft_probs, target_probs, generator, draft_tokens):
    at = torch.arange(len(draft_tokens))
    ratio = target_probs.squeeze(0)[:-1][at, draft_tokens] / draft_probs[at, draft_tokens]
    return (torch.rand(ratio.shape, generator=generator) > ratio.clamp(max=1)).nonzero()


def recovered(draft_probs, target_probs, generator, num_accepted):
    rest = (target_probs[num_accepted] - draft_probs[num_accepted]).clamp(min=0)
    return torch.multinomial(rest, 1, generator=generator).item()


IN_2026 = {"verify_sampling": SimpleNamespace(chain_speculative_sampling_triton=sglangs)}
HOMES = {
    "flashinfer": ("flashinfer.sampling", {"chain_speculative_sampling": flashinfers}),
    "vllm": ("vllm.v1.sample.rejection_sampler", {"rejection_sample": vllms}),
    "vllm of 2025": ("vllm.v1.sample.rejection_sampler", {"rejection_sample": vllms_of_2025}),
    "sglang-tree": ("sgl_kernel", {"tree_speculative_sampling_target_only": sglangs}),
    "sglang-chain": ("sglang.kernels.ops.speculative", IN_2026),
    "sglang-block": ("sglang.kernels.ops.speculative", IN_2026),
    "tensorrt-llm": (
        "tensorrt_llm._torch.pyexecutor.sampling_utils",
        {"get_rejected_indices": rejections, "sample_rejected": recovered},
    ),
}


@pytest.mark.parametrize("name", HOMES)
def test_an_engine_is_asked_and_read_in_the_right_way(name, engines, monkeypatch):
    """By a stand-in that has the arguments of the engine's function, demands their shapes, and follows the rule."""
    home, functions = HOMES[name]
    parts = home.split(".")
    for k in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:k]), SimpleNamespace(__path__=[], __spec__=None))
    vars(sys.modules[home]).update(functions)
    engine = name.removesuffix(" of 2025")
    torch.manual_seed(0)
    report = speclib.certify(
        engines.connect(engine), rules=engines.ENGINES[engine][1], skip=engines.SKIP, n=400, quick=True
    )
    assert report and report.count("right") >= 3, report


@pytest.mark.parametrize("name", ["vllm", "tensorrt-llm", "sglang-block"])
def test_a_missing_engine_is_one_line(name, capsys):
    adapter = VECTORS / "adapters" / "engines.py"
    code = main(["certify", "--", sys.executable, str(adapter), name])
    said = capsys.readouterr()
    assert code == 2 and said.err.count("\n") == 1 and f"{name} cannot be imported here: No module named" in said.err


def test_transformers_own_verification_is_right(engines):
    report = speclib.certify(engines.connect("transformers"), skip=engines.SKIP, n=1000, quick=True)
    assert report and report.count("right") == 11, report


def test_transformers_on_two_guesses_and_eight_thousand_draws(engines):
    """The case with most outcomes, held against its exact law."""
    cases = [case for case in chosen(skip=engines.SKIP) if len(case["drafted"]) == 2]
    most = max(cases, key=lambda case: len(law(case)))
    counts = Suite([most]).counts({0: read_draws(engines.connect("transformers")(most, 8000, 0), most, 8000)})
    (p_value,) = Suite([most]).p_values(counts).values()
    assert p_value > 1e-6


def test_transformers_ensemble_weight_is_the_ensemble_rule_and_no_other(engines):
    draws, skip = engines.connect("transformers"), engines.SKIP
    assert speclib.certify(draws, rules="ensemble", skip=skip, n=2000)

    def weighted(case, n, seed):
        return draws({**case, "rule": "ensemble", "parameters": {"weight": 0.6}}, n, seed)

    report = speclib.certify(weighted, skip=skip, n=1000, quick=True)
    assert not report and report.code == 1 and not report.named  # lossy, and no fault of the museum


def test_transformers_assisted_generation_end_to_end(monkeypatch):
    """The embedded pair, three tokens, two guesses a round: it follows the target; with the weight it does not."""
    pair, sampling = speclib.load_pair(), speclib.Sampling(top_k=2)
    target, draft = pair.target.model, pair.draft.model
    settings = {
        "num_assistant_tokens": 2,
        "num_assistant_tokens_schedule": "constant",
        "assistant_confidence_threshold": 0,
    }
    for name, value in settings.items():
        monkeypatch.setattr(draft.generation_config, name, value)
    prompt = torch.tensor([pair.tokenizer("def add(a, b):\n    return a")["input_ids"]])
    exact = {(): 1.0}
    for _ in range(3):
        longer = {}
        for text, mass in exact.items():
            with torch.no_grad():
                read = target(torch.cat([prompt, torch.tensor([text], dtype=torch.long)], 1))
            row = sampling.probabilities(read.logits[0, -1].double())
            longer |= {(*text, token): mass * float(row[token]) for token in row.nonzero().flatten().tolist()}
        exact = longer

    def drawn(n, **weight):
        options = {"do_sample": True, "top_k": 2, "max_new_tokens": 3, "eos_token_id": None, "pad_token_id": 0}
        texts = (target.generate(prompt, assistant_model=draft, **options, **weight) for _ in range(n))
        return Counter(tuple(text[0, prompt.shape[1] :].tolist()) for text in texts)

    torch.manual_seed(0)
    assert g_test(drawn(60), exact).p_value > 1e-6
    assert g_test(drawn(15, assistant_ensemble_weight=0.1), exact).p_value < 1e-6


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["squared ratio", "argmax bonus", "reused noise", "siblings apart", "bonus without its mask"]
)
def test_a_fault_is_named_from_draws_and_from_its_law(name):
    draws, states = sampler(SUSPECTS[name])
    drawn = speclib.certify(draws, n=2000)
    assert drawn.code == 1 and drawn.named[0] == name and drawn.ratio > 3
    assert f"MOST PROBABLY {name}: {SUSPECTS[name].what}" in str(drawn)
    stated = speclib.certify(states, answers="law")
    assert stated.code == 1 and stated.named == [name]


@pytest.mark.parametrize("rule", ["token", "block", "match", "typical", "lenience", "ensemble"])
def test_the_library_itself_passes(rule):
    draws, states = sampler()
    assert speclib.certify(states, rules=rule, answers="law") and speclib.certify(draws, rules=rule, n=1000, quick=True)


def test_every_fault_fails_a_vector_and_the_page_says_which(suite):
    assert set(EXHIBITS) < set(SUSPECTS)
    fails = dict(zip(SUSPECTS, (suite.differences > 1e-6).sum(1), strict=True))
    assert all(fails[name] >= 1 for name in NAMES) and fails["the token rule"] == 0
    page = (VECTORS / "README.md").read_text(encoding="utf-8")
    assert page.split(MARK)[1].strip() == table(), "run python -m speclib vectors"
    for name in NAMES:
        assert f"| {name} | {SUSPECTS[name].what} | {fails[name]} of {len(suite.cases)} |" in page


def last_token(case, n, seed):
    """Whatever it should end with, it ends with token 0."""
    return [[*text[:-1], 0] for text in sampler()[0](case, n, seed)]


def between(p, q, drafted):
    """Neither the ratio nor its square."""
    return Verdict(chain_stops(accepts(p, q, drafted) ** 1.5), residuals(p, q))


HALFWAY = Suspect(name="halfway", what="", loop=Loop(law=between))


@pytest.mark.parametrize("draws", [last_token, sampler(HALFWAY)[0]], ids=["impossible", "near one of the museum"])
def test_a_fault_outside_the_museum_is_not_named(draws):
    report = speclib.certify(draws, n=3000, skip=["text", "settings"])
    assert report.code == 1 and report.named == [] and "no fault of the museum explains" in str(report)


# --- power -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "n"), [("reseeded", 100), ("squared ratio", 100), ("reused noise", 300)])
def test_power_is_what_happens(suite, name, n):
    """A run too small to be sure: how often a fault is seen is what was said before."""
    few, runs, rng = (
        Suite([case for case in suite.cases if case["kind"] == "ordinary"][5:8]),
        300,
        np.random.default_rng(0),
    )
    power, s = few.power(n)[name], list(SUSPECTS).index(name) + 1
    assert 0.1 < power < 0.95
    seen = 0
    for _ in range(runs):
        counts = {i: rng.multinomial(n, laws[s] / laws[s].sum()) for i, laws in enumerate(few.laws)}
        seen += min(few.p_values(counts).values()) < LEVEL / len(few.cases)
    assert seen / runs == pytest.approx(power, abs=0.15)  # a noncentral chi-square is rough at so few draws


def test_a_run_that_cannot_see_a_fault_says_so():
    report = speclib.certify(sampler()[0], skip=FEATURES, n=100, quick=True)
    assert (
        "COULD NOT BE SEEN by this run" in report.before()
        and "siblings apart" in report.before().rpartition("BE SEEN")[2]
    )
    assert report.power["argmax draft"] == 0 and "perhaps seen" in report.before()


def test_fingerprints(suite):
    """What is recorded: at 5,000 draws a case nine of ten runs name each fault, and the right law is never named. A
    few again, here.
    """
    recorded = json.loads((ROOT / "data" / "results" / "certify.json").read_text())
    assert (
        recorded["draws a case"] == 5000
        and recorded["runs"] == 20
        and recorded["right runs"] == 200
        and recorded["cases"] == len(suite.cases)
    )
    assert recorded["told"]["right"] == {"passed": 200} and recorded["indistinguishable"] == [
        ["right", "the token rule"]
    ]
    assert all(recorded["told"][name].get(name, 0) >= 18 for name in NAMES)
    again = fingerprints.confusion(suite, runs=2, right=10, seed=1)
    assert again["told"]["right"] == {"passed": 10} and all(again["told"][name] == {name: 2} for name in NAMES)


# --- programs that misbehave -----------------------------------------------------------------------------------------

HELLO = """
import json, sys, time
def hear(): return json.loads(sys.stdin.readline())
def say(**answer): print(json.dumps(answer), flush=True)
"""
START = """
say(id=hear()['id'], name='it', answers='law', skip=['text', 'settings', 'tree', 'mask', 'not made', 'no guess'])
"""
REJECTS = """
    asked = hear(); n = len(asked['case']['drafted'])
    say(id=asked['id'], stop=[1] + [0] * n, next=[asked['case']['p'][0]] + [None] * n)
"""
ONE = "if True:" + REJECTS


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("time.sleep(60)", "no answer within 3 s"),
        ("sys.exit('out of memory')", "it ended with exit code 1: out of memory"),
        ("print('hello there')", "an answer is one line, a JSON object"),
        ("say(id=hear()['id'], answers='colours')", 'hello must say "answers"'),
        ("say(id=hear()['id'], answers='law', rules=[[1]])", 'hello must say "answers"'),
    ],
)
def test_a_program_that_does_not_introduce_itself(does, words, capsys, monkeypatch):
    code = main(["certify", "--timeout", "3", "--", sys.executable, "-c", HELLO + does])
    err = capsys.readouterr().err
    assert (
        code == 2
        and words in err
        and "Traceback" not in err
        and len([line for line in err.splitlines() if line.startswith("speclib: ")]) == 1
    )


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("time.sleep(60)", "no answer within 3 s"),
        ("sys.stderr.write('CUDA error\\n'); sys.exit(3)", "it ended with exit code 3: CUDA error"),
        ("import os; os.kill(os.getpid(), 9)", "it ended with exit code -9"),
    ],
)
def test_what_was_answered_before_it_died_is_judged(does, words, tmp_path, capsys):
    code = main(
        [
            "certify",
            "--timeout",
            "3",
            "--json",
            str(tmp_path / "r.json"),
            "--",
            sys.executable,
            "-c",
            HELLO + START + ONE + does,
        ]
    )
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    outcomes = [finding["outcome"] for finding in report["findings"]]
    assert outcomes[0] == "wrong" and set(outcomes[1:]) == {"unanswered"} and code == report["code"] == 1
    assert f"1 times: {words}" in out and "not asked: " in out and len(out.splitlines()) < 12


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("print('[info] loading'); hear()", "an answer is one line, a JSON object"),
        ("say(id=hear()['id'], stop=[0.5], next=[])", "stop and next must have"),
        ("say(id=hear()['id'], law='none')", "a law has the fields stop and next"),
        (
            "a = hear(); n = len(a['case']['p']); say(id=a['id'], stop=[0.3] * n, next=a['case']['p'])",
            "no law: its probabilities sum to",
        ),
        ("say(id=hear()['id'], stop=float('nan'), next=[])", "a law has the fields stop and next"),
    ],
)
def test_nonsense_is_one_line_and_the_rest_is_asked(answer, words, capsys):
    program = HELLO + START + "while True:\n    " + answer
    code, out = certify(["--quick", "--", sys.executable, "-c", program], capsys)
    assert code == 2 and "0 right, 0 wrong, 0 skipped" in out and words in out and len(out.splitlines()) < 15


@pytest.mark.parametrize(
    ("draws", "words"),
    [
        (lambda case, n, seed: [[0]] * (n - 1), "asked for 100 draws, got 99"),
        (lambda case, n, seed: [[0, 9]] * n, "tokens below"),
        (lambda case, n, seed: [[]] * n, "one or more tokens"),
        (lambda case, n, seed: 7, "a list of lists of tokens"),
    ],
)
def test_draws_that_are_none(draws, words):
    report = speclib.certify(draws, n=100, quick=True)
    assert report.code == 2 and words in str(report)


def test_the_answer_is_hidden():
    def curious(case, n, seed):
        assert "law" not in case and "kind" not in case
        return sampler()[0](case, n, seed)

    assert speclib.certify(curious, n=500, quick=True)


def test_late_answers_are_not_taken_for_those_of_the_next_question(capsys):
    """Each answer comes twice: the second time it is one of a question before."""
    program = HELLO + START + "while True:" + REJECTS + "    say(id=asked['id'], stop='again')\n"
    code, out = certify(["--quick", "--", sys.executable, "-c", program], capsys)
    assert code == 1 and "0 unanswered" in out


def test_an_interrupted_run_is_judged_by_what_was_answered():
    asked = []

    def interrupted(case, n, seed):
        asked.append(case["id"])
        if len(asked) == 4:
            raise KeyboardInterrupt
        return sampler()[0](case, n, seed)

    report = speclib.certify(interrupted, n=500, quick=True)
    assert report.code == 2 and report.count("right") == 3 and len(asked) == 4
    assert "not asked: interrupted" in str(report)


def test_skipping_is_allowed_and_told():
    report = speclib.certify(
        lambda case, n, seed: None if case["task"] == "text" else sampler()[0](case, n, seed), n=500, quick=True
    )
    assert report.code == 0 and report.count("skipped") == 9 and "the program does not do this" in str(report)
    assert speclib.certify(lambda case, n, seed: None, n=100, quick=True).code == 2  # nothing was tested


def test_reports(tmp_path, capsys):
    program = HELLO + START + "while True:" + REJECTS
    code = main(
        [
            "certify",
            "--quick",
            "--json",
            str(tmp_path / "r.json"),
            "--junit",
            str(tmp_path / "r.xml"),
            "--",
            sys.executable,
            "-c",
            program,
        ]
    )
    out = capsys.readouterr().out
    report, junit = json.loads((tmp_path / "r.json").read_text()), ElementTree.parse(tmp_path / "r.xml").getroot()
    wrong = [finding["id"] for finding in report["findings"] if finding["outcome"] == "wrong"]
    assert code == 1 and wrong and f"{len(wrong)} wrong" in out and set(report["power"]) == set(SUSPECTS)
    assert (
        junit.get("failures") == str(len(wrong))
        and [case.get("name") for case in junit.iter("testcase") if case.find("failure") is not None] == wrong
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--n", "3", "--", "x"], "--n must be at least 100"),
        (["--", "/no/such/program"], "cannot start '/no/such/program'"),
        (
            ["--json", "/no/such/folder/r.json", "--", "x"],
            "/no/such/folder/r.json cannot be written: there is no folder",
        ),
        (["--junit", "/tmp", "--", "x"], "/tmp is a folder"),
        (["--skip", "flying", "--", sys.executable, "-c", HELLO + START], "'flying' is neither a rule"),
        (["--rule", "block", "--", sys.executable, "-c", HELLO + START], "it does not follow block; it follows token"),
    ],
)
def test_mistakes_in_the_call(arguments, words, capsys):
    assert main(["certify", *arguments]) == 2 and words in capsys.readouterr().err


def test_mistakes_in_process():
    for wrong in ({"answers": "colours"}, {"n": 5}, {"level": 0}, {"rules": "coin"}, {"skip": ["flying"]}):
        with pytest.raises(InvalidArgument):
            speclib.certify(sampler()[0], **wrong)


def test_vectors_are_written_where_one_wants_them(tmp_path, capsys):
    assert main(["vectors", "--out", str(tmp_path)]) == 0
    for name in ("chains", "texts"):
        assert (tmp_path / f"{name}.json").read_bytes() == (VECTORS / f"{name}.json").read_bytes()


def test_vectors_cannot_be_written_into_a_file(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert main(["vectors", "--out", str(tmp_path / "taken")]) == 2
    assert "cannot write to" in capsys.readouterr().err
