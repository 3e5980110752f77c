"""What happened, round by round: the record that every figure and summary is made from."""

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from os.path import commonprefix

import pandas as pd

BACK = 8  # tokens that are decoded before one, for what it adds
HARMLESS = "\n\t\u200c\u200d"  # a tab, and what joins and parts the letters of some scripts and the parts of some emoji


@dataclass(frozen=True)
class Round:
    """One target forward. Times in seconds.

    drafted: the guesses; overlaps: sum(min(p, q)) at each of them; stop_probs: the rule's law of how many pass;
    accepted: how many passed; emitted: what the round added to the text (accepted guesses and one token of the target's
    own, unless the text ended before). rows: texts that shared the forward, among which its times are divided.

    Of a tree, parents: the guess that each guess follows (-1: the text); overlaps: the probability that some guess is
    taken, at each place along the branch that was followed; stop_probs: by node, the text first.
    """

    row: int
    position: int
    drafted: list[int]
    overlaps: list[float]
    stop_probs: list[float]
    accepted: int
    emitted: list[int]
    draft_seconds: float
    target_seconds: float
    seconds: float
    parents: list[int] | None = None
    rows: int = 1

    def rejected(self) -> list[int]:
        """The first guess that was tried where verification stopped, as a list of at most one token."""
        if self.parents is None:
            return self.drafted[self.accepted : self.accepted + 1]
        node = -1
        for token in self.emitted[: self.accepted]:
            node = next(
                (i for i, parent in enumerate(self.parents) if parent == node and self.drafted[i] == token), node
            )
        return [self.drafted[i] for i, parent in enumerate(self.parents) if parent == node][:1]


