"""What replaces kernels of torch on a CPU computes the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ftkit.training import cpu

ROWS, HEADS, POSITIONS, WIDTH = 2, 4, 24, 16


def attention(**options: Any) -> Callable[..., Tensor]:
    return lambda *given: functional.scaled_dot_product_attention(*given, **options)


def padded() -> Tensor:
    """A causal mask, with padding on the left of the first row."""
    mask = torch.ones(POSITIONS, POSITIONS, dtype=torch.bool).tril().repeat(ROWS, 1, 1, 1)
    mask[0, :, 5:, :5] = False
    return mask


def gradients(attend: Callable[..., Tensor], *given: Tensor) -> list[Tensor]:
    """Of query, key and value, in double precision."""
    leaves = [tensor.detach().requires_grad_() for tensor in given]
    found = attend(*leaves)
    weights = torch.linspace(-1, 1, found.numel()).reshape(found.shape)
    found.backward(weights.to(found.dtype))
    return [leaf.grad.double() for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"attn_mask": padded()}, {"scale": 0.5}], ids=str
)
def test_the_gradient_of_attention_in_bf16_is_that_of_double_precision(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    shape = (ROWS, HEADS, POSITIONS, WIDTH)
    given = [torch.randn(shape, generator=generator).bfloat16() for _ in range(3)]
    torchs = gradients(attention(**options), *given)
    with cpu.fast_kernels():
        found = gradients(attention(**options), *given)
    exact = gradients(attention(**options), *(tensor.double() for tensor in given))
    for ours, its, right in zip(found, torchs, exact, strict=True):
        assert float((ours - right).norm() / right.norm()) < 5e-3
        assert float((ours - right).norm()) <= 1.05 * float((its - right).norm())
    after = gradients(attention(**options), *given)
    assert all(torch.equal(ours, its) for ours, its in zip(after, torchs, strict=True))


@pytest.mark.parametrize(("dtype", "long"), [(torch.float32, cpu._LONG), (torch.bfloat16, POSITIONS)])
def test_other_gradients_of_attention_are_torchs_own(
    dtype: torch.dtype, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_LONG", long)
    given = [torch.randn(ROWS, HEADS, POSITIONS, WIDTH).to(dtype) for _ in range(3)]
    with cpu.fast_kernels():
        found = gradients(attention(), *given)
    torchs = gradients(attention(), *given)
    assert all(torch.equal(ours, its) for ours, its in zip(found, torchs, strict=True))


def test_dropout_keeps_the_share_it_should_and_follows_the_seed() -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        with cpu.fast_kernels():
            return functional.dropout(torch.ones(1000, 100), 0.3)

    kept = drawn(1)
    assert float((kept > 0).float().mean()) == pytest.approx(0.7, abs=0.005)
    assert float(kept.max()) == pytest.approx(1 / 0.7)
    assert torch.equal(kept, drawn(1))
    assert not torch.equal(kept, drawn(2))
