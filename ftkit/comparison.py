"""Compare: the scores of several runs on the same rows, and how sure their differences are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from ftkit.component import discover
from ftkit.errors import InputError, UsageError
from ftkit.evaluation import Evaluation, find_run
from ftkit.metrics.base import Headline, Metric
from ftkit.metrics.bootstrap import paired_interval
from ftkit.report.results import COUNTS, METRICS, read_counts
from ftkit.run import EVALUATIONS, MANIFEST, Run


@dataclass(frozen=True)
class Result:
    """The scores of one evaluation of a run.

    Attributes:
        name: What the run is called where it is compared.
        folder: The folder with its scores, without symbolic links.
        run: The run, as it was made.
        metrics: The content of its metrics.json.
        counts: What each row adds to each headline, shape (rows, k), by metric name.
    """

    name: str
    folder: Path
    run: Run
    metrics: Mapping[str, Any]
    counts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """How the run was made, and its headlines."""
        training = self.run.manifest["training"]
        return {
            "run": self.name,
            "method": self.run.recipe.method.type,
            "model": self.run.recipe.model.name,
            "trained_parameters": training.get("trained_parameters"),
            "train_seconds": training.get("train_seconds"),
            "seed": self.run.recipe.seed,
            "precision": self.metrics["precision"],
            "metrics": self.metrics["metrics"],
            **({"changes": self.metrics["changes"]} if "changes" in self.metrics else {}),
        }


@dataclass(frozen=True)
class Difference:
    """How much higher a score is than that of the first run.

    Attributes:
        value: The difference; `None` where a score is infinite.
        low: Lower end of its 95 % interval; `None` where the scores are not known row by row, or do not
            measure the same, such as losses of the tokens of two tokenizers.
        high: Upper end.
        better: Whether the run is better than the first one, or else worse; `None` where the interval holds
            both, or there is none.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    better: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """Runs that were scored on the same rows.

    Attributes:
        results: The runs, as they were given.
        differences: Those of the other runs to the first one, by run and metric.
    """

    results: tuple[Result, ...]
    differences: Mapping[str, Mapping[str, Difference]]

    @property
    def headlines(self) -> tuple[str, ...]:
        """The metrics that any of the runs has."""
        return tuple(dict.fromkeys(name for result in self.results for name in result.metrics["metrics"]))

    def to_json(self) -> dict[str, Any]:
        """All of it as one JSON object."""
        first = self.results[0]
        return {
            **{key: first.metrics[key] for key in ("split", "rows", "sha256")},
            "runs": [result.to_json() for result in self.results],
            "against": first.name,
            "differences": {
                run: {name: asdict(difference) for name, difference in found.items()}
                for run, found in self.differences.items()
            },
        }


def compare(targets: Sequence[str | Path | Run | Evaluation]) -> Comparison:
    """Put runs side by side that were scored on the same rows; the same as `ftkit compare`.

    Differences are to the first run, with intervals of the paired bootstrap over rows. They say how sure the
    difference of these very models is, and nothing of what another seed would have given.

    Args:
        targets: Runs, run folders, recipes whose `output_dir` holds a finished run, or evaluations and the
            folders that `ftkit eval` wrote.

    Raises:
        UsageError: There are fewer than two, one has no scores, or their scores are of other rows or metrics.
        InputError: A file of scores is damaged.
    """
    if len(targets) < 2:
        raise UsageError("give at least two runs to compare")
    results = tuple(_result(target) for target in targets)
    _refuse_copies(results)
    _refuse_other_rows(results)
    first, *others = results
    return Comparison(results, {other.name: _differences(other, first) for other in others})


def _result(target: str | Path | Run | Evaluation) -> Result:
    """The scores that a target stands for.

    Raises:
        UsageError: It is no run, or has no scores.
        InputError: They cannot be read.
    """
    name, run, folder = _located(target)
    path = folder / METRICS
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            "the run has no scores", where=name, hint=f"score it: ftkit eval {run.folder}"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"the scores cannot be read: {error}", where=str(path)) from None
    if not _is_whole(metrics):
        raise InputError(
            "the scores are damaged, or do not say of which rows they are",
            where=str(path),
            hint=f"score the run again, and compare the folder it names: ftkit eval {run.folder}",
        )
    counts = read_counts(folder / COUNTS)
    _refuse_other_counts(counts, metrics, folder)
    return Result(name, folder, run, metrics, counts)


def _located(target: str | Path | Run | Evaluation) -> tuple[str, Run, Path]:
    """What a target is called, its run as it was made, and the folder of its scores.

    Raises:
        UsageError: It is no run, or one that is not finished.
    """
    if isinstance(target, (Run, Evaluation)):
        name, folder = str(target.folder), target.folder.resolve()
    else:
        name, folder = str(target).rstrip("/") or "/", Path(target).resolve()
        # Gates name their baselines by this file.
        folder = folder.parent if folder.name == METRICS else folder
        if not _is_run(folder) and not _is_evaluation(folder):
            # A recipe only leads to its run: it may have been edited since.
            folder = find_run(target).folder.resolve()
    return name, Run.load(folder if _is_run(folder) else folder.parents[1]), folder


