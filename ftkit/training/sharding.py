"""Sharded models (FSDP2): how they are switched on, and how their parts become whole files again."""

from __future__ import annotations

import os
from typing import Any

from accelerate import Accelerator, DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from transformers import TrainingArguments

from ftkit.errors import UsageError


def asked_for_sharding() -> bool:
    """Whether the recipe or `accelerate launch --use_fsdp` asks for it; accelerate notes both here."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def load_everywhere() -> None:
    """Let every process load the model before it is sharded.

    With accelerate's efficient loading only the first one does, and new heads and adapters stay without
    values in the others; accelerate 1.15 then leaves some of them out of the optimizer, and says nothing.
    """
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"


def complete(accelerator: Accelerator, arguments: TrainingArguments, model: nn.Module) -> None:
    """Let accelerate shard on CPUs as well, where torch can and accelerate 1.15 quietly does not.

    It shards the token embedding by itself, and fails where that is already part of a block, as in BERT.

    Raises:
        UsageError: The first version of FSDP is asked for, or the model cannot be sharded.
    """
    state = accelerator.state
    if asked_for_sharding() and state.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**(arguments.fsdp_plugin_args or {}))
        if state.mixed_precision != "no":
            state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
        state.distributed_type = DistributedType.FSDP
    if state.distributed_type != DistributedType.FSDP:
        return
    if not accelerator.is_fsdp2:
        raise UsageError(
            "ftkit shards with FSDP2, not with its first version",
            hint="accelerate launch --fsdp_version 2, or training.fsdp_config: {version: 2}",
        )
    refuse_widely_shared(model)
    if not state.fsdp_plugin.transformer_cls_names_to_wrap:
        state.fsdp_plugin.transformer_cls_names_to_wrap = _blocks(model)


def refuse_widely_shared(model: Any) -> None:
    """Refuse models such as T5, whose encoder and decoder have layers of their own for one embedding.

    accelerate 1.15 puts the model's input and output layer into one group; torch refuses weights that are
    in two groups.

    Raises:
        UsageError: More than those two share the embedding.
    """
    shared = model.get_input_embeddings().weight
    holders = [name for name, module in model.named_modules() if getattr(module, "weight", None) is shared]
    if len(holders) > 2:
        raise UsageError(
            f"FSDP2 cannot shard this model: {', '.join(holders)} share one weight",
            hint="train it without FSDP; where memory is short, with method: lora",
        )


def _blocks(model: Any) -> list[str]:
    """Classes of the model's repeated blocks, without those that hold the token embedding."""
    embedding = model.get_input_embeddings()
    found = {type(module).__name__ for module in model.modules()}
    holders = {type(outer).__name__ for outer in model.modules() if embedding in outer.modules()}
    return sorted(found & set(model._no_split_modules or ()) - holders)


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds a part of every weight, so that all must call the model together."""
    return isinstance(model, FSDPModule)


def gather_weights(model: nn.Module, *, trained_only: bool) -> dict[str, Tensor]:
    """The whole weights by name, on the CPU of the main process; the others get none."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained_only)
    return get_model_state_dict(model, options=options)


def spread_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give every process its part of what `gather_weights` gave."""
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True, strict=False))


def gather_optimizer(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The optimizer's whole state by name, on the CPU of the main process; the others get none."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(model, optimizer.optimizer, options=options)


def spread_optimizer(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Give every process its part of what `gather_optimizer` gave."""
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer.optimizer, state, options=options)
