"""Room: how many tokens a process computes at once, halved by all processes when one runs out of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache

from ftkit.errors import InputError
from ftkit.training.batches import ROWS
from ftkit.training.heads import Batch
from ftkit.training.processes import processes

log = logging.getLogger("ftkit")

_PLENTY = 2**62
_NONE = 0


def tokens(part: Batch) -> int:
    """Tokens that computing a part of a batch takes, padding included."""
    return part["input_ids"].numel()


def extent(part: Batch) -> tuple[int, ...]:
    """Rows and columns of everything in a part of a batch."""
    return tuple(size for name in sorted(part) for size in part[name].shape)


@contextmanager
def never_out_of_memory() -> Iterator[None]:
    """Say what to change where a step cannot be repeated: other processes wait inside the same pass.

    Raises:
        InputError: Memory was too short.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(
            "out of memory; under FSDP and DeepSpeed a step cannot be repeated in smaller parts",
            hint="lower training.per_device_train_batch_size and raise gradient_accumulation_steps, or set "
            "training.activation_checkpointing: true",
        ) from None


class Room:
    """The most tokens that are computed at once; the same in all processes.

    Args:
        most: The limit; `None` where none is known.
        where: Gives the place of a training row, for messages.

    Attributes:
        proven: Extents that this process has had memory for.
        short: What it had no memory for.
    """

    def __init__(self, most: int | None, where: Callable[[int], str]) -> None:
        self.most = most
        self.where = where
        self.proven: set[tuple[int, ...]] = set()
        self.short: Batch | None = None

    def fits(self, compute: Callable[[], None], part: Batch) -> bool:
        """Compute a part of a batch; whether there was memory for it."""
        try:
            compute()
        except torch.OutOfMemoryError:
            self.short = part
        else:
            if not self.surely_fits(part):
                self.proven.add(extent(part))
        return self.short is None

    def surely_fits(self, part: Batch) -> bool:
        """Whether something at least as large in every direction has fitted."""
        mine = extent(part)
        return any(all(a <= b for a, b in zip(mine, known, strict=True)) for known in self.proven)

    def agree(self) -> bool:
        """Whether no process ran out of memory; else all take half of what did not fit from here on.

        Raises:
            InputError: It was a single row.
        """
        limit = _PLENTY
        if self.short is not None:
            limit = tokens(self.short) // 2 if len(self.short["input_ids"]) > 1 else _NONE
        state = processes()
        if state.num_processes > 1:
            lowest = torch.tensor(limit, device=state.device)
            torch.distributed.all_reduce(lowest, torch.distributed.ReduceOp.MIN)
            limit = int(lowest)
        if limit == _PLENTY:
            return True
        if limit == _NONE:
            self._refuse()
        self.short = None
        self.most = limit
        # Tensors of the failed pass are freed by now, but not given back.
        clear_device_cache(garbage_collection=True)
        if state.is_main_process:
            log.warning("  note: out of memory; the step is repeated in parts of at most %d tokens", limit)
        return False

    def _refuse(self) -> None:
        """Name the row that is too long, in whichever process it was."""
        mine = []
        if self.short is not None:
            mine = [(self.where(int(self.short[ROWS][0])), self.short["input_ids"].shape[1])]
        found = gather_object(mine) if processes().num_processes > 1 else mine
        place, length = found[0]
        raise InputError(
            f"out of memory: a single row of {length} tokens does not fit",
            where=place,
            hint="lower model.max_length, set training.activation_checkpointing: true, or train adapters "
            "(method: lora)",
        )
