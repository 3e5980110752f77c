"""The mutation gate: breaks rules and loop on purpose, one line at a time, and demands that the tests notice.

    python tests/mutants.py            all of them; the report goes to data/results/mutants.json
    python tests/mutants.py 3 7        only these
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("test_decoding.py", "test_models.py", "test_rules.py", "test_distributions.py", "test_exact.py")

MUTANTS = [  # (what is wrong, file, old text, new text)
    ("the ratio squared", "rules.py", "return Verdict(chain_stops(ratio.clamp(max=1)), torch.cat([residual(p[:, :n], q), p[:, n:]], 1))\n\n\ndef block",
     "return Verdict(chain_stops(ratio.clamp(max=1) ** 2), torch.cat([residual(p[:, :n], q), p[:, n:]], 1))\n\n\ndef block"),
    ("after a rejection, draw from p", "rules.py", "torch.cat([residual(p[:, :n], q), p[:, n:]], 1))\n\n\ndef block", "p)\n\n\ndef block"),
    ("residual of the wrong row", "rules.py", "torch.cat([residual(p[:, :n], q), p[:, n:]], 1))\n\n\ndef block",
     "torch.cat([residual(p[:, :n].roll(1, 1), q), p[:, n:]], 1))\n\n\ndef block"),
    ("bonus token from the wrong row", "rules.py", "torch.cat([residual(p[:, :n], q), p[:, n:]], 1))\n\n\ndef block",
     "torch.cat([residual(p[:, :n], q), p[:, :1]], 1))\n\n\ndef block"),
    ("everything is accepted", "rules.py", "    rejected = torch.cat([1 - accept, ones], -1)", "    rejected = torch.cat([0 * accept, ones], -1)"),
    ("each test ignores those before it", "rules.py", "torch.cat([ones, accept.cumprod(-1)], -1)", "torch.cat([ones, accept], -1)"),
    ("block: the weight is not capped", "rules.py", "weights.append((weights[-1] * ratio[:, i]).clamp(max=1))", "weights.append(weights[-1] * ratio[:, i].clamp(max=1))"),
    ("block: the first test that fails ends it", "rules.py", "(1 - passes[:, 1:]).flip(1).cumprod(1).flip(1)", "(1 - passes[:, 1:])"),
    ("block: residual without the weight", "rules.py", "excess = (w[:, :n, None] * p[:, :n] - q)", "excess = (p[:, :n] - q)"),
    ("typical acceptance called lossless", "rules.py", 'Rule("typical", typical_law, False', 'Rule("typical", typical_law, True'),
    ("residual not clipped", "distributions.py", "excess = (p - q).clamp_min(0)", "excess = (p - q).abs()"),
    ("residual the wrong way round", "distributions.py", "excess = (p - q).clamp_min(0)", "excess = (q - p).clamp_min(0)"),
    ("empty residual is NaN", "distributions.py", "return torch.where(mass > 0, excess / mass.where(mass > 0, torch.ones_like(mass)), p)", "return excess / mass"),
    ("temperature applied twice", "distributions.py", "TemperatureLogitsWarper(float(self.temperature))", "TemperatureLogitsWarper(float(self.temperature) ** 2)"),
    ("ties at temperature 0 shared", "distributions.py", "return point_mass(logits.argmax(-1), logits.shape[-1], logits.dtype)",
     "return (logits == logits.amax(-1, keepdim=True)).to(logits.dtype) / (logits == logits.amax(-1, keepdim=True)).sum(-1, keepdim=True)"),
    ("top-k forgotten", "distributions.py", "if self.top_k is not None:", "if False:"),
    ("NaN logits pass", "distributions.py", "if not torch.isfinite(top).all():", "if False:"),
    ("rollback one too far", "models.py", "self._cache.crop(length - self.length)", "self._cache.crop(length - self.length - 1)"),
    ("rollback forgets nothing", "models.py", "self._cache.crop(length - self.length)", "pass"),
    ("padded vocabulary drawn from", "models.py", "width if tokenizer is None else min(width, len(tokenizer))", "width"),
    ("hash not compared", "embedded.py", "if pooch.file_hash(str(DATA / path)) != known[path]:", "if False:"),
    ("pickled weights allowed", "models.py", "use_safetensors=True", "use_safetensors=None"),
    ("max_new_tokens overshot", "decoding.py", "max_new_tokens - len(new) - 1)", "max_new_tokens)"),
    ("end of text inside a block ignored", "decoding.py", "if token in self.ids:", "if token in self.ids and i == len(emitted) - 1:"),
    ("the target's cache keeps rejected tokens", "decoding.py", "context.rollback(len(text) - 1)", "context.rollback(context.length)"),
    ("rows share one seed", "decoding.py", "row * 7_919) % 2**63", "row * 7_919 + len(str(row))) % 2"),
    ("global random state", "distributions.py", "torch.multinomial(flat, 1, generator=generator)", "torch.multinomial(flat, 1)"),
    ("draft says another q than it drew from", "drafters/model.py", "probs.append(q)", "probs.append(q.sqrt() / q.sqrt().sum())"),
    ("draft's cache keeps rejected tokens", "drafters/model.py", "while common < limit and self.cached[common] == text[common]:", "while common < limit:"),
    ("lookup says its guess was drawn evenly", "drafters/lookup.py", "return Draft(tokens, point_mass(tokens, self.vocabulary, dtype))",
     "return Draft(tokens, torch.full((len(tokens), self.vocabulary), 1 / self.vocabulary, dtype=dtype))"),
]  # fmt: skip


def passes(copy: Path) -> tuple[bool, str]:
    """Whether the tests pass on the copy of the package, and the line that names the first failure."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(copy)]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*command, *(str(copy / "tests" / name) for name in TESTS)], cwd=copy, env=environment, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return done.returncode == 0, failed[0].split(" - ")[0].replace(str(copy), "") if failed else done.stdout[-300:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help=f"which mutants, 1 to {len(MUTANTS)} (default: all)")
    chosen = parser.parse_args().numbers or range(1, len(MUTANTS) + 1)
    report = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        shutil.copytree(ROOT / "speclib", copy / "speclib", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "data").symlink_to(ROOT / "data")
        healthy, why = passes(copy)
        if not healthy:
            sys.exit(f"the tests fail without any mutation: {why}")
        for number in tqdm(chosen, desc="mutants", unit="mutant"):
            what, name, old, new = MUTANTS[number - 1]
            file = copy / "speclib" / name
            original = file.read_text()
            if original.count(old) < 1:
                sys.exit(f"mutant {number} ({what}): its text is not in {name} any more")
            file.write_text(original.replace(old, new))
            survived, by = passes(copy)
            file.write_text(original)
            report.append({"number": number, "what": what, "file": name, "killed": not survived, "by": None if survived else by})
            print(f"{number:2} {'SURVIVED' if survived else 'killed  '} {what}" + ("" if survived else f"  by {by}"), flush=True)
    if len(report) == len(MUTANTS):
        (ROOT / "data" / "results" / "mutants.json").write_text(json.dumps(report, indent=1) + "\n")
    killed = sum(row["killed"] for row in report)
    print(f"{killed} of {len(report)} killed")
    return 0 if killed == len(report) else 1


if __name__ == "__main__":
    sys.exit(main())
