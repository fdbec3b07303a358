"""The processes that train together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


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
