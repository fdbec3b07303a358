"""The gates of a recipe and of `--gate`, applied after results are printed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ftkit.gates import check_gates, parse_gate
from ftkit.recipe import Recipe
from ftkit.recipe.schema import Gate

log = logging.getLogger("ftkit")


def read_gates(expressions: Sequence[str] | None) -> list[tuple[str, Gate]]:
    """Parse `--gate` before any work is done."""
    return [parse_gate(expression) for expression in expressions or ()]


def apply_gates(given: Sequence[tuple[str, Gate]], recipe: Recipe, metrics: Mapping[str, Any]) -> None:
    """Raise a `GateError` where a score is out of bounds."""
    lower = [metric.name() for metric in recipe.metrics if not metric.greater_is_better]
    for line in check_gates([*recipe.gates.items(), *given], metrics, lower):
        log.info("gate passed: %s", line)
