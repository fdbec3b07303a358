"""Memory on a CPU: what training will need, told before it starts.

On a CPU running out of memory is no exception but a killed process, so only an estimate helps. What a
forward pass leaves for the backward pass is not computed from the model's sizes, which differ with every
architecture, but measured on one row and on two; the rest is counted from the parameters.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary
from transformers import TrainingArguments

from ftkit.errors import InputError
from ftkit.training.trimmed import TrimmedEmbedding

log = logging.getLogger("ftkit")

_USABLE = 0.8
"""Share of the free memory to plan with: passes back are not measured, and other programs need some."""
_PLENTY = 2**32
"""Bytes that a part of a batch may keep although more are free: a larger one is no faster."""
_STATES = {"sgd": 0, "adafactor": 0, "rmsprop": 1, "adagrad": 1}
"""Numbers that an optimizer keeps for each trained weight; Adam and its kin keep two."""


@dataclass(frozen=True)
class Need:
    """Bytes that training takes beyond the loaded model.

    Attributes:
        fixed: Gradients, optimizer states and copies of weights, whatever the batch.
        after: Optimizer states and the saved model, which is loaded again and compared after training.
        row: What a forward pass keeps of the longest row.
        tokens: Length of that row.
    """

    fixed: int
    after: int
    row: int
    tokens: int

    def peak(self, tokens: int) -> int:
        """Bytes with parts of batches of that many tokens."""
        return max(self.fixed + self.row * tokens // self.tokens, self.after)


def plan(
    model: Any,
    arguments: TrainingArguments,
    *,
    forward: Callable[[int], Any],
    tokens: int,
    parts: bool,
    trimmed: TrimmedEmbedding | None = None,
) -> int | None:
    """The most tokens to compute at once; `None` where that may be whole batches.

    Where not even one row fits, activation checkpointing is turned on in the arguments, and said.

    Args:
        model: The model, loaded, adapters in place.
        arguments: Arguments of the run.
        forward: Computes the loss of the longest row, so many times side by side.
        tokens: Length of that row.
        parts: Whether batches may be computed in parts although they fit.
        trimmed: The token embedding, if some of its rows get no gradients, and states in checkpoints alone.

    Raises:
        InputError: Even then it does not fit.
    """
    free = int(free_memory() * _USABLE) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    checkpointing = bool(arguments.activation_checkpointing)
    look = partial(estimate, model, arguments.optim, forward, tokens, trimmed=trimmed)
    need = look(checkpointing=checkpointing)
    whole = arguments.per_device_train_batch_size * tokens
    log.debug("  memory: at most %s needed, %s free", _gib(need.peak(whole)), _gib(free))
    if need.peak(whole) <= free:
        plenty = max(_PLENTY * tokens // need.row, tokens)
        return plenty if parts and plenty < whole else None
    without = need
    if need.peak(tokens) > free and not checkpointing and model.supports_gradient_checkpointing:
        arguments.activation_checkpointing = arguments.gradient_checkpointing = True
        need = look(checkpointing=True)
    if need.peak(tokens) > free:
        raise InputError(
            f"not enough memory: one row of {tokens} tokens needs about {_gib(need.peak(tokens))}, "
            f"{_gib(need.fixed)} of it for gradients and the optimizer; {_gib(free)} are free",
            hint="lower model.max_length, train adapters (method: lora), set training.optim: adafactor, "
            "or take a smaller model",
        )
    if need is not without:
        log.warning(
            "  note: one row needs about %s and %s are free: activation checkpointing is turned on, which "
            "computes every layer twice", _gib(without.peak(tokens)), _gib(free),
        )  # fmt: skip
    most = int((free - need.fixed) * tokens / need.row)
    if most >= whole:
        return None
    log.warning(
        "  note: a batch of the longest rows needs about %s and %s are free: batches are computed in parts "
        "of at most %d tokens", _gib(need.peak(whole)), _gib(free), most,
    )  # fmt: skip
    return most


def estimate(
    model: Any,
    optimizer: str,
    forward: Callable[[int], Any],
    tokens: int,
    *,
    checkpointing: bool,
    trimmed: TrimmedEmbedding | None = None,
) -> Need:
    """What training takes beyond the loaded model, by forward passes of the longest row."""
    whole = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = next((count for name, count in _STATES.items() if optimizer.startswith(name)), 2)
    left_out, copied = (trimmed.left_out, trimmed.copied) if trimmed else (0, 0)
    row, whatever = _kept(model, forward)
    if checkpointing:
        model.activation_checkpointing_enable()
        inputs, _ = _kept(model, forward)
        model.activation_checkpointing_disable()
        # The layers' inputs are kept, and one layer at a time is computed again.
        row = inputs + (row - inputs) // _layers(model)
    return Need(
        fixed=4 * ((trained - left_out) * (1 + states) + copied) + whatever,
        # The saved model is loaded in fp32, to be compared.
        after=4 * trained * states + 4 * whole,
        row=row,
        tokens=tokens,
    )


def _kept(model: nn.Module, forward: Callable[[int], Any]) -> tuple[int, int]:
    """The most bytes alive at once in a forward pass in training: for each row, and whatever the rows.

    The latter are the copies of the weights that autocast makes. They are known from a second row beside the
    first, unless that might not fit: then all of it counts as the row's.
    """
    training = model.training
    model.train()
    one = _peak(model, forward, 1)
    two = _peak(model, forward, 2) if 2 * one <= free_memory() * _USABLE else 2 * one
    model.train(training)
    return max(two - one, 1), max(2 * one - two, 0)


def _peak(model: nn.Module, forward: Callable[[int], Any], count: int) -> int:
    made = _Made([*model.parameters(), *model.buffers()])
    # The run draws the random numbers that it would draw without the estimate.
    with torch.random.fork_rng(devices=[]), made:
        forward(count)
    return made.peak


def _layers(model: nn.Module) -> int:
    lists = [len(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max([*lists, 1])


class _Made(TorchDispatchMode):
    """Follows the memory of the tensors that operations make.

    Args:
        given: Tensors that are there anyway; views of them take no memory.
    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = WeakIdKeyDictionary()
        self.alive = 0
        self.peak = 0
        for tensor in given:
            self.known[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(Tensor, self._note, function(*args, **(kwargs or {})))

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self.known:
            self.known[storage] = True
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, storage.nbytes())
        return tensor

    def _forget(self, size: int) -> None:
        self.alive -= size


def free_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be had without swapping, within the limit of a container.

    Args:
        group: The folder of the control group, in the form of cgroup v2.
    """
    free = int(psutil.virtual_memory().available)
    files = [group / name for name in ("memory.max", "memory.current", "memory.stat")]
    if not all(file.is_file() for file in files):
        return free
    limit, used, stat = (file.read_text().strip() for file in files)
    if not limit.isdecimal():
        return free
    # Files that were read stay in memory and count as used, but give way to whoever needs the room.
    counts = dict(line.split() for line in stat.splitlines())
    return min(free, int(limit) - int(used) + int(counts.get("inactive_file", 0)))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
