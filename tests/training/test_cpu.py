"""What replaces kernels of torch on a CPU computes the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import ftkit
from ftkit.training import cpu, dropout

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


def dropped(*, mask: Tensor | None = None, scale: float = WIDTH**-0.5, keys: int = HEADS) -> Any:
    """Attention with dropout from the definition, and the factors that it multiplies its weights with."""
    noise = (torch.rand(ROWS, HEADS, POSITIONS, POSITIONS) > 0.25) / 0.75

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (one.repeat_interleave(HEADS // keys, 1) for one in (key, value))
        scores = query @ key.mT * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype is torch.bool else scores + mask
        return (scores.softmax(-1).nan_to_num() * noise.to(scores.dtype)) @ value

    return attend, noise


UNSEEING = (torch.arange(POSITIONS) != 3)[:, None]
CAUSAL = torch.ones(POSITIONS, POSITIONS, dtype=torch.bool).tril()
BIAS = torch.linspace(-2, 2, POSITIONS)[:, None] * torch.linspace(-1, 1, POSITIONS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, {}),
        ({"is_causal": True}, {"mask": CAUSAL}),
        ({"attn_mask": padded()}, {"mask": padded()}),
        ({"attn_mask": padded() & UNSEEING}, {"mask": padded() & UNSEEING}),
        ({"attn_mask": BIAS}, {"mask": BIAS}),
        ({"scale": 0.5}, {"scale": 0.5}),
        ({"enable_gqa": True}, {"keys": 2}),
    ],
    ids=["plain", "causal", "padded", "sees nothing", "bias", "scale", "shared keys"],
)
def test_attention_with_dropout_is_that_of_its_definition(
    options: dict[str, Any], same: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, noise = dropped(**same)
    monkeypatch.setattr(dropout, "factors", lambda x, p: noise.view(x.shape).to(x.dtype))
    generator = torch.Generator().manual_seed(1)
    heads = (HEADS, same.get("keys", HEADS), same.get("keys", HEADS))
    given = [
        torch.randn(ROWS, POSITIONS, count, WIDTH, generator=generator).transpose(1, 2).to(dtype)
        for count in heads
    ]
    options = {name: one.to(dtype) if one is BIAS else one for name, one in options.items()}
    ours = attention(dropout_p=0.25, **options)
    with cpu.fast_kernels():
        found = [ours(*given).double(), *gradients(ours, *given)]
    exact = [tensor.double() for tensor in given]
    right = [attend(*exact), *gradients(attend, *exact)]
    assert len(found) == len(right) == 4
    for one, its in zip(found, right, strict=True):
        assert float((one - its).norm() / its.norm()) < (1e-6 if dtype is torch.float32 else 6e-3)


@pytest.mark.parametrize("p", [0.0, 1.0, 0.4])
def test_attention_and_dropout_are_torchs_own_where_nothing_is_dropped_or_learned(p: float) -> None:
    given = [torch.randn(ROWS, HEADS, POSITIONS, WIDTH) for _ in range(3)]
    found = []
    for kernels in (nullcontext(), cpu.fast_kernels()):
        with kernels, torch.set_grad_enabled(p in (0.0, 1.0)):
            x = given[0].clone().requires_grad_()
            attended = attention(dropout_p=0.0 if p == 0.4 else p)(x, *given[1:])
            found.append((attended, functional.dropout(x, p, training=p != 0.4)))
            assert type(attended.grad_fn).__name__ != "AttentionBackward"
    for ours, its in zip(*found, strict=True):
        assert torch.equal(ours, its)


def test_the_gradient_of_dropout_is_that_of_what_it_kept() -> None:
    x = torch.randn(50, 40, requires_grad=True)
    with cpu.fast_kernels():
        found = functional.dropout(x, 0.3)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(gradient * x, found)
    assert gradient.unique().tolist() == pytest.approx([0, 1 / 0.7])


@pytest.mark.parametrize("compiled", [True, False])
def test_random_numbers_are_no_constants_of_a_compiled_model(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *, compiled: bool
) -> None:
    asked, factors = [], dropout.factors

    def watched(x: Tensor, p: float) -> Tensor:
        asked.append(p)
        return factors(x, p)

    monkeypatch.setattr(dropout, "factors", watched)
    compiling = {"torch_compile": True, "torch_compile_backend": "aot_eager"} if compiled else {}
    ftkit.finetune(recipe | {"training": {**recipe["training"], "max_steps": 2, **compiling}})
    assert bool(asked) != compiled
