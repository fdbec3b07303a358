"""Run by a launcher in each process: fine-tunes several recipes in turn, which saves starting up for each.

    accelerate launch --multi_gpu --num_processes 2 tests/training/ranks.py runs.json

A run may ask for a process that has memory for a few rows only: {"recipe": ..., "rows": 3, "rank": 1}.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import ftkit
from ftkit.training.engine import Engine

computed = Engine.compute_loss


def short_of_memory(rows: int, rank: int) -> Any:
    """A loss that no process with that rank can compute for more than so many rows."""

    def compute_loss(self: Engine, model: Any, inputs: dict[str, Any], **options: Any) -> Any:
        if int(os.environ["RANK"]) == rank and len(inputs["input_ids"]) > rows:
            raise torch.OutOfMemoryError
        return computed(self, model, inputs, **options)

    return compute_loss


if __name__ == "__main__":
    for run in json.loads(Path(sys.argv[1]).read_text()):
        Engine.compute_loss = short_of_memory(run["rows"], run["rank"]) if "rows" in run else computed
        ftkit.finetune(run["recipe"], resume=run.get("resume", False))
