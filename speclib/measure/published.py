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
ARTICLE = {
    "target": "gpt2-xl",
    "draft": "gpt2",
    "gamma": 4,
    "tokens": 40,
    "speedup": 2.12,
    "text": "Alan Turing theorized that computers would one day become",
}
HUB = "openai-community/"  # whose GPT-2 models are


def random_model(
    name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, backend: str = "eager"
) -> LanguageModel:
    """A model of a published shape with random weights and no tokenizer. Raises InvalidArgument for an unknown name."""
    if name not in SHAPES:
        raise InvalidArgument(f"no shape is called {name!r}; choose one of {', '.join(SHAPES)}")
    with torch.device("meta"):  # no memory and no time for weights that are overwritten anyway
        model = AutoModelForCausalLM.from_config(SHAPES[name](), dtype=dtype)
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
        uncached = []
        for length in (10, 30, 50):
            text = torch.arange(length, device=device)[None]
            uncached.append({"length": length, "ms": latency.timed("c().extend(t)", 0.5, c=model.context, t=text)})
        models[name] = {
            "parameters": model.parameters,
            "widths": widths.round(3).to_dict("records"),
            "uncached": uncached,
        }
        del model
    return {"machine": experiments.machine(), "dtype": str(dtype).removeprefix("torch."), "models": models}


def predictions(record: dict) -> pd.DataFrame:
    """One line per known pair: c and T(gamma + 1) / T(1) measured on this machine, alpha and speed-up as published,
    speed-up predicted here.
    """
    rows = []
    for target, draft, alpha, gamma, published, source in KNOWN:
        if target in record["models"] and draft in record["models"]:
            c, width = ratios(record, target, draft, gamma)
            here = float(theory.speedup(alpha, gamma, c, width))
            rows.append((target, draft, alpha, gamma, c, width, here, published, source))
    columns = "target draft alpha gamma c width".split() + ["predicted here", "measured there", "source"]
    return pd.DataFrame(rows, columns=columns)


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
    # mean seconds over the lengths passed through
    uncached = {
        name: sum(row["ms"] for row in record["models"][name]["uncached"]) / 3e3 for name in (a["target"], a["draft"])
    }
    c_uncached = uncached[a["draft"]] / uncached[a["target"]]

    def missing(alpha: float) -> float:
        return a["speedup"] - float(theory.speedup(alpha, gamma, c_uncached))

    alpha = brentq(missing, 0.0, 1.0) if missing(1.0) < 0 else 1.0
    cached = {row["width"]: row["ms"] / 1e3 for row in record["models"][a["target"]]["widths"]}[1]
    plain_uncached, plain_cached = a["tokens"] * uncached[a["target"]], a["tokens"] * cached
    spec_uncached = plain_uncached / float(theory.speedup(alpha, gamma, c_uncached))
    spec_cached = plain_cached / float(theory.speedup(alpha, gamma, c, width))
    seconds = {
        "plain, no cache (s)": plain_uncached,
        "speculative, no cache (s)": spec_uncached,
        "plain, cached (s)": plain_cached,
        "speculative, cached (s)": spec_cached,
    }
    return {"alpha implied": alpha, **seconds, **compared(*seconds.values())}


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

    loops = {
        "plain, no cache (s)": lambda: uncached(pair, ids, 0, tokens),
        "speculative, no cache (s)": lambda: uncached(pair, ids, gamma, tokens),
        "plain, cached (s)": lambda: cached(None),
        "speculative, cached (s)": lambda: cached(ModelDrafter(pair.draft)),
    }

    def timed(loop: Callable[[], list[int]]) -> dict:
        began = time.perf_counter()
        text = loop()
        return {"seconds": time.perf_counter() - began, "text": text}

    methods = {name: lambda prompt, seed, loop=loop: timed(loop) for name, loop in loops.items()}
    frame = experiments.interleaved(methods, [prompt], progress=False).set_index("method")
    seconds, texts = frame["seconds"].to_dict(), frame["text"].to_list()
    return {
        **seconds,
        **compared(*seconds.values()),
        "one text": float(all(text == texts[0] for text in texts)),
    }


def compared(plain_uncached: float, spec_uncached: float, plain_cached: float, spec_cached: float) -> dict[str, float]:
    """The speed-up of four loops' seconds, over either baseline."""
    return {
        "article's kind of speed-up": plain_uncached / spec_uncached,
        "speculative without a cache over cached plain": plain_cached / spec_uncached,
        "both cached": plain_cached / spec_cached,
    }


def uncached(pair: Pair, ids: Sequence[int], gamma: int, tokens: int) -> list[int]:
    """The article's loop: greedy, every forward over the whole text again. gamma 0 is its plain decoding."""

    def choices(
        model: LanguageModel, text: list[int], count: int
    ) -> list[int]:  # the favourite after each of the last `count` tokens
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
