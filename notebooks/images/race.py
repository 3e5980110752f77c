"""README's moving picture: one text written plainly and with guesses, side by side, at the speeds that were measured.

python notebooks/images/race.py             draw race.gif from data/results/race.json
python notebooks/images/race.py --record    measure first; on a quiet machine
"""

import json
import sys
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

import speclib
from speclib import embedded, experiments, machine
from speclib.loop.trace import pieces

PICTURE = Path(__file__).with_suffix(".gif")
TOKENS, PASSES, SLOWER, PER_SECOND = 72, 15, 10, 12
COLUMNS, ROWS, WIDE, HIGH = 55, 15, 8, 18  # letters, and pixels of one
SIZE = (2 * (COLUMNS + 3) * WIDE, (ROWS + 3) * HIGH)
GUESSED, OWN, GREY = ("#0b3d1c", "#cfe8d5"), ("#12305f", "#dbe4f5"), "#555555"


def record() -> dict:
    """Both ways, in turns, on the prompt of notebook 00, greedy: of each its fastest pass, which was least disturbed.

    ways: name -> a list of rounds, each [seconds since the prompt was read, [[text of a token, whether guessed], ...]].
    """
    pair, prompt = speclib.load_pair(backend="fast"), embedded.prompts("code")[16]
    eagle = speclib.drafters.EagleDrafter(speclib.drafters.load_eagle())
    greedy, passes = speclib.Sampling(temperature=0), {"plain": [], "speculative": []}
    for _ in range(PASSES):
        for name, drafter in (("plain", None), ("speculative", eagle)):
            out = speclib.generate(pair.target, prompt, drafter, greedy, 4, max_new_tokens=TOKENS, stop=[])
            passes[name].append(out.trace.rounds)
    ways = {}
    for name, tried in passes.items():
        rounds = min(tried, key=lambda rounds: sum(r.seconds for r in rounds))
        words = iter(pieces(pair.tokenizer.decode, [token for r in rounds for token in r.emitted]))
        clock, ways[name] = 0.0, []
        for r in rounds:
            clock += r.seconds
            ways[name].append([round(clock, 4), [[next(words), k < r.accepted] for k in range(len(r.emitted))]])
    return {"machine": {**experiments.machine(), "busy": machine.busy()}, "ways": ways}


def frame(ways: dict, seconds: float) -> Image.Image:
    """What stood there after so many seconds, one way beside the other."""
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    font, bold = (ImageFont.truetype(fonts / f"DejaVuSansMono{kind}.ttf", 13) for kind in ("", "-Bold"))
    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)
    for left, (name, rounds) in zip((WIDE, SIZE[0] // 2 + WIDE), ways.items(), strict=True):
        words = [word for clock, words in rounds if clock <= seconds for word in words]
        passes, spent = sum(clock <= seconds for clock, _ in rounds), min(seconds, rounds[-1][0])
        pen.text((left, 8), name, "black", bold)
        told = f"{len(words):2} tokens, {passes:2} forwards, {spent:.2f} s"
        pen.text((left + 13 * WIDE, 8), told, GREY, font)
        row, column = 0, 0
        for word, guessed in words:
            ink, ground = GUESSED if guessed else OWN
            for letter in word:
                if letter == "\n" or column == COLUMNS:
                    row, column = row + 1, 0
                if letter != "\n" and row < ROWS:
                    x, y = left + WIDE * column, HIGH * (row + 2)
                    pen.rectangle((x, y, x + WIDE, y + HIGH - 3), ground)
                    pen.text((x, y), letter, ink, font)
                    column += 1
    legend = f"green: guessed and passed; blue: the target's own; shown {SLOWER} times as slow as it was"
    pen.text((WIDE, SIZE[1] - HIGH - 2), legend, GREY, font)
    return image


def draw(recorded: dict, path: Path = PICTURE) -> None:
    """Writes the moving picture; its last frame stays for three seconds."""
    end = max(rounds[-1][0] for rounds in recorded["ways"].values())
    count = int(end * SLOWER * PER_SECOND) + 2
    frames = [frame(recorded["ways"], k / (SLOWER * PER_SECOND)) for k in range(count)]
    colours = frames[-1].quantize(16)  # the same for all, so that only what changes is stored
    first, *others = [image.quantize(palette=colours, dither=Image.Dither.NONE) for image in frames]
    durations = [1000 // PER_SECOND] * (count - 1) + [3000]
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


if __name__ == "__main__":
    if "--record" in sys.argv[1:]:
        (embedded.RESULTS / "race.json").write_text(json.dumps(record(), ensure_ascii=False) + "\n", encoding="utf-8")
    draw(experiments.recorded("race"))
    print(f"{PICTURE.name}: {PICTURE.stat().st_size / 1e3:.0f} kB")
