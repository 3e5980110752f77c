"""On an accelerator the host runs ahead of the device, and each look at a result waits for it: a round may look once.

The first half runs on torch's meta device, whose tensors have a place and a shape but no numbers: whatever asks for one
raises, as it would while a CUDA graph is captured, and `OneDevice` raises where a tensor of the host meets one of the
device. The one look that the loop is allowed gets numbers made up here. The second half runs the backend's graphs on
the CPU, by a stand-in for torch's CUDA graphs that records operations and repeats them on the very same tensors.
Between them stands what a device may lack: double precision (see `single`), or its presence.
"""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import single
import torch
from models import build, config_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import speclib
from speclib import LanguageModel, Sampling, compiled
from speclib.drafters import Eagle, EagleDrafter, FallbackDrafter, LookupDrafter, ModelDrafter
from speclib.errors import InvalidArgument
from speclib.loop.lengths import ConfidenceLength

PROMPT = [1, 2, 3, 1, 2, 3]
SETTINGS = (Sampling(), Sampling(0), Sampling(0.7, top_k=5, top_p=0.9, min_p=0.01))


def draw(probabilities):
    return torch.zeros(probabilities.shape[:-1], dtype=torch.long, device=probabilities.device)


draw.uniform = lambda *shape: torch.zeros(shape, dtype=torch.float64, device="meta")


