"""A linear layer with a low-rank adapter, computed in one piece on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor
from torch.nn import functional


class LowRankLinear(Linear):
    """PEFT's layer, which on a CPU adds the adapter to the product instead of beside it.

    PEFT scales and adds the adapter's output in passes of their own, each over as many numbers as the layer
    has outputs; in bf16 it also turns the inputs into fp32, and autocast turns them back. On a CPU that costs
    as much as the products in bf16, and a tenth of them in fp32. Here the inputs are rounded once, the few
    numbers of the low rank are scaled, and the second product adds to the first. What PEFT computes otherwise
    (dropout, variants, merged or several adapters, accelerators, mixed types), it goes on computing.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self._alone(x) if not args and not kwargs else None
        if name is None:
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        base, a, b = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        with torch.autocast("cpu", enabled=False):
            bias = None if base.bias is None else base.bias.to(low)
            fused: Tensor = _Product.apply(x, base.weight.to(low), bias, a, b, self.scaling[name])
        return fused

    def _alone(self, x: Tensor) -> str | None:
        """The one adapter that is nothing but two matrices, where both products are of the same type."""
        if x.device.type != "cpu" or not torch.is_grad_enabled():
            return None
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        name: str = self.active_adapters[0]
        if name not in self.lora_A or name in self.lora_variant or self.lora_B[name].bias is not None:
            return None
        if self.training and getattr(self.lora_dropout[name], "p", 0.0):
            return None
        base = self.base_layer
        frozen = not any(parameter.requires_grad for parameter in base.parameters())
        if type(base) is not torch.nn.Linear or not frozen:
            return None
        types = {x.dtype, base.weight.dtype, self.lora_A[name].weight.dtype, self.lora_B[name].weight.dtype}
        return name if torch.is_autocast_enabled("cpu") or len(types) == 1 else None


class _Product(torch.autograd.Function):
    """`x W' + bias + scaling (x A') B'`, with W and bias frozen.

    Shapes: x (..., in), W (out, in), bias (out,), A (rank, in), B (out, rank); gives (..., out), of the type
    of W, which both products are computed in.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Any, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        low = weight.dtype
        rows, a_low, b_low = x.reshape(-1, x.shape[-1]).to(low), a.to(low), b.to(low)
        inner = (rows @ a_low.t()).mul_(scaling)
        output = functional.linear(rows, weight, bias).addmm_(inner, b_low.t())
        ctx.save_for_backward(rows, weight, a_low, b_low, inner)
        ctx.scaling, ctx.shape, ctx.types = scaling, x.shape, (x.dtype, a.dtype, b.dtype)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, inner = ctx.saved_tensors
        x_type, a_type, b_type = ctx.types
        gradient = gradient.reshape(-1, gradient.shape[-1]).to(weight.dtype)
        of_inner = (gradient @ b).mul_(ctx.scaling)
        of_b = (gradient.t() @ inner).to(b_type)
        of_a = (of_inner.t() @ rows).to(a_type)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(of_inner, a).view(ctx.shape).to(x_type)
        return of_x, None, None, of_a, of_b, None
