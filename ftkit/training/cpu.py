"""What makes training on a CPU fast: cheap dropout masks and attention, kept kernels, kept memory.

None of it changes what is computed, except which random numbers dropout draws.
"""

from __future__ import annotations

import ctypes
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from torch import Tensor

_KERNELS = "8192"
_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu_backward"
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
def fast_kernels() -> Iterator[None]:
    """Draw dropout masks and compute the gradient of attention faster than torch does on a CPU.

    Masks are drawn by SFC64, 16 bits an element, seeded from torch's generator. torch draws them one by one
    on a single core, a fifth of the time of a training step of a small model. The probability is rounded to
    1/65536. As the seed comes from torch's generator, the same seed gives the same masks, and a resumed run
    goes on with the masks it would have had.

    The gradient of attention over short sequences is computed in single precision: in bf16, torch's kernel
    takes two to six times as long there, and rounds more.
    """
    original = torch.library.get_kernel(f"aten::{_ATTENTION}", "CPU")

    def attention(keys: Any, *given: Any, **options: Any) -> tuple[Tensor, ...]:
        query = given[1]
        if query.dtype is not torch.bfloat16 or query.shape[2] >= _LONG:
            return tuple(original.call_boxed(keys, *given, **options))
        exact = [one.float() if isinstance(one, Tensor) else one for one in given]
        return tuple(gradient.bfloat16() for gradient in original.call_boxed(keys, *exact, **options))

    with warnings.catch_warnings():
        # torch warns that an operator gets another implementation, which is what is meant.
        warnings.simplefilter("ignore")
        library = torch.library.Library("aten", "IMPL")
        library.impl("bernoulli_.float", _bernoulli, "CPU")
        library.impl(_ATTENTION, attention, "CPU", with_keyset=True)
    try:
        yield
    finally:
        library._destroy()


def _bernoulli(mask: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
    """Ones with probability p, zeros elsewhere, in place."""
    threshold = round(p * 65536)
    if threshold == 65536:
        return mask.fill_(1)
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
    words = numpy.random.SFC64(seed).random_raw(-(-mask.numel() // 4))
    draws = torch.from_numpy(words.view(numpy.int16)[: mask.numel()])
    return mask.copy_((draws < threshold - 32768).view(mask.shape))
