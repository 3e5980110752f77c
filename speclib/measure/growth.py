"""How the cost of a token grows: with the length of the text, with the draft length, with the vocabulary.

The models' forwards grow as they must. What the loop itself adds - drawing, the rule, bookkeeping - should stay small
everywhere.
"""

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformers import LlamaConfig

from .. import embedded
from ..drafters import ModelDrafter
from ..law import rules
from ..law.distributions import Sampling, seeded
from ..model.language_model import Pair
from . import experiments, latency
from .published import random_model

PHASES = ["prefill", "draft", "target", "other", "total"]


def sized_pair(vocabulary: int, backend: str = "fast") -> Pair:
    """Two small random Llamas (8 layers and 1, width 256) over a vocabulary of any size, without tokenizers."""
    shape = {"vocab_size": vocabulary, "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4}
    shape |= {"max_position_embeddings": 512, "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None}
    configs = (LlamaConfig(**shape, num_hidden_layers=layers) for layers in (8, 1))
    return Pair(*(random_model(config, backend=backend) for config in configs))


def per_token(
    pair: Pair, prompts: Sequence[Sequence[int]], gamma: int, tokens: int, sampling: Sampling | None = None
) -> dict[str, float]:
    """Milliseconds per new token by phase: draft, target, prefill, other, total (each the median over prompts)."""
    drafter = ModelDrafter(pair.draft) if gamma else None
    trial = experiments.ours(pair.target, drafter, sampling or Sampling(), gamma, tokens)
    frame = experiments.interleaved({"this": trial}, [[list(prompt)] for prompt in prompts], progress=False)
    phases = frame[[f"{phase}_seconds" for phase in PHASES]].set_axis(PHASES, axis=1)
    return (1e3 * phases / tokens).median().to_dict()


def rules_alone(vocabulary: int, batch: int = 1, gamma: int = 4, min_seconds: float = 0.3) -> dict[str, float]:
    """One verification without any model: {"vocabulary", "batch", "ms", "rounds_per_second"} of the token rule's law
    and both of its draws, float32.
    """
    chance = torch.Generator().manual_seed(0)
    p, q = (torch.rand(batch, n, vocabulary, generator=chance).softmax(-1) for n in (gamma + 1, gamma))
    draw = seeded(0)
    drafted = draw(q)  # [B, gamma]

    def verify() -> torch.Tensor:
        return rules.token_law(p, q, drafted).draw(draw)[1]  # [B]

    ms = latency.timed("verify()", min_seconds, verify=verify)
    return {"vocabulary": vocabulary, "batch": batch, "ms": ms, "rounds_per_second": 1e3 * batch / ms}


def measure(
    pair: Pair,
    lengths: Sequence[int] = (16, 64, 128, 256, 440),
    gammas: Sequence[int] = (0, 1, 2, 4, 8, 12, 16),
    vocabularies: Sequence[int] = (4096, 32_000, 150_000),
    texts: int = 6,
    tokens: int = 48,
    progress: bool = True,
) -> dict[str, list[dict]]:
    """{"length", "gamma", "vocabulary"}: milliseconds per token by phase for each value, the other settings being gamma
    4 and a short prompt; and "rules": `rules_alone` for many rounds at once over 8 tokens, and for one over each
    vocabulary.
    """
    ids = [pair.tokenizer(text)["input_ids"] for text in embedded.prompts("code")]
    stream = [token for text in ids for token in text]
    cut = {length: [stream[k * 97 : k * 97 + length] for k in range(texts)] for length in lengths}
    cases = [("length", n, gamma, pair, cut[n]) for n in lengths for gamma in (0, 4)]
    cases += [("gamma", gamma, gamma, pair, ids[:texts]) for gamma in gammas]
    for vocabulary in vocabularies:
        sized = sized_pair(vocabulary, pair.target.backend)
        cases += [("vocabulary", vocabulary, gamma, sized, ids[:texts]) for gamma in (0, 4)]
    found = {name: [] for name, *_ in cases}
    found["rules"] = [rules_alone(8, batch=10_000), *map(rules_alone, vocabularies)]
    for name, value, gamma, models, prompts in tqdm(cases, desc="growth", disable=not progress):
        found[name].append({"value": value, "gamma": gamma, **per_token(models, prompts, gamma, tokens)})
    return found
