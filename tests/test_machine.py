"""Beside other busy programs a measurement says so: by a trial, not by what the machine did a minute ago."""

import re
import time

import pytest
import torch

from speclib import bench, experiments, machine
from speclib.__main__ import main

QUIET, CROWDED = {1: (1000.0, 1.0), 2: (1800.0, 1.0)}, {1: (500.0, 0.5), 2: (40.0, 0.3)}


@pytest.mark.parametrize(
    ("threads", "trials", "words"),
    [
        (2, QUIET, None),
        (2, {1: (1000.0, 1.0), 2: (900.0, 1.0)}, None),  # two threads of one core
        # one other program on two cores
        (2, {1: (1000.0, 1.0), 2: (100.0, 0.9)}, "2 threads are 10.0 times slower than one.*OMP_NUM_THREADS=1"),
        (2, {1: (500.0, 0.5), 2: (900.0, 0.5)}, "a thread gets 50% of a core.*OMP_NUM_THREADS=1"),
        (2, CROWDED, "12.5 times slower"),
        (1, QUIET, None),
        (1, CROWDED, "a thread gets 50% of a core.*Close them, or wait"),
        (1, {1: (1000.0, 0.95)}, None),
    ],
)
def test_what_is_said_of_a_trial(threads, trials, words, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "trial", lambda threads: trials[threads])
    said = machine.busy()
    assert said is None if words is None else re.fullmatch(f"busy machine: .*{words}.*", said)


def test_a_trial_is_short_and_leaves_the_threads_as_they_were():
    before, began = torch.get_num_threads(), time.perf_counter()
    rate, share = machine.trial(before + 1, seconds=0.02)
    assert torch.get_num_threads() == before and rate > 0 and 0 < share < 1.5
    with pytest.raises(RuntimeError):
        machine.trial(0)
    assert torch.get_num_threads() == before and time.perf_counter() - began < 10


def test_demo_and_bench_say_it_before_they_measure(monkeypatch, capsys, tmp_path):
    class Measuring(Exception):
        pass

    def measuring(*_, **__):
        raise Measuring

    monkeypatch.setattr(machine, "busy", lambda: "busy machine: told")
    monkeypatch.setattr(experiments, "interleaved", measuring)
    monkeypatch.setattr(bench.pairs, "measure", measuring)
    for arguments in (
        ["demo", "--tokens", "2", "--backend", "eager", "--out", str(tmp_path / "x.png")],
        ["bench", "pair", "--out", str(tmp_path / "x.json")],
    ):
        with pytest.raises(Measuring):
            main(arguments)
        captured = capsys.readouterr()
        assert (captured.out + captured.err).count("busy machine: told") == 1
