"""The gates of a recipe and of `--gate`, applied after results are printed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftkit.errors import UsageError
from ftkit.gates import check_gates, parse_gate
from ftkit.recipe import Recipe, load_recipe
from ftkit.recipe.schema import Gate, uncomputed
from ftkit.run import RECIPE

log = logging.getLogger("ftkit")


def read_gates(
    expressions: Sequence[str] | None, target: str, overrides: Sequence[str]
) -> list[tuple[str, Gate]]:
    """Parse `--gate` before any work is done.

    Args:
        expressions: As they were given.
        target: A recipe, or a run folder.
        overrides: What `--set` changes in it.

    Raises:
        UsageError: One is no gate, or holds a score that the recipe does not ask for.
    """
    gates = [parse_gate(expression) for expression in expressions or ()]
    if gates:
        stored = Path(target) / RECIPE
        recipe = load_recipe(stored if stored.is_file() else target, overrides)
        computed = [metric.name() for metric in recipe.metrics]
        for path, _ in gates:
            if reason := uncomputed(path, computed):
                raise UsageError(f"--gate {path}: {reason}")
    return gates


def apply_gates(given: Sequence[tuple[str, Gate]], recipe: Recipe, metrics: Mapping[str, Any]) -> None:
    """Raise a `GateError` where a score is out of bounds."""
    lower = [metric.name() for metric in recipe.metrics if not metric.greater_is_better]
    lower.append("unreadable")
    for line in check_gates([*recipe.gates.items(), *given], metrics, lower):
        log.info("gate passed: %s", line)
