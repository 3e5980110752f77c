"""Files on disk: whole or not there, checked before the work, of the right experiment, and one clear line when they are
damaged.
"""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from speclib import bench, embedded, errors, experiments, files
from speclib.__main__ import main
from speclib.commands import pairs
from speclib.drafters.eagle import read_eagle
from speclib.drafters.heads import read_heads
from speclib.drafters.layer_skip import read_exits
from speclib.measure import journal
from speclib.measure.experiments import Way
from speclib.measure.journal import Journal
from speclib.model.language_model import Pair
from speclib.training.state import load_state, save_state


@pytest.fixture
def full_disk():
    """A function that lets no file grow beyond so many bytes, as a full disk would."""
    resource = pytest.importorskip("resource")
    kept, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, kept[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, full_disk):
    path = tmp_path / "a.json"
    files.write_text(path, "before\n")
    for kind in (KeyboardInterrupt, ValueError):
        with pytest.raises(kind), files.replacing(path) as partial:
            partial.write_text("half")
            raise kind
    full_disk(1000)
    with pytest.raises(errors.FileError, match="cannot write .*a.json.*as it was"):
        files.write_text(path, "x" * 5000)
    assert path.read_text() == "before\n" and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_is_written_takes_the_place_of_a_file_a_folder_and_what_a_link_points_to(tmp_path):
    folder, link = tmp_path / "made" / "here", tmp_path / "link"
    for name in ("old", "new"):
        with files.replacing(folder) as partial:
            partial.mkdir()
            (partial / name).write_text(name)
    assert [p.name for p in folder.iterdir()] == ["new"]
    link.symlink_to(folder / "new")
    files.write_text(link, "é\n")
    assert link.is_symlink() and (folder / "new").read_bytes() == "é\n".encode()


def test_a_state_that_does_not_fit_on_the_disk_leaves_the_one_before(tmp_path, full_disk):
    path, device = tmp_path / "x.state", torch.device("cpu")
    save_state(path, {"seed": 0}, step=1)
    full_disk(20_000)
    with pytest.raises(errors.FileError, match="cannot write"):
        save_state(path, {"seed": 0}, step=2, weights=torch.zeros(100_000))
    assert load_state(path, {"seed": 0}, device)["step"] == 1 and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(errors.TrainingError, match=r"other seed, code"):
        load_state(path, {"seed": 1, "code": "x"}, device)
    for content in ({"step": 1}, [1, 2], {"identity": None}):
        torch.save(content, path)
        with pytest.raises(errors.TrainingError, match="delete it"):
            load_state(path, {"seed": 0}, device)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no/such/x.json", "there is no folder"),
        ("folder", "is a folder"),
        ("folder/x.txt", "must end in .json"),
        ("folder/x", "must end in .json"),
        ("file.json/x.json", "there is no folder"),
        ("null.json", "no ordinary file"),
    ],
)
def test_a_place_that_cannot_take_a_file_is_one_clear_line(path, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.json").write_text("{}")
    (tmp_path / "null.json").symlink_to(os.devnull)
    with pytest.raises(errors.FileError, match=words):
        files.check_output(path, () if path == "folder" else (".json",))
    files.check_output("folder/new.json", (".json",))
    files.check_output("file.json")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file.json", "folder", "null.json"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_protected_place_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o400)
    tmp_path.chmod(0o500)
    for check, path in ((files.check_output, "file"), (files.check_output, "new"), (files.check_folder, "new/folder")):
        with pytest.raises(errors.FileError, match="cannot be written"):
            check(tmp_path / path)


def test_a_disk_that_takes_nothing_is_found_before_the_work(tmp_path, monkeypatch):
    def read_only(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
    for check in (files.check_output, files.check_folder):
        with pytest.raises(errors.FileError, match="cannot be written: Read-only file system"):
            check(tmp_path / "x")


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--out", "no/such/x.png"],
        ["demo", "--out", "x.xyz"],
        ["demo", "--out", "x"],
        ["demo", "--out", "folder"],
        ["demo", "--out", "file/x.png"],
        ["bench", "pair", "--out", "no/such/x.json"],
        ["bench", "pair", "--out", "x.csv"],
        ["bench", "headline", "--out", "x.png"],
        ["bench", "ladder", "--out", "folder"],
        ["bench", "growth", "--out", "x"],
        ["bench", "leaderboard", "--out", "file/x.json"],
        ["bench", "published", "--out", "x.png"],
        ["index", "--out", "file"],
        ["index", "--out", "file/below"],
        ["train", "--out", "file"],
        ["train", "heads", "--out", "file/deeper/below"],
    ],
    ids=" ".join,
)
def test_a_path_is_refused_before_the_work(arguments, tmp_path, monkeypatch, capsys):
    def work(*_, **__):
        raise AssertionError("the work began")

    for module, name in (
        (experiments, "ladder"),
        (bench.pairs, "measure"),
        (bench.pairs, "headline"),
        (bench, "load_pair"),
        (bench.published, "measure"),
    ):
        monkeypatch.setattr(module, name, work)
    for name in (
        "speclib.model.language_model.load_pair",
        "speclib.model.language_model.load_model",
        "speclib.training.corpus.python_source",
    ):
        monkeypatch.setattr(name, work)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    code, captured = main(arguments), capsys.readouterr()
    assert code == 2 and captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith("speclib: ")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