@dataclass
class Trace:
    """All rounds of a call of `generate`, in order. `decode` turns token ids into text, if there is a tokenizer."""

    decode: Callable[[list[int]], str] | None = None
    rounds: list[Round] = field(default_factory=list)
    prefill_seconds: float = 0.0
    seconds: float = 0.0

    def to_frame(self) -> pd.DataFrame:
        """One line per round, with the columns of `Round` and the number of tokens it drafted and yielded."""
        frame = pd.DataFrame([vars(r) for r in self.rounds], columns=list(Round.__dataclass_fields__))
        frame.insert(3, "proposed", frame["drafted"].map(len).astype(int))
        frame.insert(4, "yielded", frame["emitted"].map(len).astype(int))
        return frame

    def summary(self) -> dict:
        """The figures of the whole call.

        alpha: mean of sum(min(p, q)) over the positions that verification reached (None where nothing was drafted);
        accepted_share: accepted / proposed; tokens_per_round: also called block efficiency; seconds: by phase, where
        "other" is all the time outside the two models and their guesses.
        """
        proposed = sum(len(r.drafted) for r in self.rounds)
        reached = [beta for r in self.rounds for beta in r.overlaps[: r.accepted + 1]]
        tokens, seconds = sum(len(r.emitted) for r in self.rounds), self.seconds
        draft, target = sum(r.draft_seconds for r in self.rounds), sum(r.target_seconds for r in self.rounds)
        phases = {"prefill": self.prefill_seconds, "draft": draft, "target": target}
        return {
            "tokens": tokens,
            "target_forwards": round(sum(1 / r.rows for r in self.rounds)),
            "tokens_per_round": tokens / max(len(self.rounds), 1),
            "alpha": sum(reached) / len(reached) if reached else None,
            "accepted_share": sum(r.accepted for r in self.rounds) / proposed if proposed else None,
            "proposed": proposed,
            "tokens_per_second": tokens / seconds if seconds else float("nan"),
            "seconds": {**phases, "other": seconds - sum(phases.values()), "total": seconds},
        }

    def to_html(self, row: int = 0, width: int = 88) -> str:
        """The text of one row with every token's fate: accepted guess, rejected guess (struck out), target's own token.

        Everything that comes from a model is escaped; each fate has a mark besides its colour.
        """
        shown = "display:inline;white-space:pre-wrap;padding:1px 1px;border-radius:3px;"
        styles = {
            "accepted": shown + "background:#cfe8d5;color:#0b3d1c;border-bottom:2px solid #2e7d46",
            "rejected": shown + "background:#f6d5d0;color:#7a1f12;text-decoration:line-through",
            "own": shown + "background:#dbe4f5;color:#12305f;border-bottom:2px dotted #3b62a8",
        }
        pieces = []
        for text, fate in self._fates(row):
            # where Markdown is shown, a dollar sign would start a formula
            safe = html.escape(text, quote=True).replace("$", "&#36;")
            pieces.append(f'<span title="{fate}" style="{styles[fate]}">{safe}</span>')
        legend = " ".join(
            f'<span style="{styles[fate]}">{text}</span>'
            for fate, text in (
                ("accepted", "guess accepted"),
                ("rejected", "first guess rejected"),
                ("own", "the target's own token"),
            )
        )
        body = (
            "font-family:monospace;font-size:13px;line-height:1.55;background:#fff;color:#222;padding:8px;"
            f"max-width:{width}ch"
        )
        # <pre>: a page that was exported and cleaned of styles still has its indentation
        text = f'<pre style="margin:0;padding:0;font:inherit;color:inherit;background:none">{"".join(pieces)}</pre>'
        return f'<div style="{body}">{text}<div style="margin-top:8px;font-size:12px">{legend}</div></div>'

    def to_ansi(self, row: int = 0) -> str:
        """`to_html` for a terminal: accepted green, rejected red and struck out, the target's own plain."""
        codes = {"accepted": "\x1b[32m", "rejected": "\x1b[31;9m", "own": "\x1b[0m"}
        return "".join(
            f"{codes[fate]}{text}\x1b[0m" for text, fate in self._fates(row) if fate != "rejected" or text.strip()
        )

    def _fates(self, row: int) -> list[tuple[str, str]]:
        """(text, fate) of every token that one row accepted, first rejected, or took from the target, in order.

        Without the rejected ones the texts, one after the other, are the row's text.
        """
        decode = self.decode or (lambda tokens: "".join(f" {token}" for token in tokens))
        rounds = [r for r in self.rounds if r.row == row]
        tokens = [token for r in rounds for token in r.emitted]
        texts, place, fates = pieces(decode, tokens), 0, []
        for r in rounds:
            kept = min(r.accepted, len(r.emitted))
            fates += [(text, "accepted") for text in texts[place : place + kept]]
            before = tokens[max(0, place + kept - BACK) : place + kept]
            fates += [(_added(decode(before), decode([*before, token])), "rejected") for token in r.rejected()]
            fates += [(text, "own") for text in texts[place + kept : place + len(r.emitted)]]
            place += len(r.emitted)
        return [(harmless(text), fate) for text, fate in fates]


def pieces(decode: Callable[[list[int]], str], tokens: list[int]) -> list[str]:
    """What each token adds to the text: joined, exactly `decode(tokens)`.

    A token cannot be decoded alone (a Llama's loses its space), so a few before it are decoded too. A character of
    several tokens belongs to the last of them.
    """
    found, start, shown = [], 0, ""
    for k in range(len(tokens)):
        text = decode(tokens[start : k + 1])
        if text.endswith("\N{REPLACEMENT CHARACTER}") and k + 1 < len(tokens):  # a character that goes on
            found.append("")
            continue
        found.append(text[len(shown) :])
        start = max(start, k + 1 - BACK)
        shown = decode(tokens[start : k + 1])
    whole = decode(tokens)
    if "".join(found) != whole:  # a decoder that changes what it said, as one that mends spaces: slow and sure
        ends = [0]
        for k in range(1, len(tokens)):
            ends.append(max(ends[-1], len(commonprefix([decode(tokens[:k]), whole]))))
        found = [whole[low:high] for low, high in pairwise([*ends, len(whole)])]
    return found


def _added(before: str, after: str) -> str:
    return after[len(commonprefix([before, after])) :]


def harmless(text: str) -> str:
    """Control and bidirectional characters could reorder or hide the text around them."""
    return "".join(c if c.isprintable() or c in HARMLESS else "\N{REPLACEMENT CHARACTER}" for c in text)
