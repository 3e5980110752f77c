"""The bug hunt: every fault can be found, draws follow the laws that are shown, and the checks are not fooled."""

from collections import Counter

import pytest

from speclib.errors import InvalidArgument
from speclib.exactness.library import SUSPECTS
from speclib.law.statistics import g_test
from speclib.workbook import n04b


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_reference_finds_all_twelve(seed):
    table = n04b.score(n04b.reference, seed)
    assert len(table) == len(set(n04b.HIDDEN)) == 12 and table["right"].all() and set(n04b.HIDDEN) <= set(SUSPECTS)
    assert table["draws"].sum() < 4000 and table["draws"].min() >= 3


def test_each_sampler_draws_from_its_own_law_and_counts():
    known = n04b.laws()
    for sampler, name in zip(n04b.samplers(), n04b.HIDDEN, strict=True):
        for case in ("token/text/v3-g2-l4", "tree/with-replacement/2"):
            assert g_test(Counter(sampler.draw(case, 1000)), known[case][name]).p_value > 1e-6
        assert sampler.draws == 2000 and name not in repr(sampler)
        assert all(sum(laws[name].values()) == pytest.approx(1, abs=1e-12) for laws in known.values())


def test_every_suspect_can_be_told_from_every_other():
    known = n04b.laws()
    names = list(known[n04b.PLACES[0]])
    assert set(n04b.suspects()["suspect"]) | {"right"} == set(names) and list(n04b.cases()["case"]) == list(known)
    for i, name in enumerate(names):
        assert all(
            max(n04b.distance(laws[name], laws[other]) for laws in known.values()) > 1e-3 for other in names[:i]
        ), name


@pytest.mark.parametrize(
    ("case", "n"),
    [("token/ordinary/3", 0), ("no such case", 1), ("token/ordinary/3", 20_001), ("token/ordinary/3", 2.5)],
)
def test_what_cannot_be_drawn(case, n):
    with pytest.raises(InvalidArgument, match="20,000 draws in all"):
        n04b.samplers()[0].draw(case, n)


WRONG = [
    (n04b.my_suspicion, lambda texts, law: [text for text in texts if text in law]),
    (n04b.my_suspicion, lambda texts, law: sorted({text for text in texts if text not in law})),
    (n04b.my_log_likelihood, lambda texts, law: sum(law.get(text, 0) for text in texts)),
    (n04b.my_log_likelihood, lambda texts, law: -1e300),
    (n04b.my_detective, lambda sampler: "reseeded"),
    (n04b.my_detective, lambda sampler: [sampler.draw("token/ordinary/3", 10_000) for _ in range(9)]),
]


@pytest.mark.parametrize(("check", "answer"), WRONG)
def test_a_wrong_answer_is_told_so(check, answer, capsys):
    check(answer)
    assert capsys.readouterr().out.startswith("not yet: ")
