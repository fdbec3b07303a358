"""A metric as a module of the `evaluate` library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ftkit.metrics.base import Metric

if TYPE_CHECKING:
    import evaluate


def as_module(metric: Metric, labels: Sequence[str]) -> evaluate.Metric:
    """Wrap a metric; nothing is fetched, and results are kept in memory."""
    import datasets
    import evaluate

    value = datasets.Value("string")
    feature = datasets.Sequence(value) if "label" not in metric.answers else value

    class Module(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=metric.summary(),
                citation="",
                features=datasets.Features({"predictions": feature, "references": feature}),
            )

        def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
            return {metric.name(): metric.compute(references, predictions, labels)}

    return Module(keep_in_memory=True)
