"""A stand-in for a GPU without double precision, such as Apple's: its tensors are the host's, but they say that they
lie on a device called "far", refuse float64, and meet no tensor of the host. `python tests/single.py BACKEND` loads the
embedded pair there, decodes with every drafter, and prints a line for each.

It is a process of its own, for a device is registered once and for all.
"""

import sys

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "far"
aten = torch.ops.aten
MEET = {aten._to_copy, aten.copy_}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}  # by numbers of the host, too
NOT_HERE = 7  # exit code: this torch has no place for such a device


class Far(torch.Tensor):
    """A tensor of the device. host: where its numbers are."""

    @staticmethod
    def __new__(cls, host):
        if host.dtype in (torch.float64, torch.complex128):
            raise TypeError(f"{NAME} has no {host.dtype}")
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        return cls._make_wrapper_subclass(cls, host.shape, **layout, device=f"{NAME}:0")

    def __init__(self, host):
        self.host = host

    def data_ptr(self):
        return self.host.data_ptr()

    def tolist(self):
        return self.host.tolist()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return on_host(operation, args, kwargs or {})


def on_host(operation, args, kwargs):
    """An operation, done there; its results are of the device if it was given such tensors, or told to make them."""
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    far = {id(leaf.host): leaf for leaf in given if isinstance(leaf, Far)}
    kind = operation.overloadpacket
    must = tree_leaves((args[0], args[2:])) if kind in INDEXED else [] if kind in MEET else given
    if far and any(isinstance(x, torch.Tensor) and x.ndim and not isinstance(x, Far) for x in must):
        raise RuntimeError(f"{operation} on tensors of two devices")
    place = kwargs.get("device")
    there = torch.device(place).type == NAME if place is not None else bool(far)

    def near(x):
        if isinstance(x, Far):
            return x.host
        return torch.device("cpu") if isinstance(x, torch.device) and x.type == NAME else x

    if there and kwargs.get("dtype") == torch.float64:
        raise TypeError(f"{NAME} has no float64")
    result = operation(*tree_map(near, args), **tree_map(near, kwargs))
    if kind == aten.copy_:
        return args[0]

    def back(x):
        if type(x) is not torch.Tensor:
            return x
        return far[id(x)] if id(x) in far else Far(x)

    return tree_map(back, result) if there else result


class Operations(TorchDispatchMode):
    """Takes what makes tensors there, of which none is given."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return on_host(operation, args, kwargs or {})


class Lists(TorchFunctionMode):
    """Takes the lists of numbers, in `torch.tensor` and as indices, which torch itself would copy there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.tensor and kwargs.get("device") is not None:
            place = kwargs.pop("device")
            return function(*args, **kwargs).to(place)
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], Far):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            args = args[0], tuple(torch.tensor(i) if isinstance(i, list) else i for i in index), *args[2:]
        return function(*args, **kwargs)


def install():
    """From now on torch has the device, in this process."""
    from torch.utils import backend_registration

    try:
        backend_registration._setup_privateuseone_for_python_backend(NAME)
    except Exception:  # it is experimental
        sys.exit(NOT_HERE)
    generator = torch.Generator
    torch.Generator = lambda device="cpu": generator("cpu")
    Operations().__enter__()
    Lists().__enter__()


def main(backend):
    torch.inference_mode = lambda mode=True: torch.no_grad()  # of which tensors with another inside cannot be
    import speclib
    from speclib import Sampling, demo, drafters, fast
    from speclib.law import distributions

    install()
    for forbidden in (lambda x: x.double(), lambda x: x.sum(dtype=torch.float64), lambda x: x + torch.ones(2)):
        try:
            forbidden(torch.ones(2, device=NAME))
        except (TypeError, RuntimeError):
            continue
        raise AssertionError("the stand-in would notice nothing")
    distributions.SINGLE.add(NAME)
    pair = speclib.load_pair(device=NAME, backend=backend)
    assert pair.target.device.type == NAME
    lookup, model = drafters.LookupDrafter(), drafters.ModelDrafter(pair.draft)
    eagle = drafters.EagleDrafter(drafters.load_eagle())
    guessers = {
        "nobody": None,
        "model": model,
        "lookup": lookup,
        "n-gram": drafters.NgramDrafter(3),
        "first layers": drafters.LayerSkipDrafter(4, drafters.load_exits()),
        "heads": drafters.HeadsDrafter(drafters.load_heads()),
        "eagle": eagle,
        "heads, tree": drafters.HeadsDrafter(drafters.load_heads(), width=3, choices="top"),
        "block": drafters.BlockDrafter(drafters.load_block()),
        "block, point": drafters.BlockDrafter(drafters.load_block(), "point"),
        "tree": drafters.TreeDrafter(pair.draft, (2, 2), budget=3),
        "best tree of eagle": drafters.TreeDrafter(eagle, (2, 2), False, 3),
        "both": drafters.EnsembleDrafter([lookup, model]),
        "lookup, else model": drafters.FallbackDrafter(lookup, model),
        "synthetic": drafters.SyntheticDrafter(0.7),
    }
    try:
        speclib.load_pair(device=NAME, dtype="float64")
    except speclib.errors.InvalidArgument as error:
        assert "'far' has no torch.float64; take dtype='float32'" in str(error)
    else:
        raise AssertionError("double precision was promised")
    some, other = torch.nn.Linear(3, 3), torch.ones(4, device=NAME)
    some.register_buffer("other", other)
    before = fast.fingerprint(some, numbers=True)
    other.host[1] += 1
    assert fast.fingerprint(some, numbers=True)[2:] != before[2:], "on two devices"
    print(demo.lossless_check(pair, "import os", Sampling(), 2, texts=200))
    prompts = ["def f(x):\n    return x", "import os"]
    greedy = speclib.generate(pair.target, prompts, None, Sampling(0), max_new_tokens=6).texts
    for name, drafter in guessers.items():
        out = speclib.generate(pair.target, prompts, drafter, Sampling(0), max_new_tokens=6)
        assert out.texts == greedy and (drafter is None or out.summary()["proposed"]), name
        drawn = Sampling(0.9, top_k=50, top_p=0.9, min_p=0.01)
        runs = (speclib.generate(pair.target, p, drafter, drawn, max_new_tokens=6, stop=[]) for p in (prompts, "if a:"))
        print(name, *(len(text) for out in runs for text in out.tokens), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