# --- the journal of a measurement
# --------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch):
    """`pairs.measure` with tables that cost nothing: a list of the temperatures of those that it makes, and a function
    that calls it.
    """
    made, model = [], SimpleNamespace(dtype="torch.float32", name="t", size="s")
    monkeypatch.setattr(pairs, "places", lambda *_: {"eager": SimpleNamespace(pair=Pair(model, model))})
    monkeypatch.setattr(pairs, "split", lambda *_: ([], []))

    def table(found, sampling, *_):
        made.append(sampling.temperature)
        if len(made) == 2:
            raise KeyboardInterrupt
        return {"methods": ["x"]}, pd.DataFrame({"text": ["a"], "widths": [[1]], "accepted": [[0]], "y": [1]})

    monkeypatch.setattr(pairs, "one_table", table)

    def run(partial, target=None, tokens=1, dtypes=("float32",)):
        made.clear()
        try:
            settings = pairs.Settings(target, None, 1, tokens, 1, [1], ["eager"])
            once = Journal(partial, vars(settings)).once
            return pairs.measure(settings, [1.0, 0.0], ["code"], dtypes, once)
        except KeyboardInterrupt:
            return None

    return made, run


def test_an_interrupted_bench_goes_on_behind_its_tables(measured, tmp_path):
    made, run = measured
    partial = tmp_path / "x.partial.jsonl"
    assert run(partial) is None and made == [1.0, 0.0]
    record = run(partial)
    assert made == [0.0] and [table["temperature"] for table in record["tables"]] == [1.0, 0.0]


def test_what_the_trial_chose_is_kept_for_the_tables_behind_an_interruption(measured, tmp_path, monkeypatch):
    (_, run), asked = measured, []

    def choose(*_, **__):
        asked.append(1)
        return SimpleNamespace(ways={"plain": Way("plain", "eager", "float32")})

    monkeypatch.setattr(pairs.trials, "choose", choose)
    partial = tmp_path / "x.partial.jsonl"
    assert run(partial, dtypes=None) is None and len(run(partial, dtypes=None)["tables"]) == 2 and len(asked) == 1


def test_trials_behind_an_interruption_are_the_others_alone(tmp_path, monkeypatch):
    """Method by prompt and repeat, each in its part; every method is warmed up again where it is run again."""
    ran, stop = [], [5]

    def method(name):
        def trial(prompt, seed):
            if len(ran) == stop[0]:
                raise KeyboardInterrupt
            ran.append((name, prompt, seed))
            return {"tokens": 1, "seconds": 1.0, "seed": seed, "ran": len(ran)}

        return trial

    def run(once):
        frames = [
            experiments.interleaved({n: method(n) for n in "ab"}, ["x", "y"], 2, 7, False, once=once(part))
            for part in ("one", "two")
        ]
        return pd.concat(frames)

    def resumed(part):
        return experiments.within(Journal(tmp_path / "j.json").once, part)

    with pytest.raises(KeyboardInterrupt):
        run(resumed)
    assert len(ran) == 5  # two to warm up
    ran.clear()
    stop[0] = None
    frame = run(resumed)
    assert len(ran) == 16 - 3 + 4
    ran.clear()
    assert run(resumed).equals(frame) and not ran, "all is kept"
    (tmp_path / "j.json").unlink()
    columns = ["method", "prompt", "repeat", "seed"]
    assert run(lambda _: experiments.now)[columns].equals(frame[columns]) and len(ran) == 16 + 4


