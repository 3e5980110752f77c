"""The exactness vectors: two implementations that share no line agree on all, files are reproduced, and every law of
the museum fails some.
"""

import json
from collections import Counter
from pathlib import Path

import pytest

from speclib.exactness import cases
from speclib.exactness.library import expected, law, numbers, verdict
from speclib.law.exact import max_difference

FOLDER = Path(__file__).resolve().parent.parent / "data" / "vectors"
FILES = {name: json.loads((FOLDER / f"{name}.json").read_text()) for name in cases.FILES}
CASES = [case for file in FILES.values() for case in file["cases"]]


def test_there_are_enough_of_every_kind():
    kinds = Counter(case["kind"] for case in CASES)
    assert len(CASES) >= 300 and len({case["id"] for case in CASES}) == len(CASES)
    assert set(cases.KINDS) < set(kinds) and all(count >= 2 for count in kinds.values())
    for kind in ("with replacement", "without replacement", "twins", "point masses", "guess not made"):
        assert kinds[f"tree, {kind}"] >= 6
    written = [case for case in CASES if case["task"] == "text"]
    assert {case["eos"] is None for case in written} == {True, False} and any(case["sampling"] for case in written)
    assert sum(case["length"] > case["gamma"] + 1 for case in written) >= 30
    assert all(case["vocabulary"] <= 4 for case in written)
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000


def test_every_case_follows_the_schema():
    schema = json.loads((FOLDER / "schema.json").read_text())
    validator = pytest.importorskip("jsonschema").Draft202012Validator(schema)
    for file in FILES.values():
        validator.validate(file)
    fields = [schema["$defs"][task]["required"] for task in ("verify", "text")]
    page = (FOLDER / "README.md").read_text()
    assert f"answers all {len(CASES)} cases" in page
    assert all(f"`{name}`" in page or f"`{name}." in page for names in fields for name in names)


@pytest.mark.parametrize("name", cases.FILES)
def test_the_files_are_made_again_byte_for_byte(name):
    assert (FOLDER / f"{name}.json").read_bytes() == cases.written(name).encode()


@pytest.mark.parametrize("name", cases.FILES)
def test_the_library_agrees_with_the_vectors(name):
    for case in map(numbers, FILES[name]["cases"]):
        assert max_difference(law(case), expected(case)) < 1e-12, case["id"]
        if case["task"] == "verify":
            found, wanted = verdict(case), case["law"]
            for k, stop in enumerate(wanted["stop"]):
                assert float(found.stop_probs[0, k]) == pytest.approx(stop, abs=1e-12), case["id"]
                if stop:
                    assert found.next_probs[0, k].tolist() == pytest.approx(wanted["next"][k], abs=1e-12), case["id"]