class OneDevice(TorchDispatchMode):
    """No operation may be given tensors of two devices, but for copies and single numbers."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        devices = {
            leaf.device.type for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor) and leaf.ndim
        }
        if len(devices) > 1 and "copy" not in operation.__name__:
            raise RuntimeError(f"{operation} on {devices}")
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def looks(monkeypatch):
    """Lets Tensor.tolist on the device count, and answer with token 5 and zeros: every guess is rejected."""
    seen, real = [], torch.Tensor.tolist

    def tolist(tensor):
        if tensor.device.type != "meta":
            return real(tensor)
        seen.append(tensor.shape)
        return [[5.0] + [0.0] * (tensor.shape[1] - 1) for _ in range(tensor.shape[0])]

    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    monkeypatch.setattr(compiled, "fused", lambda program: program)  # what would be captured runs as it stands
    return seen


def on_device(layers, seed, backend):
    return LanguageModel(copy.deepcopy(build("llama grouped", seed, torch.float32, layers)).to("meta"), backend=backend)


@pytest.mark.parametrize("sampling", SETTINGS, ids=["as it is", "greedy", "filtered"])
@pytest.mark.parametrize("guesser", ["nobody", "model", "eagle", "lookup", "lookup, else model", "lookup, else eagle"])
@pytest.mark.parametrize("backend", ["eager", "fast", "compiled"])
def test_the_host_looks_once_a_round(looks, backend, guesser, sampling):
    target, model = on_device(3, 0, backend), ModelDrafter(on_device(1, 1, backend))
    eagle = EagleDrafter(Eagle(config_of(target.model.config.hidden_size)).eval())
    lookup, longer = LookupDrafter(), LookupDrafter(3, 3)
    drafter = {
        "nobody": None,
        "model": model,
        "eagle": eagle,
        "lookup": lookup,
        "lookup, else model": FallbackDrafter(longer, model),
        "lookup, else eagle": FallbackDrafter(longer, eagle),
    }[guesser]
    with OneDevice():
        out = speclib.generate(target, [PROMPT], drafter, sampling, 4, max_new_tokens=20, stop=[], draw=draw)
    assert len(looks) == len(out.trace.rounds) == 20
    assert backend != "compiled" or not target.programs.broken
    assert guesser == "nobody" or sum(len(round.drafted) for round in out.trace.rounds) > 50


def test_a_second_look_would_be_noticed(looks):
    """The control: a plan that asks the device about every guess."""
    target, model = on_device(2, 0, "fast"), ModelDrafter(on_device(1, 1, "fast"))
    with pytest.raises((RuntimeError, NotImplementedError)):
        speclib.generate(target, [PROMPT], model, draft_length=ConfidenceLength(), max_new_tokens=9, draw=draw)


def test_a_meeting_of_two_devices_would_be_noticed():
    with pytest.raises(RuntimeError, match="meta"), OneDevice():
        torch.ones(2, 2, device="meta").gather(1, torch.zeros(2, 2, dtype=torch.long))


@pytest.mark.parametrize("backend", ["eager", "fast"])
def test_every_drafter_on_a_device_without_double_precision(backend):
    command = [sys.executable, str(Path(__file__).with_name("single.py")), backend]
    env = os.environ | {"PYTHONPATH": str(Path(speclib.__file__).parents[1])}
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    if run.returncode == single.NOT_HERE:
        pytest.skip("this torch takes no device of another kind")
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert run.stdout.splitlines()[-1].split() == ["synthetic", "6", "6", "6"]


def test_what_a_machine_has_not_is_said(monkeypatch):
    for name in ("xpu", "hpu", "vulkan", "quantum", "cuda:99", 3.5, ["cpu"]):
        with pytest.raises(InvalidArgument, match="torch sees no device .* leave device out"):
            speclib.load_model("draft-d64x1", device=name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert speclib.load_model("draft-d64x1").device.type == "cpu", "by name alone"


class Recorder(TorchDispatchMode):
    """What a CUDA graph does: remembers every operation with the very tensors and numbers it was given, and `replay`
    writes into the same results again.
    """

    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        results = operation(*args, **(kwargs or {}))
        self.steps.append((operation, args, kwargs or {}, results))
        return results

    def replay(self):
        for operation, args, kwargs, results in self.steps:
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if (
                    isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr()
                ):  # else a view, or written in place
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """A stand-in for what makes CUDA graphs; every program becomes one."""

    def make_graphed_callables(program, kept):
        with Recorder() as recorder:
            outputs = program(*kept)

        def replay(*inputs):
            for place, value in zip(kept, inputs, strict=True):
                if place.data_ptr() != value.data_ptr():
                    place.copy_(value)
            recorder.replay()
            return outputs

        return replay

    made, real = [], compiled.Programs.__init__

    def init(programs, *arguments):
        real(programs, *arguments)
        programs.graphs = True
        made.append(programs)

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    monkeypatch.setattr(compiled.Programs, "__init__", init)
    monkeypatch.setattr(compiled, "ROOM", 64)  # so that a text outgrows its cache
    return made


@pytest.mark.parametrize("guesser", ["nobody", "model", "eagle", "lookup, else eagle"])
def test_graphs_give_the_text_of_the_fast_backend(graphs, guesser):
    """By three settings, two texts each that share a cache one after the other, longer than several blocks of slots and
    than the first cache.
    """
    models = [build("llama grouped", seed, torch.float32, layers) for seed, layers in ((0, 3), (1, 1))]
    eagle = Eagle(config_of(models[0].config.hidden_size)).eval()
    texts = {"fast": [], "compiled": []}
    for backend, written in texts.items():
        target, model = (LanguageModel(m, backend=backend) for m in models)
        drafter = {
            "nobody": None,
            "model": ModelDrafter(model),
            "eagle": EagleDrafter(eagle),
            "lookup, else eagle": FallbackDrafter(LookupDrafter(3, 3), EagleDrafter(eagle)),
        }[guesser]
        for sampling in SETTINGS:
            written += speclib.generate(
                target, [PROMPT, PROMPT[:2]], drafter, sampling, 3, max_new_tokens=150, stop=[], batch_size=1
            ).tokens
    assert all(torch.equal(one, other) for one, other in zip(*texts.values(), strict=True))
    assert len(graphs) == {"nobody": 2, "model": 2}.get(guesser, 3) and not any(programs.broken for programs in graphs)
    verdicts = [key[1] for key in graphs[0]._made if key[0] == "verdict"]
    assert verdicts.count(1 if guesser == "nobody" else 4) == 3, "and a verdict for each setting, whatever the slots"
    assert len(graphs[0]._made) - len(verdicts) >= 3, "one for each number of slots that the text came to"


def test_a_graph_that_holds_on_to_a_length_would_be_noticed(graphs, monkeypatch):
    """The control: a program in which the place of the new token is a number, and no data."""
    real = compiled.forward_of
    monkeypatch.setattr(
        compiled,
        "forward_of",
        lambda d: lambda tokens, start, slots, cache: real(d)(tokens, torch.tensor(int(start)), slots, cache),
    )
    texts = [
        speclib.generate(
            LanguageModel(build("llama grouped", 0, torch.float32), backend=b), [PROMPT], max_new_tokens=40, stop=[]
        ).tokens[0]
        for b in ("fast", "compiled")
    ]
    assert not torch.equal(*texts)
