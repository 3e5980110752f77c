"""Latency at published sizes, without the published weights.

What a forward costs depends on a model's shape and not on the values of its weights. So models of the true shapes are
filled with random numbers and timed; with the acceptance rates that others published, theory then predicts their
speed-ups on this machine.
"""

import time
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from scipy.optimize import brentq
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig
from transformers.utils import cached_file

from ..drafters import ModelDrafter
from ..errors import InvalidArgument
from ..law import theory
from ..law.distributions import Sampling
from ..loop.decoding import generate
from ..model.language_model import LanguageModel, Pair, load_pair
from . import experiments, latency

LLAMA_1B = {
    **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_key_value_heads": 8},
    **{"head_dim": 64, "vocab_size": 128_256, "max_position_embeddings": 2048, "tie_word_embeddings": True},
}
SHAPES: dict[str, Callable[[], PretrainedConfig]] = {
    "distilgpt2": lambda: GPT2Config(n_layer=6),
    "gpt2": GPT2Config,
    "gpt2-large": lambda: GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": lambda: GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "llama-1b": lambda: LlamaConfig(**LLAMA_1B),
    "llama-7b": LlamaConfig,
}
ON_CPU = ("distilgpt2", "gpt2", "gpt2-large", "gpt2-xl", "llama-1b")

# (target, draft, alpha, gamma, the speed-up that was measured elsewhere, where)
KNOWN = (
    ("gpt2-large", "distilgpt2", 0.71, 4, 1.80, "hurjun/speculative-decoding-lab, Apple M2, greedy"),
    ("gpt2-large", "gpt2", 0.84, 4, 1.13, "the same"),
    ("gpt2", "distilgpt2", 0.78, 4, 0.88, "the same"),
)
ARTICLE = {"target": "gpt2-xl", "draft": "gpt2", "gamma": 4, "tokens": 40, "speedup": 2.12}
ARTICLE["text"] = "Alan Turing theorized that computers would one day become"
LOOPS = [f"{kind}, {cache} (s)" for cache in ("no cache", "cached") for kind in ("plain", "speculative")]
HUB = "openai-community/"  # whose GPT-2 models are


def random_model(
    shape: str | PretrainedConfig,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "eager",
) -> LanguageModel:
    """A model of a published shape, or of any, with random weights and no tokenizer. Raises InvalidArgument for an
    unknown name."""
    if isinstance(shape, str) and shape not in SHAPES:
        raise InvalidArgument(f"no shape is called {shape!r}; choose one of {', '.join(SHAPES)}")
    config, name = (SHAPES[shape](), shape) if isinstance(shape, str) else (shape, "random")
    with torch.device("meta"):  # no memory and no time for weights that are overwritten anyway
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = model.to_empty(device=device).eval()
    model.tie_weights()
    generator = torch.Generator(device=device).manual_seed(0)
    for parameter in model.parameters():
        parameter.data.uniform_(-0.02, 0.02, generator=generator)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("inv_freq"):  # to_empty left it without values
            half = buffer.numel()
            buffer.copy_(10_000.0 ** -(torch.arange(half, device=device) / half))
    # random weights of up to gigabytes, to be timed
    return LanguageModel(model, name=name, backend=backend, probe=False)


