"""Weight-only quantisation: a copy of a model with its matrices in 8 bits, one scale for each row.

Activations and everything that is no matrix inside a layer stay as they are. How much memory and time that saves on a
machine is a question for a measurement; how similar the copy stays, for `experiments.overlaps`.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..errors import InvalidArgument, UnsupportedModel
from .language_model import LanguageModel


def rounded(weight: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """(whole numbers [out, in] as int8, scale of each row [out]): weight is about their product.

    Symmetric round-to-nearest: the largest entry of a row becomes 2^(bits-1) - 1. Raises InvalidArgument unless 2 <=
    bits <= 8.
    """
    if not isinstance(bits, int) or not 2 <= bits <= 8:
        raise InvalidArgument(f"bits must be a whole number from 2 to 8, not {bits!r}")
    most = 2 ** (bits - 1) - 1
    scale = weight.detach().abs().amax(1) / most
    scale = scale.where(scale > 0, torch.ones_like(scale))  # a row of zeros
    return (weight.detach() / scale[:, None]).round().to(torch.int8), scale


class RoundedLinear(nn.Module):
    """A linear layer over rounded weights. Fewer bits than 8 still take 8 in memory.

    On a CPU in float32 or bfloat16, torch's weight-only int8 product reads the 8-bit weights directly; it computes in
    bfloat16. Elsewhere they are dequantised first, which saves memory but no time. So they are for inputs of other
    sizes than multiples of 32: there torch's product reads past the end of a row, and returns noise or crashes (torch
    2.13, AVX-512).
    """

    def __init__(self, module: nn.Linear, bits: int = 8):
        super().__init__()
        weight, scale = rounded(module.weight, bits)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = module.bias

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in x's dtype."""
        if x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and x.shape[-1] % 32 == 0:
            flat = x.reshape(-1, x.shape[-1]).bfloat16()
            out = (
                torch._weight_int8pack_mm(flat, self.weight, self.scale.bfloat16()).to(x.dtype).view(*x.shape[:-1], -1)
            )
        else:
            out = linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return out if self.bias is None else out + self.bias


def rounded_copy(language_model: LanguageModel, bits: int = 8) -> LanguageModel:
    """A copy, on the eager backend, whose linear layers are rounded; embeddings and the output matrix stay. The
    original is not touched.

    Raises UnsupportedModel if there is no linear layer to round.
    """
    model = deepcopy(language_model.model)
    output = model.get_output_embeddings()
    places = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not output]
    if not places:
        raise UnsupportedModel(f"{language_model.name} has no linear layers to round")
    for name in places:
        model.set_submodule(name, RoundedLinear(model.get_submodule(name), bits))
    return LanguageModel(model.eval(), language_model.tokenizer, f"{language_model.name}-int{bits}")


def weight_bytes(language_model: LanguageModel) -> int:
    """Bytes that the model's parameters and buffers take, shared ones counted once."""
    tensors = {t.data_ptr(): t for t in (*language_model.model.parameters(), *language_model.model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