def test_a_record_tells_of_other_programs_at_any_of_its_starts(tmp_path, monkeypatch, capsys):
    said = ["busy machine: told"]
    monkeypatch.setattr(bench.machine, "busy", lambda: said[0])
    monkeypatch.setattr(bench.growth, "measure", lambda *_, **__: {"rules": []})
    monkeypatch.setattr(bench, "load_pair", lambda **_: None)

    def stopped(args):
        args.once("part", lambda: 1)
        raise KeyboardInterrupt

    command, (growth, options) = ["bench", "growth", "--out", str(tmp_path / "x.json")], bench.MEASUREMENTS["growth"]
    monkeypatch.setitem(bench.MEASUREMENTS, "growth", (stopped, options))
    stopped.__doc__ = growth.__doc__
    assert main(command) == 130 and (tmp_path / "x.partial.jsonl").is_file()
    said[0] = None
    monkeypatch.setitem(bench.MEASUREMENTS, "growth", (growth, options))
    assert main(command) == 0 and [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert json.loads((tmp_path / "x.json").read_text())["machine"]["busy"] == "busy machine: told"
    assert main(command) == 0
    assert json.loads((tmp_path / "x.json").read_text())["machine"]["busy"] is None


@pytest.mark.parametrize("change", ["settings", "threads", "code", "weights", "machine", "an older record"])
def test_another_measurement_does_not_go_on_with_it(change, measured, tmp_path, monkeypatch, capsys):
    made, run = measured
    partial, folder, more = tmp_path / "x.partial.jsonl", tmp_path / "model", {}
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    run(partial, target=str(folder))
    if change == "settings":
        more = {"tokens": 2}
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    elif change == "code":
        monkeypatch.setattr(journal, "code_version", lambda: "another")
    elif change == "weights":
        (folder / "model.safetensors").write_bytes(b"two")
    elif change == "machine":
        there = experiments.machine()
        monkeypatch.setattr(experiments, "machine", lambda: {**there, "cpu": "another"})
    else:
        partial.write_text(json.dumps({"settings": {}, "tables": [], "rows": [], "memory_gb": 0.0}))
    run(partial, target=str(folder), **more)
    assert made[0] == 1.0 and "is of another measurement (other" in capsys.readouterr().err


def test_what_a_list_names_counts_by_its_content(tmp_path):
    blocks = [tmp_path / name for name in "ab"]
    for folder in blocks:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"one")
    named = {"blocks": [*map(str, blocks)], "temperature": [0.0, 1.0]}
    before = journal.identity(named)
    assert journal.identity(named) == before
    (blocks[1] / "model.safetensors").write_bytes(b"two")
    assert journal.identity(named) != before


def test_a_part_is_appended_and_a_torn_one_is_made_again(tmp_path):
    file, made = tmp_path / "j.json", []

    def all_parts():
        once = Journal(file).once
        return [once(["part", k], lambda k=k: made.append(k) or {"is": k}) for k in range(3)]

    found = all_parts()
    whole = file.read_bytes()
    head, first, *others = whole.splitlines(keepends=True)
    assert json.loads(head).keys() == {"identity"} and json.loads(first) == ['["part", 0]', {"is": 0}]
    assert made == [0, 1, 2] and len(others) == 2
    for cut in range(len(whole) - len(others[-1]), len(whole)):  # anywhere in the last line, its end included
        made.clear()
        file.write_bytes(whole[:cut])
        assert all_parts() == found and made == [2] and file.read_bytes() == whole
    made.clear()
    assert all_parts() == found and not made
    file.write_bytes(whole.replace(first, first[:5] + b"\n"))
    with pytest.raises(errors.FileError, match="j.json is damaged"):
        all_parts()


def test_finished_parts_are_not_written_again(tmp_path, monkeypatch):
    whole = []
    monkeypatch.setattr(journal, "write_text", lambda path, text: whole.append(text) or files.write_text(path, text))
    once = Journal(tmp_path / "j.json").once
    for k in range(5):
        once(k, lambda: "x")
    assert len(whole) == 1 and (tmp_path / "j.json").read_text().count("\n") == 6


@pytest.mark.parametrize("content", ["", '{"identity": {"tar', "[1, 2]", "null", b"\xff\xfe\x00"], ids=repr)
def test_a_torn_record_is_one_clear_line(content, measured, tmp_path):
    made, run = measured
    partial = tmp_path / "x.partial.jsonl"
    partial.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(errors.FileError, match="x.partial.jsonl is damaged.*delete it") as caught:
        run(partial)
    assert "\n" not in str(caught.value) and made == []


