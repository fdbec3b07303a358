"""What makes training on a CPU fast: cheap dropout masks, kept kernels, kept memory.

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
def fast_dropout() -> Iterator[None]:
    """Draw dropout masks by SFC64, 16 bits an element, seeded from torch's generator.

    torch draws them one by one on a single core, a fifth of the time of a training step of a
    small model. The probability is rounded to 1/65536. As the seed comes from torch's generator,
    the same seed gives the same masks, and a resumed run goes on with the masks it would have had.
    """
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # torch warns that an operator gets another implementation, which is what is meant.
        warnings.simplefilter("ignore")
        library.impl("bernoulli_.float", _bernoulli, "CPU")
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
