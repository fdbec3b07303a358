"""Throughput: how much a run does in a second, and how near that is to what the machine can do."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from ftkit.training.processes import processes

_SIDE = 1024
_TRIES = 3
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Meter:
    """Counts what passes through a model in training; padding is not counted as work."""

    def __init__(self) -> None:
        self.rows = 0
        self.tokens = 0
        self.computed = 0
        self.left_out = 0
        self.paused = 0.0
        self.began: float | None = None

    def start(self) -> None:
        """The first batch begins: what comes before is no training, such as hashing data and checkpoints."""
        if self.began is None:
            self.began, self.paused = time.perf_counter(), 0.0

    def count(self, batch: Mapping[str, Tensor]) -> None:
        """Count the rows and the real tokens of a batch."""
        mask = batch.get("attention_mask")
        if mask is not None:
            positions = batch.get("position_ids")
            # Packed rows begin where positions do.
            self.rows += len(mask) if positions is None else int(((positions == 0) & (mask == 1)).sum())
            self.tokens += int(mask.sum())

    def count_pass(self, part: Mapping[str, Tensor], *, padded: bool) -> None:
        """Count what a pass over a batch, or over a part of one, computes: its padding too, or not."""
        mask = part.get("attention_mask")
        if mask is not None:
            self.computed += mask.numel() if padded else int(mask.sum())

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time of what is no training, such as an evaluation."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.paused += time.perf_counter() - began

    def figures(self, model: nn.Module, precision: str, after: Sequence[nn.Parameter] = ()) -> dict[str, Any]:
        """What was measured since `start`, over all processes.

        Args:
            model: What was trained.
            precision: `fp32`, `bf16` or `fp16`.
            after: Weights that the tokens in `left_out` did not go through.

        Returns:
            Rows and real tokens a second, the share of what was computed that was padding, the most
            memory that a process had (GiB), and the share of the rate at which this machine multiplies
            matrices. That share counts 2 operations a token for each weight outside embeddings in the
            forward pass, 2 for its activations' gradients, and 2 for its own where it is trained.
        """
        now = time.perf_counter()
        seconds = max(now - (self.began or now) - self.paused, 1e-9)
        state = processes()
        mine = [self.rows, self.tokens, self.computed, self.left_out, peak_memory(state.device)]
        parts = gather_object([mine]) if state.num_processes > 1 else [mine]
        rows, tokens, computed, left_out = (sum(part[place] for part in parts) for place in range(4))
        found = {
            "training_seconds": round(seconds, 4),
            "examples_per_second": round(rows / seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1),
            "padding": round(1 - tokens / computed, 4) if computed else 0.0,
            "peak_memory_gib": round(max(part[-1] for part in parts) / 2**30, 2),
        }
        # What the hardware only emulates it multiplies more slowly than fp32.
        rates = [matmul_rate(state.device.type, one) for one in {precision, "fp32"}]
        rate = max(rates) * state.num_processes
        embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        weights = [p for p in model.parameters() if id(p) not in embeddings]
        done = _operations(weights) * tokens - _operations(after) * left_out
        found["matmul_share"] = round(done / seconds / rate, 4)
        return found


def sentence(figures: Mapping[str, Any]) -> str:
    """The figures for a person to read."""
    return (
        f"{figures['examples_per_second']:,.1f} examples/s, {figures['tokens_per_second']:,.0f} tokens/s "
        f"({100 * figures['padding']:.0f} % padding), {100 * figures['matmul_share']:.0f} % of the machine's "
        f"matrix products, at most {figures['peak_memory_gib']:.1f} GiB"
    )


def peak_memory(device: torch.device) -> int:
    """The most memory that this process had so far, in bytes: of the accelerator, else of the machine."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if (status := Path("/proc/self/status")).is_file():
        # What getrusage tells begins with the peak of the process that started this one.
        lines = status.read_text(encoding="utf-8").splitlines()
        found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        if found:
            return int(found[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # In kilobytes, but for macOS.
    return peak if sys.platform == "darwin" else peak * 1024


@cache
def matmul_rate(device: str, precision: str) -> float:
    """Floating-point operations a second in a product of two square matrices; the best of a few."""
    a = torch.ones(_SIDE, _SIDE, device=device, dtype=_DTYPES[precision])
    best = float("inf")
    for _ in range(_TRIES):
        _wait(device)
        began = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * _SIDE**3 / best


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def _operations(weights: Sequence[nn.Parameter]) -> int:
    """Floating-point operations that training takes for a token that goes through these weights."""
    return sum((6 if p.requires_grad else 4) * p.numel() for p in weights)
