"""The number format of the matrix products."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

M = TypeVar("M", bound=nn.Module)
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    return torch.autocast(device.type, _TYPES[precision])


def lowered(model: M, precision: str) -> M:
    """The model with its weights held in the given precision, for work that trains nothing.

    Buffers stay as they are: in bf16, the frequencies of rotary embeddings would put tokens in wrong places.
    """
    for module in filter(_is_plain, model.modules()):
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(_TYPES[precision])
    return model


def lowered_copy(model: M, precision: str) -> M:
    """A copy of the model with its weights held in the given precision; it shares those that already are."""
    low: dict[int, nn.Parameter] = {}
    for module in filter(_is_plain, model.modules()):
        for parameter in module.parameters(recurse=False):
            fits = parameter.dtype == _TYPES[precision]
            held = parameter if fits else nn.Parameter(parameter.detach().to(_TYPES[precision]), False)
            low[id(parameter)] = held
    return copy.deepcopy(model, low)


def _is_plain(module: nn.Module) -> bool:
    """Whether its weights are numbers as they stand: those of a quantized checkpoint mean something else."""
    return all(parameter.dtype in _TYPES.values() for parameter in module.parameters(recurse=False))


def lower_frozen(model: nn.Module, precision: str) -> None:
    """Hold frozen matrices in the precision that they are multiplied in.

    Autocast would round them so at every pass; the numbers are the same, in half the memory. Embeddings
    and norms stay in fp32, as autocast leaves them.
    """
    if precision == "fp32":
        return
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in filter(_is_plain, model.modules()):
        if isinstance(module, (nn.Linear, Conv1D)) and id(module.weight) not in embeddings:
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(_TYPES[precision])