def measure(
    names: Sequence[str] = ON_CPU,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> dict:
    """Width curve (9 cached widths at context 64) and uncached forwards of each shape: {"machine", "dtype", "models"},
    ready for JSON.

    Each model: {"parameters", "widths": [{"width", "ms", "low", "high"}], "uncached": [{"length", "ms"}]}.
    """
    models = {}
    for name in tqdm(names, desc="published sizes", unit="model", disable=not progress):
        model = random_model(name, device, dtype)
        widths = latency.width_curve(model, latency.WIDTHS, context=64, passes=3, min_seconds=0.02)
        texts = {length: torch.arange(length, device=device)[None] for length in (10, 30, 50)}
        ms = {n: latency.timed("c().extend(t)", 0.5, c=model.context, t=text) for n, text in texts.items()}
        models[name] = {"parameters": model.parameters, "widths": widths.round(3).to_dict("records")}
        models[name]["uncached"] = [{"length": n, "ms": value} for n, value in ms.items()]
        del model
    return {"machine": experiments.machine(), "dtype": str(dtype).removeprefix("torch."), "models": models}


def predictions(record: dict) -> pd.DataFrame:
    """One line per known pair: c and T(gamma + 1) / T(1) measured on this machine, alpha and speed-up as published,
    speed-up predicted here.
    """
    known = pd.DataFrame(KNOWN, columns=["target", "draft", "alpha", "gamma", "measured there", "source"])
    known = known[known["target"].isin(record["models"]) & known["draft"].isin(record["models"])]
    costs = [ratios(record, *pair) for pair in known[["target", "draft", "gamma"]].itertuples(index=False)]
    table = known.assign(c=[c for c, _ in costs], width=[width for _, width in costs])
    table["predicted here"] = theory.speedup(*(table[name].to_numpy() for name in ("alpha", "gamma", "c", "width")))
    return table[[*"target draft alpha gamma c width".split(), "predicted here", "measured there", "source"]]


def ratios(record: dict, target: str, draft: str, gamma: int) -> tuple[float, float]:
    """(c, T(gamma + 1) / T(1)) of a pair, with a cache."""
    big, small = ({row["width"]: row["ms"] for row in record["models"][name]["widths"]} for name in (target, draft))
    return small[1] / big[1], big[gamma + 1] / big[1]


def article(record: dict) -> dict[str, float]:
    """The article's GPT-2 XL figure, taken apart: it compares two loops without a cache.

    Seconds for its 40 tokens, predicted from the forwards measured here, at the alpha that its 2.12x implies without a
    cache: plain and speculative, each without and with a cache, and the speed-up over either baseline. Where the draft
    costs so much that no alpha gives as much, as on a GPU that waits for the host, alpha is 1: an upper bound.
    """
    a, gamma = ARTICLE, ARTICLE["gamma"]
    c, width = ratios(record, a["target"], a["draft"], gamma)
    models = {name: pd.DataFrame(record["models"][a[name]]["uncached"])["ms"].mean() for name in ("target", "draft")}
    c_uncached = models["draft"] / models["target"]  # by the mean over the lengths passed through

    def missing(alpha: float) -> float:
        return a["speedup"] - float(theory.speedup(alpha, gamma, c_uncached))

    alpha = brentq(missing, 0.0, 1.0) if missing(1.0) < 0 else 1.0
    cached = {row["width"]: row["ms"] for row in record["models"][a["target"]]["widths"]}[1]
    without, with_cache = (a["tokens"] * ms / 1e3 for ms in (models["target"], cached))
    faster, cached_faster = theory.speedup(alpha, gamma, c_uncached), theory.speedup(alpha, gamma, c, width)
    seconds = without, without / float(faster), with_cache, with_cache / float(cached_faster)
    return {"alpha implied": alpha, **compared(*seconds)}


def downloaded(names: Sequence[str] = (ARTICLE["target"], ARTICLE["draft"]), owner: str = HUB) -> Pair | None:
    """The article's own models, if their weights lie in the hub's cache on this machine, else None: nobody should fetch
    7 GB without meaning to.
    """
    try:
        for name in names:
            cached_file(owner + name, "model.safetensors", local_files_only=True)
    except OSError:
        return None
    return load_pair(*(owner + name for name in names))


def article_here(
    pair: Pair, prompt: str = ARTICLE["text"], tokens: int = ARTICLE["tokens"], gamma: int = ARTICLE["gamma"]
) -> dict[str, float]:
    """What `article` predicts, measured with true weights, greedy: the same names, and whether all four loops wrote one
    text.
    """
    ids, greedy = pair.target.tokenizer(prompt)["input_ids"], Sampling(temperature=0)

    def cached(drafter: ModelDrafter | None) -> list[int]:
        return generate(pair.target, [ids], drafter, greedy, gamma, max_new_tokens=tokens, stop=[]).tokens[0].tolist()

    loops = (
        lambda: uncached(pair, ids, 0, tokens),
        lambda: uncached(pair, ids, gamma, tokens),
        lambda: cached(None),
        lambda: cached(ModelDrafter(pair.draft)),
    )

    def timed(loop: Callable[[], list[int]]) -> dict:
        began = time.perf_counter()
        text = loop()
        return {"seconds": time.perf_counter() - began, "text": text}

    methods = {name: lambda _, seed, loop=loop: timed(loop) for name, loop in zip(LOOPS, loops, strict=True)}
    frame = experiments.interleaved(methods, [prompt], progress=False)
    texts = frame["text"].to_list()
    return compared(*frame["seconds"]) | {"one text": float(all(text == texts[0] for text in texts))}


def compared(*seconds: float) -> dict[str, float]:
    """Four LOOPS' seconds, and the speed-up over either baseline."""
    plain_uncached, spec_uncached, plain_cached, spec_cached = seconds
    return dict(zip(LOOPS, seconds, strict=True)) | {
        "article's kind of speed-up": plain_uncached / spec_uncached,
        "speculative without a cache over cached plain": plain_cached / spec_uncached,
        "both cached": plain_cached / spec_cached,
    }


def uncached(pair: Pair, ids: Sequence[int], gamma: int, tokens: int) -> list[int]:
    """The article's loop: greedy, every forward over the whole text again. gamma 0 is its plain decoding."""

    # the favourite after each of the last `count` tokens
    def choices(model: LanguageModel, text: list[int], count: int) -> list[int]:
        return model.context().extend(torch.tensor([text], device=model.device), keep=count)[0].argmax(-1).tolist()

    text = list(ids)
    while len(text) < len(ids) + tokens:
        guesses = []
        for _ in range(min(gamma, len(ids) + tokens - len(text) - 1)):
            guesses += choices(pair.draft, text + guesses, 1)
        wanted = choices(pair.target, text + guesses, len(guesses) + 1)
        right = next((k for k, guess in enumerate(guesses) if guess != wanted[k]), len(guesses))
        text += wanted[: right + 1]
    return text[len(ids) :]
