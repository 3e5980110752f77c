"""Copies first, a model elsewhere: who is asked, for how many, and who hears of it. The law: test_every_guesser.py."""

import pytest
import torch
from models import GREEDY, tiny

import speclib
from speclib.drafters import Draft, Drafter, FallbackDrafter, LookupDrafter, ModelDrafter, Session
from speclib.drafters.base import ModelledSession, draft_together
from speclib.errors import InvalidArgument


class Scripted(Drafter, Session):
    """Guesses what it is told for a text of each length, and remembers what was asked of it."""

    def __init__(self, guesses):
        self.guesses, self.asked, self.heard, self.prepared = guesses, [], [], 0

    def start(self, context, sampling, draw):
        return self

    def prepare(self, text):
        self.prepared = len(text)

    def propose(self, text, n, goes_on=None):
        self.asked.append((len(text), n))
        tokens = torch.tensor(self.guesses.get(len(text), [])[:n], dtype=torch.long)
        return Draft(tokens, torch.nn.functional.one_hot(tokens, 5).double())

    def follow(self, text):
        self.heard.append(len(text))


@pytest.mark.parametrize("kind", [Session, ModelledSession])
def test_a_session_without_guesses_of_its_own_says_so(kind):
    for ask in (lambda: kind().propose([0], 1), lambda: draft_together([kind().drafting([0], 1)])):
        with pytest.raises(NotImplementedError):
            ask()


def test_the_other_is_asked_where_the_first_is_silent_and_hears_of_the_rest():
    first, other = Scripted({3: [0, 1, 2, 3], 5: [4]}), Scripted({4: [1, 1, 1, 1]})
    guesser = FallbackDrafter(first, other, most=2).start(None, speclib.Sampling(), None)
    guesser.prepare([0, 1])
    assert (first.prepared, other.prepared) == (2, 2)
    assert [guesser.propose(list(range(k)), 4).tokens.tolist() for k in (3, 4, 5, 6)] == [[0, 1, 2, 3], [1, 1], [4], []]
    assert first.asked == [(3, 4), (4, 4), (5, 4), (6, 4)]
    assert other.asked == [(4, 2), (6, 2)] and other.heard == [3, 5]


def test_the_backend_is_told_how_many_guesses_there_will_be():
    copies = LookupDrafter()
    for most, lengths in ((None, {8}), (3, {8, 3}), (12, {8})):
        assert FallbackDrafter(copies, copies, most).lengths(8) == lengths
    assert FallbackDrafter(copies, FallbackDrafter(copies, copies, 2), 5).lengths(8) == {8, 5, 2}


def test_a_draft_model_keeps_up_with_the_copies():
    """A draft equal to the target is always right: all that is asked of it is accepted, whatever was copied in
    between.
    """
    target = tiny(backend="fast", vocabulary=5, context=64, scale=3)
    out = speclib.generate(
        target,
        [[0, 1, 2, 3], [2, 2]],
        FallbackDrafter(LookupDrafter(4, 3), ModelDrafter(target), most=2),
        GREEDY,
        6,
        max_new_tokens=50,
        stop=[],
    )
    plain = speclib.generate(target, [[0, 1, 2, 3], [2, 2]], None, GREEDY, max_new_tokens=50, stop=[])
    assert [t.tolist() for t in out.tokens] == [t.tolist() for t in plain.tokens]
    by_model, copied = (
        [r for r in out.trace.rounds if (len(r.drafted) == 2) == own and r.drafted] for own in (True, False)
    )
    assert by_model and copied and all(r.accepted == 2 for r in by_model)


@pytest.mark.parametrize("most", [0, -1])
def test_a_limit_below_one_is_refused(most):
    with pytest.raises(InvalidArgument, match="at least 1"):
        FallbackDrafter(LookupDrafter(), LookupDrafter(), most)
