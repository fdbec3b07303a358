"""What a run tells while it trains: the log file, and lines or a bar on the terminal."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

log = logging.getLogger("ftkit")

# What differs between two runs of the same recipe does not belong in the log of losses.
_TIMING = ("_runtime", "_per_second", "total_flos")


class LogFile(TrainerCallback):
    """Writes every log entry as a line of JSON; a resumed run ends up with the same lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.path.write_text("".join(map(_line, state.log_history)), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(state.log_history[-1]))


class Progress(TrainerCallback):
    """A bar on a terminal, a line a log entry elsewhere."""

    def __init__(self) -> None:
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        shown = state.is_world_process_zero and log.isEnabledFor(logging.INFO)
        if shown and sys.stderr.isatty():
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", leave=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero or not (text := _sentence(logs or {})):
            return
        line = f"  epoch {state.epoch or 0:.2f}  step {state.global_step}/{state.max_steps}  {text}"
        if self.bar:
            self.bar.write(line, file=sys.stderr)
        else:
            log.info(line)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar:
            self.bar.close()


def _line(entry: dict[str, Any]) -> str:
    """Step and epoch first, then by name: a log that was read back has the same lines."""
    kept = {name: entry[name] for name in sorted(entry) if not name.endswith(_TIMING)}
    first = {name: kept.pop(name) for name in ("step", "epoch") if name in kept}
    return json.dumps(first | kept) + "\n"


def _sentence(entry: dict[str, Any]) -> str:
    """`loss 0.412  lr 1.2e-04`, or the validation scores."""
    if "loss" in entry:
        return f"loss {entry['loss']:.4f}  lr {entry['learning_rate']:.1e}"
    scores = [
        f"{name.removeprefix('eval_')} {value:.4f}"
        for name, value in entry.items()
        if name.startswith("eval_")
    ]
    return "validation: " + "  ".join(scores) if scores else ""
