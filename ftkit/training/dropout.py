"""Dropout on a CPU, of hidden states and in attention, in as few passes over the numbers as it takes.

None of it changes what is computed, except which random numbers are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor


def drawn(shape: Sequence[int], p: float, generator: torch.Generator | None = None) -> Tensor:
    """Ones with probability p and zeros, as bytes.

    Drawn by SFC64, 16 bits an element, seeded from torch's generator. torch draws them one by one on a single
    core, a fifth of the time of a training step of a small model. The probability is rounded to 1/65536. As
    the seed comes from torch's generator, the same seed gives the same masks, and a resumed run goes on with
    the masks it would have had.
    """
    found = torch.Size(shape)
    threshold = round(p * 65536)
    if threshold == 65536:
        return torch.ones(found, dtype=torch.uint8)
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
    source = numpy.random.Generator(numpy.random.SFC64(seed))
    words = source.integers(0, 2**64 - 1, -(-found.numel() // 4), numpy.uint64, endpoint=True)
    # numpy compares and torch converts many numbers at once, which neither does for both.
    below = words.view(numpy.uint16)[: found.numel()] < numpy.uint16(threshold)
    return torch.from_numpy(below.view(numpy.uint8)).view(found)


def factors(x: Tensor, p: float) -> Tensor:
    """What dropout multiplies `x` with: 0 with probability p, else 1 / (1 - p)."""
    return (drawn(x.shape, 1 - p) * (1 / (1 - p))).to(x.dtype)


class Dropout(torch.autograd.Function):
    """`x`, each number 0 with probability p, the others scaled up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        noise = factors(x, p)
        ctx.save_for_backward(noise)
        return x * noise

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (noise,) = ctx.saved_tensors
        return gradient * noise, None


class Attention(torch.autograd.Function):
    """Scaled dot-product attention with dropout of its weights (Vaswani et al., 2017, section 3.2.1).

    torch has no kernel for it on a CPU and composes it of a dozen passes over the weights. As there, all is
    computed in single precision at least.

    Shapes: query (rows, heads, length, width), key and value (rows, heads, length of keys, width); mask
    broadcasts to (rows, heads, length, length of keys), `True` where a query sees a key, or added.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, scale: float
    ) -> Tensor:
        exact = torch.promote_types(query.dtype, torch.float32)
        shape = (*query.shape[:-1], key.shape[-2])
        q, k, v = (one.to(exact).flatten(0, 1) for one in (query, key, value))
        scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=scale).view(shape)
        weights = _softmax(scores, mask).flatten(0, 1)
        noise = factors(weights, p)
        ctx.save_for_backward(query, key, value, weights, noise)
        ctx.scale, ctx.exact = scale, exact
        return torch.bmm(weights * noise, v).view(*query.shape[:-1], value.shape[-1]).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *given, weights, noise = ctx.saved_tensors
        q, k, v, g = (one.to(ctx.exact).flatten(0, 1) for one in (*given, gradient))
        of_v = torch.bmm((weights * noise).mT, g)
        of_weights = torch.bmm(g, v.mT).mul_(noise)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, ctx.exact)
        empty = q.new_empty(())
        of_q = torch.baddbmm(empty, of_scores, k, beta=0, alpha=ctx.scale)
        of_k = torch.baddbmm(empty, of_scores.mT, q, beta=0, alpha=ctx.scale)
        found = zip((of_q, of_k, of_v), given, strict=True)
        return *(one.view(its.shape).to(its.dtype) for one, its in found), None, None, None


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Of the scores, which are changed; nothing where a query sees no key, as torch has it."""
    if mask is None:
        return torch.softmax(scores, -1)
    if mask.dtype is torch.bool:
        seen = mask
        scores.masked_fill_(mask.logical_not(), float("-inf"))
    else:
        seen = mask != float("-inf")
        scores.add_(mask)
    # The mask is the same for all heads, so to look at it costs less than to look at the weights.
    every = bool(seen.any(-1).all())
    return torch.softmax(scores, -1) if every else torch.ops.aten._safe_softmax(scores, -1)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    p: float,
    *,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """Attention as `torch.nn.functional.scaled_dot_product_attention` defines it, with dropout."""
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if (shared := query.shape[1] // key.shape[1]) > 1:
        key, value = (one.repeat_interleave(shared, 1) for one in (key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    found: Tensor = Attention.apply(query, key, value, mask, p, scale)
    return found
