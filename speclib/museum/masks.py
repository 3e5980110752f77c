"""Masks in the wrong place: an honest guesser in `generate` as it stands, where the settings hold logits processors."""

import torch

from ..law.rules import named
from ..loop.processors import Places
from .drafters import GuesserExhibit


def one_for_all(places: Places) -> None:
    """All places of all rounds share one processor and its state."""
    places.copies = list


def bonus_as_it_is(places: Places) -> None:
    """The target's last place is not processed."""
    process = places.process

    def some(side, logits, branches):
        rows = process(side, logits, branches)
        return torch.cat([rows[:-1], logits[-1:]]) if side == "target" and len(branches) > 1 else rows

    places.process = some


def target_as_it_is(places: Places) -> None:
    """Only the draft's places are processed."""
    process = places.process

    def drafts(side, logits, branches):
        rows = process(side, logits, branches)
        return rows if side == "draft" else logits

    places.process = drafts


MASKS: dict[str, GuesserExhibit] = named(
    GuesserExhibit(
        name="grammar moved by guesses",
        where="production engines, met in 2026",
        what="one matcher goes along with every guess and is not set back after a rejection: what it forbids "
        "next is another text's",
        needs="a processor with a state, and guesses that are rejected",
        places=one_for_all,
    ),
    GuesserExhibit(
        name="bonus without its mask",
        where="production engines, met in 2026",
        what="masks the places of the guesses and forgets the one behind the last: a forbidden token comes after "
        "a full acceptance",
        needs="any mask",
        places=bonus_as_it_is,
    ),
    GuesserExhibit(
        name="mask on the draft alone",
        where="production engines, met in 2026",
        what="masks what is guessed and not what the guesses are checked against: whatever replaces a rejected "
        "guess is free",
        needs="any mask, and guesses that keep to it",
        places=target_as_it_is,
    ),
)
