"""Laid-out weights give the same products: against float64, for any number of rows, and where they cannot be laid out."""

import platform

import pytest
import torch

from speclib.products import can_pack, product

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float64: 1e-13}


def matrices(dtype, bias, rows):
    chance = torch.Generator().manual_seed(0)
    x, weight, added = (torch.randn(*shape, generator=chance, dtype=torch.float64).to(dtype) for shape in ((rows, 48), (80, 48), (80,)))
    return x, weight, added if bias else None


def right(x, weight, bias):
    return x.double() @ weight.double().T + (0 if bias is None else bias.double())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", list(ROUNDING))
@torch.inference_mode()
def test_the_product_whatever_the_number_of_rows(dtype, bias):
    for rows in (1, 2, 5, 16, 33):
        x, weight, added = matrices(dtype, bias, rows)
        got = product(weight, added)(x)
        assert got.dtype == dtype and got.shape == (rows, 80)
        assert ((got.double() - right(x, weight, added)).abs() <= ROUNDING[dtype] * (1 + right(x, weight, added).abs())).all()


@torch.inference_mode()
def test_a_part_of_a_matrix_and_rows_that_do_not_lie_together():
    x, weight, _ = matrices(torch.float32, False, 10)
    wide = torch.cat([x, x], 1)[::2, 24:72]
    assert (product(weight[3:70])(wide).double() - right(wide, weight[3:70], None)).abs().max() < 1e-4


def test_where_weights_are_not_laid_out(monkeypatch):
    _, weight, _ = matrices(torch.float32, False, 1)
    assert not can_pack(weight.double()) and not can_pack(weight.half()) and not can_pack(weight.to("meta"))
    assert product(weight.to("meta"))(torch.ones(2, 48, device="meta")).shape == (2, 80)
    if can_pack(weight):  # else there is nothing to switch off
        with torch.backends.mkldnn.flags(enabled=False):
            assert not can_pack(weight)
        monkeypatch.setattr(platform, "machine", lambda: "riscv64")
        assert not can_pack(weight)


def test_the_weights_are_a_copy_without_a_gradient():
    x, weight, _ = matrices(torch.float32, False, 4)
    weight = torch.nn.Parameter(weight)
    made = product(weight)
    assert not made(x).requires_grad
    if can_pack(weight):
        before = made(x)
        weight.data.zero_()
        assert torch.equal(made(x), before)


@pytest.mark.skipif(not can_pack(torch.ones(1, 1)), reason="oneDNN lays nothing out here")
def test_torch_knows_the_shape_of_what_comes_out():
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.ones(80, 48))
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as fake:
        out = torch.ops.speclib.product(fake.from_tensor(torch.ones(3, 48)), packed, None)
    assert out.shape == (3, 80) and out.dtype == torch.float32
