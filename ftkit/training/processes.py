"""The processes that train together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from accelerate import PartialState

Share = TypeVar("Share")
Made = TypeVar("Made")


def is_main_process() -> bool:
    """Whether this is the process that writes and prints; known without importing torch."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> PartialState:
    """This process among those that `accelerate launch` or `torchrun` started; alone otherwise.

    Without an accelerator accelerate must be told that the CPU is meant: else every process
    takes itself for the only one.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def from_main_process(make: Callable[[], Made]) -> Made:
    """What the main process makes, in every process; it must be possible to pickle it."""
    from accelerate.utils import broadcast_object_list

    state = processes()
    made: list[Any] = [make() if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(made)
    return cast("Made", made[0])


def shared(batches: Sequence[Share]) -> Iterator[tuple[Share, bool]]:
    """This process's share of batches, and whether each counts.

    All processes get the same number, because those that hold parts of one model must call it together:
    where batches run out, the last one comes again, and does not count.
    """
    state = processes()
    for start in range(0, len(batches), state.num_processes):
        number = start + state.process_index
        yield batches[min(number, len(batches) - 1)], number < len(batches)