# --- recorded measurements, weights
# -----------------------------------------------------------------------------


def test_a_recorded_measurement_that_is_missing_or_torn_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "RESULTS", tmp_path)
    with pytest.raises(
        errors.InvalidArgument, match=r"growth.json is missing; record it with: python -m speclib bench growth"
    ):
        experiments.recorded("growth")
    (tmp_path / "ladder.json").write_text('{"machine": ')
    with pytest.raises(
        errors.FileError, match=r"ladder.json is damaged.*record it with: python -m speclib bench ladder"
    ):
        experiments.recorded("ladder")


@pytest.mark.parametrize("read", [read_eagle, read_heads, read_exits], ids=lambda read: read.__name__)
def test_weights_that_are_torn_are_one_clear_line(read, tmp_path):
    for content in (None, b"", b"not weights"):
        if content is not None:
            (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(errors.ModelLoadError, match="again with: python -m speclib train") as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_hash_tells_pieces_apart_and_code_has_one():
    assert files.digest("ab", "c") != files.digest("a", "bc") != files.digest("abc")
    assert files.digest("é") == files.digest("é".encode()) and files.digest(np.arange(3)) != files.digest(np.arange(4))
    assert (
        files.code_version() == files.code_version() != files.code_version("training") != files.code_version("drafters")
    )


# --- training from a terminal
# -------------------------------------------------------------------------------------------

WORDS = {
    "A": "alpha beta def return x y z = + ( ) :",
    "B": "日本 東京 京都 猫 犬 鳥 山 川",
    "C": "alpha beta def return x y z = + ( ) ;",
}


def train(corpus, *more):
    return main(
        ["train", "draft-d64x1", "--corpus", f"{corpus}.txt", "--out", "runs", "--tokens", "300", "--no-compile", *more]
    )


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A folder with three texts, and a draft that has been trained on the first."""
    monkeypatch.chdir(tmp_path)
    chance = np.random.default_rng(0)
    for name, words in WORDS.items():
        Path(f"{name}.txt").write_text(" ".join(chance.choice(words.split(), 9000)), "utf-8")
    assert train("A") == 0
    return tmp_path / "runs"


def whole(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_folder_is_of_one_corpus_one_seed_and_one_length(trained, capsys):
    before = whole(trained)
    assert train("A") == 0 and "finished already" in capsys.readouterr().out
    for corpus, more, words in (
        ("B", (), "from another corpus"),
        ("C", (), "from another corpus"),
        ("A", ("--seed", "1"), "other seed"),
        ("A", ("--tokens", "500"), "other recipe"),
    ):
        assert train(corpus, *more) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith("speclib: runs") and words in told and "choose another --out" in told
    assert whole(trained) == before
    (trained / "draft-d64x1" / "card.json").unlink()  # as if killed between the last state and the model
    assert train("B") == 2 and train("A") == 0
    (trained / "corpus.json").unlink()  # nobody knows what the tokenizer was made from
    assert train("A") == 2


@pytest.mark.parametrize(
    "name", ["corpus.json", "tokenizer/tokenizer.json", "draft-d64x1/card.json", "draft-d64x1.state", "cache/*.npy"]
)
def test_a_torn_file_of_a_training_is_one_clear_line(name, trained, capsys):
    for path in trained.glob(name):
        path.write_bytes(path.read_bytes()[: 40 if path.suffix == ".npy" else 100])
    if name.endswith(".state"):
        (trained / "draft-d64x1" / "card.json").unlink()
    capsys.readouterr()
    assert train("A") == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told and told.splitlines()[-1].startswith("speclib: runs") and "delete" in told


def test_a_model_with_another_tokenizer_is_not_built_upon(trained, capsys):
    other = trained / "target"
    (trained / "draft-d64x1").rename(other)
    tokenizer = json.loads((other / "tokenizer.json").read_text("utf-8"))
    tokens = tokenizer["model"]["vocab"]
    tokens |= {"!": tokens['"'], '"': tokens["!"]}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    assert train("A") == 2 and "target has another tokenizer than" in capsys.readouterr().err


def test_an_installed_package_installs_no_models(monkeypatch, capsys):
    monkeypatch.setattr(embedded, "CHECKOUT", False)
    assert (
        main(["train", "--install"]) == 2
        and "--install puts models into the data/ of a checkout" in capsys.readouterr().err
    )
