"""What goes to the terminal: stages on standard error, results on standard output."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftkit.errors import UnreadError
from ftkit.training.processes import is_main_process

_MOST_LABELS = 20
_YELLOW, _BOLD, _PLAIN = "\033[33m", "\033[1m", "\033[0m"


def start(*, quiet: bool = False, verbose: bool = False) -> None:
    """Send ftkit's log to standard error and keep the libraries quiet.

    Environment variables, because the libraries are imported later and look at them then.
    """
    if quiet or not is_main_process():
        level = logging.WARNING
    else:
        level = logging.DEBUG if verbose else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    log = logging.getLogger("ftkit")
    log.handlers[:] = [handler]
    log.setLevel(level)
    log.propagate = False
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("DATASETS_VERBOSITY", "error")
        warnings.filterwarnings("ignore")


def emit(text: str, end: str = "\n") -> None:
    """Print a result at once: whoever reads a pipe does not wait for more.

    Raises:
        UnreadError: Nobody reads it any more. The command line's library would make exit code 1 of the
            BrokenPipeError.
    """
    if not is_main_process():
        return
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        raise UnreadError from None


def emit_json(value: Any) -> None:
    """Print a result as one JSON object."""
    emit(json.dumps(value, indent=2, ensure_ascii=False))


def hint(text: str) -> None:
    """Say what to run next."""
    logging.getLogger("ftkit").info(text)


def shown(path: Path) -> str:
    """A path as it is typed: relative where it lies below the working directory."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def scores(metrics: Mapping[str, Any]) -> str:
    """metrics.json as a table: headlines with intervals, then the labels."""
    from ftkit.report.results import uncertainty  # with all that tasks import, which help does not need

    if not metrics:
        return "no scores: there is no labelled test or validation split"
    rows = [(name, f"{score['value']:.4f}", uncertainty(score)) for name, score in metrics["metrics"].items()]
    title = f"Scores on {metrics['split']} ({metrics['rows']:,} rows, {metrics['precision']})"
    details = metrics["details"]
    ways = details.get("variants")
    sure = f"deviation of {len(ways)}" if ways else "95 % interval"
    text = f"{title}\n{table(('metric', 'mean' if ways else 'score', sure), rows)}"
    if ways:
        text += "\n\n" + _variants(ways)
    if labels := details.get("per_label"):
        text += "\n\n" + _labels(labels, "Labels", "rows")
    if types := details.get("per_entity"):
        text += "\n\n" + _labels(types, "Entity types", "entities")
    if errors := details.get("entity_errors"):
        text += "\n\n" + _errors(errors)
    return text


def _variants(ways: Mapping[str, Mapping[str, float]]) -> str:
    """The scores of each way to ask, with the lowest and the highest."""
    names = list(next(iter(ways.values())))
    rows = [(way, *(f"{scores[name]:.4f}" for name in names)) for way, scores in ways.items()]
    for title, choose in (("lowest", min), ("highest", max)):
        rows.append((title, *(f"{choose(scores[name] for scores in ways.values()):.4f}" for name in names)))
    return table(("", *names), rows)


def _labels(labels: Mapping[str, Mapping[str, float]], title: str, support: str) -> str:
    shown = list(labels.items())
    if len(shown) > _MOST_LABELS:
        shown = sorted(shown, key=lambda item: item[1]["f1"])[: _MOST_LABELS // 2]
        title = f"The {len(shown)} with the lowest F1 of {len(labels)} (all are in metrics.json)"
    rows = [
        (name, *(f"{row[key]:.3f}" for key in ("precision", "recall", "f1")), f"{row['support']:.0f}")
        for name, row in shown
    ]
    return f"{title}\n{table(('label', 'precision', 'recall', 'f1', support), rows)}"


def _errors(errors: Mapping[str, Any]) -> str:
    """How many mistakes of each kind, and the one of each that the model was most sure of."""
    rows = [(kind, f"{count:,}") for kind, count in errors.items() if kind != "examples"]
    lines = [f"  {kind}: {texts[0]}" for kind, texts in errors["examples"].items()]
    return "\n".join([f"Errors\n{table(('kind', 'entities'), rows)}", *lines])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the first to the left, the others to the right.

    >>> print(table(("metric", "score"), [("accuracy", "0.9")]))
      metric    score
      accuracy    0.9
    """
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


class _Lines(logging.Formatter):
    """Plain lines; on a terminal, stages stand out and warnings are yellow."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if not sys.stderr.isatty():
            return text
        if record.levelno >= logging.WARNING:
            return f"{_YELLOW}{text}{_PLAIN}"
        return text if text.startswith(" ") else f"{_BOLD}{text}{_PLAIN}"
