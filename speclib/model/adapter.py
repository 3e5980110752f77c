"""A model kept as what it adds to another: LoRA (Hu et al. 2106.09685), W + up @ down for some of the matrices W.

Its folder holds no weights but `adapter.safetensors`, with `NAME.up` [out, r] and `NAME.down` [r, in] for every matrix
changed, and a `card.json` that names the model it belongs to ("adapter_of") and the SHA-256 of that model's weights
("target_sha256").
"""

import json
from collections.abc import Mapping
from pathlib import Path

import pooch
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import embedded
from ..errors import ModelLoadError

FILE = "adapter.safetensors"


def save(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Writes "NAME.up" and "NAME.down" of every matrix as bf16 safetensors."""
    save_file(
        {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in tensors.items()}, folder / FILE
    )


def base(folder: Path, local: bool) -> Path:
    """The folder of the model that the adapter in `folder` belongs to: if `local` its sibling, where there is one, else
    the embedded one.

    Raises ModelLoadError if the card does not name it, it cannot be had, or its weights are not those the adapter was
    trained for.
    """
    try:
        card = json.loads((folder / "card.json").read_text())
        name, digest = card["adapter_of"], card["target_sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"{folder / 'card.json'} does not say which model {FILE} belongs to ({error!r}); restore it, or train "
            f"the adapter again"
        ) from error
    sibling = folder.parent / name
    found = sibling if local and (sibling / "model.safetensors").is_file() else embedded.fetch(f"models/{name}")
    if pooch.file_hash(str(found / "model.safetensors")) != digest:
        raise ModelLoadError(
            f"the adapter in {folder} was trained for other weights than those in {found} (SHA-256 differs); put its "
            f"own {name} there, or train the adapter again"
        )
    return found


@torch.no_grad()
def add(model: nn.Module, folder: Path) -> None:
    """Adds up @ down to every matrix of `model` that the adapter in `folder` changes: in float32, whatever the model's
    dtype.
    """
    tensors = load_file(folder / FILE)
    for name in {key.rpartition(".")[0] for key in tensors}:
        weight = model.get_submodule(name).weight
        change = tensors[f"{name}.up"].float() @ tensors[f"{name}.down"].float()
        weight.copy_(weight.float() + change.to(weight.device))