def _is_run(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _is_evaluation(folder: Path) -> bool:
    """Whether `ftkit eval` wrote this folder into a run."""
    return folder.parent.name == EVALUATIONS and _is_run(folder.parents[1])


def _is_whole(metrics: Any) -> bool:
    """Whether metrics.json holds all that is compared."""
    kinds = {"split": str, "rows": int, "sha256": str, "precision": str, "metrics": dict}
    return (
        isinstance(metrics, dict)
        and all(isinstance(metrics.get(key), kind) for key, kind in kinds.items())
        and all(
            isinstance(score, dict) and isinstance(score.get("value", ""), (int, float, NoneType))
            for score in metrics["metrics"].values()
        )
    )


def _refuse_other_counts(counts: Mapping[str, Any], metrics: Mapping[str, Any], folder: Path) -> None:
    """What rows add must be what the scores are made of; an evaluation may have been killed between the two.

    Raises:
        InputError: It is not.
    """
    for name, added in counts.items():
        score = metrics["metrics"].get(name, {}).get("value")
        metric = _headline(name)
        if metric is None or score is None:
            continue
        try:
            agrees = len(added) == metrics["rows"] and math.isclose(metric.score(added), score, abs_tol=1e-6)
        except (IndexError, TypeError, ValueError):
            agrees = False
        if not agrees:
            raise InputError(
                f"{COUNTS} does not give the {name} of {METRICS}",
                where=str(folder),
                hint="score the run again",
            )


def _refuse_copies(results: Sequence[Result]) -> None:
    """A run that is named twice would be compared with itself.

    Raises:
        UsageError: One is.
    """
    known: dict[Path, str] = {}
    for result in results:
        if before := known.get(result.folder):
            also = "" if result.name == before else f", also as {before}"
            raise UsageError(f"{result.name} is named twice{also}")
        known[result.folder] = result.name


def _refuse_other_rows(results: Sequence[Result]) -> None:
    """Scores of other rows cannot stand in one table.

    Raises:
        UsageError: They are.
    """
    if len({result.metrics["sha256"] for result in results}) > 1:
        width = max(len(result.name) for result in results)
        rows = [
            f"{result.name.ljust(width)}  {result.metrics['rows']:,} {result.metrics['split']} rows, "
            f"SHA-256 {result.metrics['sha256'][:8]}"
            for result in results
        ]
        raise UsageError(
            "the scores are not of the same rows:\n  " + "\n  ".join(rows),
            hint="score each run on one file (ftkit eval RUN --set data.test_file=FILE), "
            "and compare the folders that are named then",
        )


def _differences(ours: Result, theirs: Result) -> dict[str, Difference]:
    """How much higher the scores of one result are than those of another, where both have them.

    Raises:
        UsageError: They have none in common.
    """
    shared = [name for name in ours.metrics["metrics"] if name in theirs.metrics["metrics"]]
    if not shared:
        raise UsageError(
            f"{ours.name} and {theirs.name} have no metric in common",
            hint=f"score one again with the other's: ftkit eval RUN --set 'metrics=[{_names(theirs)}]'",
        )
    return {name: _difference(name, ours, theirs) for name in shared}


def _names(result: Result) -> str:
    return ", ".join(result.metrics["metrics"])


def _difference(name: str, ours: Result, theirs: Result) -> Difference:
    """The difference of one metric."""
    score, other = (result.metrics["metrics"][name]["value"] for result in (ours, theirs))
    if score is None or other is None:
        # An infinite one stands as null.
        return Difference(None)
    metric = _headline(name)
    if metric is None or not _measure_the_same(metric, ours, theirs):
        return Difference(score - other)
    low, high = paired_interval(metric, ours.counts[name], theirs.counts[name])
    if not math.isfinite(low + high):
        return Difference(score - other)
    known = low > 0 or high < 0
    return Difference(score - other, low, high, (low > 0) == metric.greater_is_better if known else None)


def _measure_the_same(metric: Headline, ours: Result, theirs: Result) -> bool:
    """Whether two scores are known row by row, of the same units, and computed alike."""
    name = metric.name()
    signatures = {result.metrics.get("signatures", {}).get(name) for result in (ours, theirs)}
    known = name in ours.counts and name in theirs.counts
    return known and len(signatures) == 1 and metric.comparable(ours.counts[name], theirs.counts[name])


def _headline(name: str) -> Headline | None:
    """The metric of a name, if it is one of a single number."""
    kind = discover(Metric).get(name)
    return kind(type=name) if kind is not None and issubclass(kind, Headline) else None
