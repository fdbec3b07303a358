"""A metric as a module of the `evaluate` library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ftkit.metrics.base import Metric
from ftkit.records import Entities, Span, Writing
from ftkit.tagging import chunks

if TYPE_CHECKING:
    import evaluate


def as_module(metric: Metric, labels: Sequence[str]) -> evaluate.Metric:
    """Wrap a metric; nothing is fetched, and results are kept in memory."""
    import datasets
    import evaluate

    value = datasets.Value("string")
    if "number" in metric.answers:
        value = datasets.Value("float64")
    single = {"label", "number", "text"} & set(metric.answers)
    feature = value if single else datasets.Sequence(value)
    as_value: Callable[[Any], Any] = _as_it_is
    if "entities" in metric.answers:
        as_value = _of_tags
    elif "text" in metric.answers:
        as_value = Writing

    class Module(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=metric.summary(),
                citation="",
                features=datasets.Features({"predictions": feature, "references": feature}),
            )

        def _compute(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, Any]:
            true, said = ([as_value(value) for value in values] for values in (references, predictions))
            return {metric.name(): metric.compute(true, said, labels)}

    return Module(keep_in_memory=True)


def _as_it_is(value: Any) -> Any:
    return value


def _of_tags(tags: Sequence[str]) -> Entities:
    """Entities as a module of `evaluate` gets them: BIO tags; each word stands for one character."""
    spans = tuple(Span(*chunk) for chunk in chunks(tags))
    return Entities(spans, tuple(tags), " " * len(tags), tuple((n, n + 1) for n in range(len(tags))))
