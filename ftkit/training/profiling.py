"""Profiling: a trace of a few steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.profiler import profile, schedule
from transformers import TrainerCallback

_WAIT, _WARM_UP, _STEPS = 2, 1, 3


class Profile(TrainerCallback):
    """Writes a torch profiler trace of steps 4 to 6 (of the last ones, where a run has fewer).

    Args:
        path: Where to; it ends in `.json.gz`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.profiler: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        short = state.max_steps - state.global_step < _WAIT + _WARM_UP + _STEPS
        plan = schedule(wait=0 if short else _WAIT, warmup=0 if short else _WARM_UP, active=_STEPS, repeat=1)
        self.profiler = profile(schedule=plan, on_trace_ready=self._write, record_shapes=True)
        self.profiler.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.profiler:
            self.profiler.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.profiler:
            self.profiler.stop()

    def _write(self, profiler: Any) -> None:
        profiler.export_chrome_trace(str(self.path))
