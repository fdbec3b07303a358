"""Gates: bounds on scores, for scripts and CI."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftkit.errors import GateError, InputError, UsageError
from ftkit.recipe.schema import Gate

log = logging.getLogger("ftkit")

_EXPRESSION = re.compile(r"^\s*(?P<path>.+?)\s*(?P<sign>>=|<=)\s*(?P<bound>[-+.\deE]+)\s*$")
_ROUNDING = 1e-9
"""What 0.9 - 0.89 is above 0.01, and more."""


def parse_gate(expression: str) -> tuple[str, Gate]:
    """Read `macro_f1>=0.8` or `hamming_loss<=0.1`.

    Raises:
        UsageError: It is neither.
    """
    match = _EXPRESSION.match(expression)
    try:
        bound = float(match["bound"]) if match else None
    except ValueError:
        bound = None
    if match is None or bound is None:
        raise UsageError(
            f"--gate {expression!r}: expected METRIC>=NUMBER or METRIC<=NUMBER",
            hint="for example --gate 'macro_f1>=0.8'",
        )
    return match["path"], Gate(min=bound) if match["sign"] == ">=" else Gate(max=bound)


def check_gates(
    gates: Sequence[tuple[str, Gate]], metrics: Mapping[str, Any], lower_is_better: Sequence[str]
) -> list[str]:
    """One sentence for every gate.

    Args:
        gates: Path into the metrics and bounds.
        metrics: The content of metrics.json.
        lower_is_better: Names of metrics and tables where less is better.

    Raises:
        GateError: A score is out of bounds, or was not computed; all are named.
    """
    passed: list[str] = []
    failed: list[str] = []
    for path, gate in gates:
        value = find_score(metrics, path)
        if value is None:
            there = f"was not computed; there is: {', '.join(_names(metrics))}"
            failed.append(f"{path} {'is infinite' if _descend(metrics.get('metrics', {}), path) else there}")
            continue
        lines = [(value >= gate.min, f"min {gate.min}")] if gate.min is not None else []
        lines += [(value <= gate.max, f"max {gate.max}")] if gate.max is not None else []
        if gate.baseline is not None and gate.max_drop is not None:
            old = _baseline(Path(gate.baseline), path, metrics)
            lower = any(path == name or path.startswith(f"{name}.") for name in lower_is_better)
            drop = value - old if lower else old - value
            lines.append((drop <= gate.max_drop + _ROUNDING, f"at most {gate.max_drop} worse than {old:.4f}"))
        for holds, bound in lines:
            (passed if holds else failed).append(f"{path} {value:.4f} ({bound})")
    if failed:
        raise GateError("gate failed: " + "; ".join(failed))
    return passed


def refuse_missing_baselines(gates: Mapping[str, Gate]) -> None:
    """What scores will be compared with is there before they are computed.

    Raises:
        InputError: A baseline cannot be read, or does not hold the score.
    """
    for path, gate in gates.items():
        if gate.baseline is not None:
            _baseline(Path(gate.baseline), path)


def find_score(metrics: Mapping[str, Any], path: str) -> float | None:
    """The number at a dotted path of metrics.json, such as `macro_f1` or `per_label.refund.f1`.

    A label may itself hold dots, so a path is matched by its longest key first.
    """
    for table in (metrics.get("metrics", {}), metrics.get("details", {})):
        value = _descend(table, path)
        if isinstance(value, Mapping):
            value = value.get("value")
        if isinstance(value, (int, float)):
            return float(value)
    # Stands only where some rows are.
    return 0.0 if path == "unreadable.rows" and metrics.get("metrics") else None


def _descend(table: Any, path: str) -> Any:
    if not path:
        return table
    if isinstance(table, Mapping):
        for key in sorted(table, key=len, reverse=True):
            if path == key:
                return table[key]
            if (
                path.startswith(f"{key}.")
                and (found := _descend(table[key], path[len(key) + 1 :])) is not None
            ):
                return found
    return None


def _names(metrics: Mapping[str, Any]) -> list[str]:
    return [*metrics.get("metrics", {}), *metrics.get("details", {})]


def _baseline(path: Path, score: str, metrics: Mapping[str, Any] | None = None) -> float:
    """The score in a file; where it is of other rows than `metrics`, that is said."""
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"the baseline cannot be read: {what}", where=str(path)) from None
    value = find_score(read, score) if isinstance(read, dict) else None
    if value is None:
        hint = "a baseline is the metrics.json of a run"
        raise InputError(f"the baseline holds no {score}", where=str(path), hint=hint)
    rows = read.get("sha256")
    if metrics and rows and rows != metrics.get("sha256"):
        log.warning(
            "  note: the baseline %s is of other rows (%s %s) than these",
            path,
            read.get("rows"),
            read.get("split"),
        )
    return value
