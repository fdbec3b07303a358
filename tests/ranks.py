"""Run by a launcher in each process: fine-tunes several recipes in turn, which saves starting up for each.

    accelerate launch --multi_gpu --num_processes 2 tests/ranks.py runs.json

A run is {"recipe": ..., "resume": false}, with the mishap that it meets: "rows" more of which a process
has no memory for, and its "rank"; or the number of passes after which it is interrupted, "stop". With
{"evaluate": true} the recipe, which prompts, is evaluated instead.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import ftkit
from ftkit.training.engine import Engine

computed = Engine.compute_loss


def meeting(*, rows: int | None = None, rank: int = 0, stop: int | None = None) -> Callable[..., Any]:
    """The engine's `compute_loss` with such a mishap."""
    passes = itertools.count()

    def compute_loss(self: Engine, model: Any, inputs: dict[str, Any], **options: Any) -> Any:
        if rows and int(os.environ.get("RANK", "0")) == rank and len(inputs["input_ids"]) > rows:
            raise torch.OutOfMemoryError
        if stop and next(passes) == stop:
            raise KeyboardInterrupt
        return computed(self, model, inputs, **options)

    return compute_loss


if __name__ == "__main__":
    for run in json.loads(Path(sys.argv[1]).read_text()):
        recipe, resume = run.pop("recipe"), run.pop("resume", False)
        if run.pop("evaluate", False):
            ftkit.evaluate(recipe)
            continue
        Engine.compute_loss = meeting(**run)
        with suppress(KeyboardInterrupt):
            ftkit.finetune(recipe, resume=resume)
