"""The trace as a page and in a terminal: whatever a model writes is shown as text, reads as the text does, and does
nothing.
"""

import re
from html.parser import HTMLParser

import alphabets
import pytest

from speclib.loop.trace import Round, Trace, pieces

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</pre></div></span><iframe>",
    "$\\href{javascript:alert(1)}{x}$ and $$y$$",
    "&lt;script&gt;",
    "<!-- ",
    "\x1b[2J\x1b]0;title\x07",
    "\x00\x08\x7f\r",
    "\u202etxet desrever\u202c\u2066x\u2069\u200b\ufeff",
    "\n  plain é→日 text",
]


def trace():
    """One round in which every string is once an accepted guess, once the target's own token; two are rejected."""
    count = len(HOSTILE)
    rounds = [
        Round(0, 0, list(range(count)), [1.0] * count, [0.0] * count + [1.0], count, [*range(count), 0], 0.1, 0.2, 0.4),
        *(Round(0, count + 1 + i, [1], [0.5], [0.5, 0.5], 0, [i], 0.1, 0.2, 0.4) for i in range(count)),
        Round(1, 0, [], [], [1.0], 0, [0], 0.0, 0.2, 0.3),
    ]
    return Trace(lambda ids: "".join(HOSTILE[i] for i in ids), rounds)


class Parts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text, self.depth = set(), set(), [], 0

    def handle_starttag(self, tag, attrs):
        self.depth += 1
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        self.depth -= 1

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        self.tags.add("comment")


def parsed(page):
    parts = Parts()
    parts.feed(page)
    parts.close()
    return parts


def test_nothing_that_a_model_writes_becomes_markup():
    page = trace().to_html()
    parts = parsed(page)
    assert parts.tags == {"div", "pre", "span"} and parts.attributes == {"style", "title"} and parts.depth == 0
    assert parts.tags == parsed(Trace(None, []).to_html()).tags  # hostile text adds no tag to those of an empty page
    shown = "".join(parts.text)
    for text in HOSTILE:
        if text.replace("\n", "").isprintable():
            assert shown.count(text) == 2 + (text == HOSTILE[0]) + len(HOSTILE) * (text == HOSTILE[1])
    assert "$" not in page  # a dollar sign would start a formula
    assert all(character.isprintable() or character == "\n" for character in page)


def test_nothing_that_a_model_writes_moves_the_cursor():
    line = trace().to_ansi()
    for code in ("\x1b[0m", "\x1b[32m", "\x1b[31;9m"):
        assert code in line
        line = line.replace(code, "")
    assert all(character.isprintable() or character == "\n" for character in line)
    assert line.count("\N{REPLACEMENT CHARACTER}[2J") == 2


def test_every_fate_has_a_mark_besides_its_colour():
    page = trace().to_html()
    assert (
        page.count('title="accepted"') == len(HOSTILE)
        and page.count('title="rejected"') == len(HOSTILE)
        and page.count('title="own"') == len(HOSTILE) + 1
    )
    for mark in ("line-through", "2px solid", "2px dotted"):
        assert mark in page
    assert "script" not in trace().to_html(row=1).split("guess accepted")[0].replace("&lt;script&gt;", "").replace(
        "&lt;/script&gt;", ""
    )


def test_figures_of_a_trace_by_hand():
    made = Trace(
        None,
        [
            Round(0, 0, [1, 2], [0.5, 0.25], [0.5, 0.375, 0.125], 1, [1, 3], 0.1, 0.2, 0.5),
            Round(0, 2, [4], [1.0], [0.0, 1.0], 1, [4, 5], 0.1, 0.2, 0.5),
            Round(0, 4, [], [], [1.0], 0, [6], 0.0, 0.2, 0.3),
        ],
        prefill_seconds=0.5,
        seconds=2.0,
    )
    summary = made.summary()
    assert summary["alpha"] == pytest.approx((0.5 + 0.25 + 1.0) / 3)
    assert summary["accepted_share"] == pytest.approx(2 / 3) and summary["tokens_per_round"] == pytest.approx(5 / 3)
    assert summary["seconds"] == pytest.approx(
        {"prefill": 0.5, "draft": 0.2, "target": 0.6, "other": 0.7, "total": 2.0}
    )
    frame = made.to_frame()
    assert frame["proposed"].tolist() == [2, 1, 0] and frame["yielded"].tolist() == [2, 2, 1]
    assert [r.rejected() for r in made.rounds] == [[2], [], []]
    assert Trace(None, []).summary()["alpha"] is None


def test_the_rejected_guess_of_a_tree():
    """Two first guesses 7 and 8; under 8 the guesses 5 and 6. The text took 8, then neither 5 nor 6."""
    tree = Round(0, 0, [7, 8, 5, 6], [0.9, 0.1], [0.0] * 5, 1, [8, 1], 0.0, 0.0, 0.0, parents=[-1, -1, 1, 1])
    assert tree.rejected() == [5]


@pytest.mark.parametrize("kind", alphabets.KINDS)
def test_what_tokens_add_is_the_text(kind):
    tokenizer = alphabets.tokenizer(kind)
    for seed in range(100):
        for count in (0, 1, 2, 60):
            tokens = alphabets.some_tokens(kind, seed, count)
            found = pieces(tokenizer.decode, tokens)
            assert len(found) == len(tokens) and "".join(found) == tokenizer.decode(tokens)


def rounds_of(tokens, rejected):
    """The tokens in rounds of three accepted guesses and one of the target's own, and in each a guess that was
    rejected.
    """
    made = []
    for k in range(0, len(tokens), 4):
        emitted = tokens[k : k + 4]
        made.append(
            Round(
                0,
                k,
                [*emitted[:-1], rejected],
                [0.5] * len(emitted),
                [0.0] * (len(emitted) + 1),
                len(emitted) - 1,
                emitted,
                0.1,
                0.2,
                0.4,
            )
        )
    return made


@pytest.mark.parametrize("kind", alphabets.KINDS)
def test_a_trace_without_its_colours_reads_as_the_text(kind):
    tokenizer = alphabets.tokenizer(kind)
    tokens = tokenizer("the quick fox, 日本語 🎉 the café\u200d so .")["input_ids"]
    fox = tokenizer("the fox")["input_ids"][-1]
    made = Trace(tokenizer.decode, rounds_of(tokens, fox))
    line, word = made.to_ansi(), tokenizer.decode([fox]).strip()
    rejected = re.findall(r"\x1b\[31;9m(.*?)\x1b\[0m", line)
    assert len(rejected) == len(made.rounds) and all(text.strip().endswith(word) for text in rejected)
    assert re.sub(r"\x1b\[[0-9;]*m", "", re.sub(r"\x1b\[31;9m.*?\x1b\[0m", "", line)) == tokenizer.decode(tokens)
    page = parsed(re.sub(r'<span title="rejected".*?</span>', "", made.to_html()))
    assert "".join(page.text).startswith(tokenizer.decode(tokens))


def test_tokens_of_a_model_without_a_tokenizer_are_numbers():
    line = Trace(None, rounds_of([5, 6, 7, 8, 9], 3)).to_ansi()
    assert re.sub(r"\x1b\[[0-9;]*m", "", line) == " 5 6 7 3 8 3 9"
