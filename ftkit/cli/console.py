"""What goes to the terminal: stages on standard error, results on standard output."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftkit.errors import UnreadError
from ftkit.metrics.tables import markdown_table as markdown_table
from ftkit.metrics.tables import table as table
from ftkit.training.processes import is_main_process

_YELLOW, _BOLD, _PLAIN = "\033[33m", "\033[1m", "\033[0m"


def start(*, quiet: bool = False, verbose: bool = False) -> None:
    """Send ftkit's log to standard error and keep the libraries quiet.

    Environment variables, because the libraries are imported later and look at them then.
    """
    if quiet or not is_main_process():
        level = logging.WARNING
    else:
        level = logging.DEBUG if verbose else logging.INFO
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        # Whatever the locale says: a text that it cannot write would end the output halfway.
        sys.stdout.reconfigure(encoding="utf-8")
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
    """metrics.json as a table: headlines with intervals, then the tables of the metrics that have one."""
    from ftkit.component import discover
    from ftkit.metrics.base import Metric, Table
    from ftkit.report.results import figure, uncertainty  # with all that tasks import, unneeded for help

    if not metrics:
        return "no scores: there was nothing that could be scored"
    rows = [(name, figure(score["value"]), uncertainty(score)) for name, score in metrics["metrics"].items()]
    title = f"Scores on {metrics['split']} ({metrics['rows']:,} rows, {metrics['precision']})"
    details = metrics["details"]
    ways = details.get("variants")
    sure = f"deviation of {len(ways)}" if ways else "95 % interval"
    text = f"{title}\n{table(('metric', 'mean' if ways else 'score', sure), rows)}"
    if ways:
        text += "\n\n" + _variants(ways)
        text += f"\nWhat follows, predictions and gates on tables are those of {next(iter(ways))} alone."
    kinds = discover(Metric)
    for name, result in details.items():
        kind = kinds.get(name)
        if kind is not None and issubclass(kind, Table) and (lines := kind(type=name).lines(result)):
            text += "\n\n" + "\n".join(lines)
    return text


def _variants(ways: Mapping[str, Mapping[str, float | None]]) -> str:
    """The scores of each way to ask, with the lowest and the highest."""
    from ftkit.report.results import figure

    names = list(next(iter(ways.values())))
    rows = [(way, *(figure(scores[name]) for name in names)) for way, scores in ways.items()]
    columns = [[scores[name] for scores in ways.values()] for name in names]
    for title, choose in (("lowest", min), ("highest", max)):
        ends = [choose(column, key=lambda one: math.inf if one is None else one) for column in columns]
        rows.append((title, *map(figure, ends)))
    return table(("", *names), rows)


class _Lines(logging.Formatter):
    """Plain lines; on a terminal, stages stand out and warnings are yellow."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if not sys.stderr.isatty():
            return text
        if record.levelno >= logging.WARNING:
            return f"{_YELLOW}{text}{_PLAIN}"
        return text if text.startswith(" ") else f"{_BOLD}{text}{_PLAIN}"
