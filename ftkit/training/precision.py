"""The number format of the matrix products."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def resolve_precision(asked: str) -> str:
    """`auto` becomes bf16 where the hardware multiplies it natively, fp32 elsewhere."""
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        # Emulated bf16 (before Ampere) is slower than fp32.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = torch.cpu.get_capabilities()
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Matrix products in the given precision, weights as they are."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
