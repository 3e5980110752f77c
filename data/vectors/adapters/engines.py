"""Engines' own verification functions, held against the vectors: what ENGINES.md says of each.

    python -m speclib certify -- python data/vectors/adapters/engines.py vllm

or, in a test of yours, `speclib.certify(engines.connect("vllm"), skip=engines.SKIP)`. A function here takes a case, the
number of draws and a seed, and returns that many lists of emitted tokens, all n of them by one call where it can.
"""

import inspect
import json
import sys
from types import SimpleNamespace

import torch

SKIP = ["text", "settings", "tree", "mask", "not made", "no guess"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def rows(case, n):
    """p [n, g+1, V] and q [n, g, V] in float32, and the guesses [n, g] in int32: the same for all n draws."""
    parts = (torch.tensor(case[name], device=DEVICE)[None] for name in ("p", "q", "drafted"))
    p, q, x = (part.expand(n, *part.shape[1:]).contiguous() for part in parts)
    return p.float(), q.float(), x.int()


def until_negative(tokens):
    """Rows of tokens [n, g+1] -> lists, without the negative entries behind the last token."""
    return [[token for token in row if token >= 0] for row in tokens.tolist()]


def transformers():
    from transformers.generation.utils import _speculative_sampling

    asked = inspect.signature(_speculative_sampling).parameters
    fixed = {"is_done_candidate": False} if "is_done_candidate" in asked else {}  # older versions want to be told

    def draws(case, n, seed):
        torch.manual_seed(seed)
        p, q, x = rows(case, 1)
        more = {"assistant_ensemble_weight": case["parameters"]["weight"]} if case["rule"] == "ensemble" else {}
        g, logs = x.shape[1], (q.log(), p.log())  # it takes logits; those of one text at a time
        return [_speculative_sampling(x.long(), logs[0], g, logs[1], **fixed, **more)[0][0].tolist() for _ in range(n)]

    return draws


def flashinfer():
    from flashinfer.sampling import chain_speculative_sampling

    def draws(case, n, seed):
        torch.manual_seed(seed)
        p, q, x = rows(case, n)
        return until_negative(chain_speculative_sampling(q, x, p)[0])

    return draws


def vllm():
    from vllm.v1.sample.rejection_sampler import rejection_sample

    logits = "target_logits" in inspect.signature(rejection_sample).parameters  # up to 2025: target_probs

    def draws(case, n, seed):
        torch.manual_seed(seed)
        p, q, x = rows(case, n)
        g, v = q.shape[1:]
        ends = torch.arange(1, n + 1, dtype=torch.int32, device=DEVICE) * g
        bonus = torch.multinomial(p[:, -1], 1).int()  # the engine draws it elsewhere
        flat = p[:, :-1].reshape(-1, v).contiguous()
        ones = torch.ones(n, device=DEVICE)
        settings = SimpleNamespace(all_greedy=False, all_random=True, generators={}, temperature=ones)
        told = flat.log() if logits else flat
        tokens = rejection_sample(x.reshape(-1), [g] * n, g, ends, q.reshape(-1, v), told, bonus, settings)
        return until_negative(tokens)

    return draws


def sglang(way):
    """way: "tree", which its workers call with an empty q; "chain" or "block", with the draft's own q."""
    try:
        from sglang.kernels.ops.speculative import verify_sampling as home  # since 2026
    except ImportError:
        import sgl_kernel as home
    options = {"block_verification": True} if way == "block" else {}
    name = "tree_speculative_sampling_target_only" if way == "tree" else "chain_speculative_sampling_triton"
    function = getattr(home, name, None)
    if function is None:
        raise ImportError(f"this version has no {name} here")

    def draws(case, n, seed):
        torch.manual_seed(seed)
        p, q, x = rows(case, n)
        g, whole, long = q.shape[1], {"dtype": torch.int32, "device": DEVICE}, {"dtype": torch.int64, "device": DEVICE}
        predicts, accepted = torch.zeros(n * (g + 1), **whole), torch.zeros(n, **whole)
        path = torch.full((n, g + 1), -1, **whole)
        candidates = torch.cat([torch.zeros(n, 1, **long), x.long()], 1)  # the token before the guesses comes first
        index = torch.arange(n * (g + 1), **long).reshape(n, g + 1)
        child = torch.tensor([*range(1, g + 1), -1], **long).expand(n, -1).contiguous()
        uniform = torch.rand(n, g + 1, device=DEVICE), torch.rand(n, device=DEVICE)
        told = torch.zeros_like(p) if way == "tree" else q
        tree = candidates, index, child, torch.full_like(child, -1)  # no siblings
        function(predicts, path, accepted, *tree, *uniform, p, told, 1.0, 1.0, True, **options)
        return [predicts[row[: k + 1].long()].tolist() for row, k in zip(path, accepted.tolist(), strict=True)]

    return draws


def tensorrt_llm():
    from tensorrt_llm._torch.pyexecutor.sampling_utils import get_rejected_indices, sample_rejected

    def draws(case, n, seed):
        chance = torch.Generator(DEVICE).manual_seed(seed)
        p, q, x = (part[0] for part in rows(case, 1))
        found = []
        for _ in range(n):
            rejected = get_rejected_indices(q, p, chance, x.tolist()).flatten().tolist()
            k = rejected[0] if rejected else len(x)
            last = sample_rejected(q, p, chance, k) if rejected else torch.multinomial(p[-1], 1, generator=chance)
            found.append([*x[:k].tolist(), int(last)])
        return found

    return draws


ENGINES = {  # name -> how it is connected, the rules that it is meant to follow, whether it needs a GPU
    "transformers": (transformers, ["token", "ensemble"], False),
    "flashinfer": (flashinfer, ["token"], True),
    "vllm": (vllm, ["token"], True),
    "sglang-tree": (lambda: sglang("tree"), ["match"], True),
    "sglang-chain": (lambda: sglang("chain"), ["token"], True),
    "sglang-block": (lambda: sglang("block"), ["block"], True),
    "tensorrt-llm": (tensorrt_llm, ["token"], False),
}


def connect(name):
    """The function for `speclib.certify`. Raises ImportError in one line where the engine is not installed."""
    try:
        return ENGINES[name][0]()
    except ImportError as error:
        raise ImportError(f"{name} cannot be imported here: {error}") from None


def main():
    if sys.argv[1:] not in [[name] for name in ENGINES]:
        sys.exit(f"usage: engines.py ENGINE, one of {', '.join(ENGINES)}")
    name = sys.argv[1]
    try:
        draws = connect(name)
    except ImportError as error:
        sys.exit(str(error))
    _, rules, gpu = ENGINES[name]
    if gpu and DEVICE == "cpu":
        sys.exit(f"{name} needs a GPU, and torch sees none here")
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["op"] == "hello":
            answer = {"name": name, "answers": "draws", "rules": rules, "skip": SKIP}
        else:
            answer = {"draws": draws(asked["case"], asked["n"], asked["seed"])}
        print(json.dumps({"id": asked["id"], **answer}), flush=True)


if __name__ == "__main__":
    main()
