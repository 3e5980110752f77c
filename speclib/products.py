"""A few rows times a matrix of weights: what a forward of a language model mostly is.

On a CPU torch's own `linear` reads the weights as they lie, with kernels that are slow for two to sixteen rows: checking five tokens takes much longer
than reading one, although the weights, for which both wait, are the same. So they are laid out once, in blocks as oneDNN's kernels read them, and five
rows cost about what one does. torch.compile does the same when it freezes a model, by the same operations of torch.
"""

import platform
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

Product = Callable[[Tensor], Tensor]


def product(weight: Tensor, bias: Tensor | None = None) -> Product:
    """x [k, in] -> x W^T + b [k, out], for W = weight [out, in] and b = bias [out] or None. Weights that are laid out are copied."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    if not can_pack(weight):
        return lambda x: linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    return lambda x: torch.ops.speclib.product(x, packed, bias) if torch.compiler.is_compiling() else _packed_product(x, packed, bias)


def can_pack(weight: Tensor) -> bool:
    """Whether oneDNN can lay these weights out: float32, or bfloat16 where the processor has instructions for it. Tried on x86 only."""
    if (
        weight.device.type != "cpu"
        or platform.machine() not in ("x86_64", "AMD64")
        or not (torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available())
    ):
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed_product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


# torch.compile accepts laid-out weights from its own freezing only, and that takes slower kernels for float32. An operation it cannot look into it calls as it is.
_library = torch.library.Library("speclib", "DEF")
_library.define("product(Tensor x, Tensor packed, Tensor? bias) -> Tensor")
_library.impl("product", _packed_product, "MkldnnCPU")
torch.library.register_fake("speclib::product", lambda x, packed, bias: x.new_empty(x.shape[0], packed.shape[0]), lib=_library)
