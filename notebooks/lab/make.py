"""Makes what the laboratory's page, index.html, holds a copy of: its module and its recorded rounds.

    python notebooks/lab/make.py            copy lab.mjs into the page, without comments and blanks
    python notebooks/lab/make.py record     record the rounds again, from the embedded pair

A browser imports no module from a file, so the page carries the module's text; lab.mjs is the source.
The rest of the page is written by hand.
"""

import json
import re
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
PAGE, MODULE = FOLDER / "index.html", FOLDER / "lab.mjs"
PROMPT = "import json\n\n\ndef load("
SEED, GAMMA, TEMPERATURE, TOKENS, SHOWN = 3, 3, 0.8, 22, 4


def between(page: str, begin: str, end: str, text: str) -> str:
    """The page with `text` between its two marks. Raises ValueError unless each mark stands there once, and where
    `text` would end the script."""
    if page.count(begin) != 1 or page.count(end) != 1 or "</script" in text:
        raise ValueError(f"the page needs {begin!r} and {end!r} once, and what goes between may not end the script")
    head, rest = page.split(begin)
    return f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def inlined(page: str, module: str) -> str:
    """The page with the module's present text in it, without what only a reader of the module needs: comments,
    exports and most blanks."""
    lines = [line.strip() for line in module.splitlines()]
    lines = [re.sub(r"^export | // .*$", "", line) for line in lines if line and not line.startswith("//")]
    pieces = re.split(r"""("[^"]*"|`[^`]*`)""", "\n".join(lines))  # code and strings take turns
    blanks = r" *(=>|[=!]==|&&|\|\||\?\?|[<>*/+-]?=|[,;{}()?:<>*]) *"
    pieces[::2] = [re.sub(blanks, r"\1", piece) for piece in pieces[::2]]
    return between(page, "// <lab.mjs>", "// </lab.mjs>", "".join(pieces))


def recorded() -> dict:
    """Rounds of the embedded pair: at each guess that verification reached, p and q of the likeliest tokens and
    of those that were drawn."""
    import speclib
    from speclib.law.distributions import overlap
    from speclib.law.rules import RULES, Rule

    pair = speclib.load_pair()
    seen = []

    def watched(p, q, drafted):
        seen.append((p[0], q[0]))
        return RULES["token"].law(p, q, drafted)

    out = speclib.generate(
        pair.target,
        PROMPT,
        speclib.drafters.ModelDrafter(pair.draft),
        sampling=speclib.Sampling(temperature=TEMPERATURE),
        draft_length=GAMMA,
        rule=Rule("watched", watched, True, "the token rule, observed"),
        max_new_tokens=TOKENS,
        stop=[],
        seed=SEED,
    )
    name = pair.tokenizer.decode
    rounds = []
    for r, (p, q) in zip((r for r in out.trace.rounds if r.drafted), seen, strict=True):
        places = []
        for k, guess in enumerate(r.drafted[: r.accepted + 1]):
            shown = {guess, r.emitted[k], *(p[k] + q[k]).topk(SHOWN).indices.tolist()}
            shown = sorted(shown, key=lambda token: -float(p[k, token]))
            rows = [[name([token]), *(float(f"{float(row[k, token]):.3g}") for row in (p, q))] for token in shown]
            places.append({"guess": shown.index(guess), "overlap": round(float(overlap(p[k], q[k])), 4), "rows": rows})
        drafted = [name([token]) for token in r.drafted]
        rounds.append({"drafted": drafted, "accepted": r.accepted, "next": name([r.emitted[-1]]), "places": places})
    source = (
        "Recorded by notebooks/lab/make.py from the workbook’s embedded models of Python source: "
        f"the token rule, gamma {GAMMA}, temperature {TEMPERATURE}, seed {SEED}."
    )
    return {"source": source, "prompt": PROMPT, "rounds": rounds}


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if sys.argv[1:] == ["record"]:
        text = json.dumps(recorded(), ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
        page = between(page, '<script type="application/json" id="rounds">', '</script>\n<script type="module">', text)
    elif sys.argv[1:]:
        raise SystemExit(__doc__)
    PAGE.write_text(inlined(page, MODULE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE.name} {PAGE.stat().st_size:,} bytes, {MODULE.name} {MODULE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
