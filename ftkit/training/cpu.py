"""What makes training on a CPU fast: kernels for dropout and attention, kept kernels, kept memory.

None of it changes what is computed, except which random numbers dropout draws.
"""

from __future__ import annotations

import ctypes
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from ftkit.training import dropout

_KERNELS = "8192"
_LONG = 1024
"""Positions from which on the gradient of attention in bf16 is the faster one."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_kernels() -> None:
    """Let oneDNN keep the kernels of every batch shape.

    It compiles one for every shape of a product and keeps 1,024, which batches of changing
    lengths push out before they come again. Read when the first product is computed.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS)
    os.environ.setdefault("LRU_CACHE_CAPACITY", _KERNELS)


def keep_memory() -> None:
    """Let glibc keep freed memory for the next step.

    By default it gives large blocks back at once, and the kernel clears every page again.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextmanager
def fast_kernels(*, compiled: bool = False) -> Iterator[None]:
    """Compute dropout and the gradient of attention faster than torch does on a CPU.

    The gradient of attention over short sequences is computed in single precision: in bf16, torch's kernel
    takes two to six times as long there, and rounds more.

    Args:
        compiled: Leave what has a gradient of its own as torch has it: traced, its random numbers would be
            constants.
    """
    with warnings.catch_warnings(), ExitStack() as stack:
        # torch warns that an operator gets another implementation, which is what is meant.
        warnings.simplefilter("ignore")
        library = torch.library.Library("aten", "IMPL")
        stack.callback(library._destroy)
        for name, (key, make) in _KERNELS_OF.items():
            if key == "CPU" or not compiled:
                library.impl(
                    name, make(torch.library.get_kernel(f"aten::{name}", key)), key, with_keyset=True
                )
        yield


Kernel = Callable[..., Any]
"""What computes an operator, given the keys of its dispatch and its arguments."""


def _attention_backward(original: Any) -> Kernel:
    def attention_backward(keys: Any, *given: Any, **options: Any) -> tuple[Tensor, ...]:
        query = given[1]
        if query.dtype is not torch.bfloat16 or query.shape[2] >= _LONG:
            return tuple(original.call_boxed(keys, *given, **options))
        exact = [one.float() if isinstance(one, Tensor) else one for one in given]
        return tuple(gradient.bfloat16() for gradient in original.call_boxed(keys, *exact, **options))

    return attention_backward


def _attention(original: Any) -> Kernel:
    def attention_in_passes(
        keys: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        p: float = 0.0,
        is_causal: bool = False,
        dropout_mask: Tensor | None = None,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> tuple[Tensor, ...]:
        plain = query.dim() == 4 and dropout_mask is None and not (mask is not None and mask.requires_grad)
        plain = plain and query.shape[0] == key.shape[0] and key.shape[:2] == value.shape[:2]
        if not (plain and 0 < p < 1 and type(query) is Tensor and torch.is_grad_enabled()):
            given = (query, key, value, mask, p, is_causal, dropout_mask)
            return tuple(original.call_boxed(keys, *given, scale=scale, enable_gqa=enable_gqa))
        found = dropout.attention(query, key, value, mask, p, is_causal=is_causal, scale=scale)
        # The weights, which only the inside of torch asks for.
        return found, found.new_empty(0)

    return attention_in_passes


def _dropout(original: Any) -> Kernel:
    def dropout_in_passes(keys: Any, x: Tensor, p: float, train: bool) -> Tensor:
        if not (train and 0 < p < 1 and type(x) is Tensor and torch.is_grad_enabled()):
            return cast("Tensor", original.call_boxed(keys, x, p, train))
        return cast("Tensor", dropout.Dropout.apply(x, p))

    return dropout_in_passes


def _bernoulli(_: Any) -> Kernel:
    def bernoulli(__: Any, mask: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
        return mask.copy_(dropout.drawn(mask.shape, p, generator))

    return bernoulli


_KERNELS_OF: dict[str, tuple[str, Callable[[Any], Kernel]]] = {
    "bernoulli_.float": ("CPU", _bernoulli),
    "dropout": ("AutogradCPU", _dropout),
    "_scaled_dot_product_attention_math": ("AutogradCPU", _attention),
    "_scaled_dot_product_flash_attention_for_cpu_backward": ("CPU", _attention_backward),
}
"""Operators, the keys of their dispatch, and what makes our kernels of torch's."""
