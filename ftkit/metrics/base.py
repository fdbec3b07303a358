"""What a metric is: a score, and the counts that it and its interval are made of."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from ftkit.component import Component
from ftkit.late import numpy

if TYPE_CHECKING:
    import evaluate
    from numpy.typing import NDArray

    Counts: TypeAlias = NDArray[numpy.float64]
else:
    Counts = Any


class Metric(Component):
    """A score that compares predicted values with the records' targets."""

    answers: ClassVar[tuple[str, ...]]
    """The kinds of value it can score: `label`, `label set`, `entities`, `number`, `choice`, `text`,
    `document`."""
    greater_is_better: ClassVar[bool] = True
    reads_text: ClassVar[bool] = False
    """Whether it scores a text that the model writes, rather than the loss of a known one."""

    @abstractmethod
    def compute(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Any:
        """The score.

        Args:
            references: The right answers, in label names.
            predictions: The predicted ones.
            labels: All labels in the model's order.
        """

    def signature(self, references: Sequence[Any]) -> str:
        """How exactly it is computed for these right answers, where other programs may differ."""
        return ""

    def module(self, labels: Sequence[str]) -> evaluate.Metric:
        """This metric as an `evaluate.Metric`, which works offline and with other tools."""
        from ftkit.metrics.module import as_module

        return as_module(self, labels)


class Headline(Metric):
    """A metric whose score is one number, and which adds up over rows.

    A bootstrap interval (Efron, 1979) needs the score of a thousand resamples. Where the score
    is a function of summed counts, they all come from one matrix product. The score itself is that of
    all rows' counts, so that it and its interval have one definition; tests hold it to those of
    scikit-learn, seqeval, scipy and sacrebleu.
    """

    def compute(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> float:
        return self.score(self.counts(references, predictions, labels))

    def score(self, counts: Counts) -> float:
        """The score of rows by what they add, shape (rows, k)."""
        return float(self.from_counts(counts.sum(axis=0)))

    def comparable(self, ours: Counts, theirs: Counts) -> bool:
        """Whether two scores of the same rows, by what these add, measure the same."""
        return True

    @abstractmethod
    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        """What each row adds, shape (rows, k)."""

    @abstractmethod
    def from_counts(self, sums: Counts) -> Counts:
        """The scores of summed counts, shape (..., k) to (...)."""


class Table(Metric):
    """A metric whose result is a table: shown and gated, but no headline."""

    @abstractmethod
    def lines(self, result: Any) -> Sequence[str]:
        """What `compute` gave, as it stands in metrics.json, for a terminal; empty where it is not shown."""


def one_hot(values: Sequence[Any], labels: Sequence[str]) -> NDArray[numpy.bool_]:
    """Membership of labels in the rows' values, shape (rows, labels).

    >>> one_hot(["b", ("a", "b")], ["a", "b"]).astype(int).tolist()
    [[0, 1], [1, 1]]
    """
    number = {name: index for index, name in enumerate(labels)}
    members = numpy.zeros((len(values), len(labels)), dtype=bool)
    for row, value in enumerate(values):
        for name in (value,) if isinstance(value, str) else value:
            # What a model wrote may be no label at all.
            if name in number:
                members[row, number[name]] = True
    return members


def one_class(values: Sequence[Any], labels: Sequence[str]) -> NDArray[numpy.bool_]:
    """As `one_hot`, with a last column for rows whose one value is no label, shape (rows, labels + 1).

    >>> one_class(["b", "", ()], ["a", "b"]).astype(int).tolist()
    [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    """
    members = one_hot(values, labels)
    single = numpy.array([isinstance(value, str) for value in values], dtype=bool)
    return numpy.column_stack([members, single & ~members.any(axis=1)])


def compact(counts: Counts) -> Counts:
    """The same counts as bytes where they are small whole numbers, as they mostly are."""
    with numpy.errstate(invalid="ignore"):
        small: Any = counts.astype(numpy.uint8)
    return small if (small == counts).all() else counts


def ratio(part: Any, whole: Any) -> Counts:
    """Part / whole, 0 where the whole is 0."""
    part, whole = numpy.asarray(part, dtype=float), numpy.asarray(whole, dtype=float)
    return numpy.divide(part, whole, out=numpy.zeros_like(part), where=whole != 0)
