"""How well a model foretells the right text: scores of the loss, nothing is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ftkit.late import numpy
from ftkit.metrics.base import Counts, Headline, ratio

if TYPE_CHECKING:
    import evaluate


class Likelihood(Headline):
    """A score of the summed loss of all rows; lower is better."""

    answers: ClassVar[tuple[str, ...]] = ("text", "document")
    greater_is_better: ClassVar[bool] = False
    units: ClassVar[int] = 1
    """The column of counts that the loss is divided by."""

    def comparable(self, ours: Counts, theirs: Counts) -> bool:
        """Another tokenizer makes other tokens of the rows; mean losses of both say nothing of each other."""
        return bool((ours[:, self.units] == theirs[:, self.units]).all())

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        """Loss in nats, tokens, and bytes of UTF-8 of every row that has a loss."""
        rows = [(prediction.loss, prediction.tokens, prediction.octets) for prediction in predictions]
        return numpy.array(rows, dtype=float)

    def module(self, labels: Sequence[str]) -> evaluate.Metric:
        # A module is given texts; without losses every score would be infinite.
        raise TypeError(f"{self.type} scores a model's losses, which a module of evaluate is not given")


def _mean(loss: Counts, whole: Counts) -> Counts:
    """Loss by tokens or bytes; without any, nothing is known, which is no good score."""
    return numpy.where(whole > 0, ratio(loss, whole), numpy.inf)


class AnswerLoss(Likelihood):
    """Mean negative log-likelihood of a token of the right text, in nats."""

    type: Literal["answer_loss"] = "answer_loss"

    def from_counts(self, sums: Counts) -> Counts:
        return _mean(sums[..., 0], sums[..., 1])


class Perplexity(Likelihood):
    """Exponential of the mean loss of a token; it compares models with the same tokenizer."""

    type: Literal["perplexity"] = "perplexity"

    def from_counts(self, sums: Counts) -> Counts:
        mean = _mean(sums[..., 0], sums[..., 1])
        # A loss too large to be put in the exponent is a number all the same; that of no token is none.
        return numpy.where(numpy.isfinite(mean), numpy.exp(numpy.minimum(mean, 700.0)), mean)


class BitsPerByte(Likelihood):
    """Loss in bits over the bytes of the text; it compares models whatever their tokenizer."""

    type: Literal["bits_per_byte"] = "bits_per_byte"
    units: ClassVar[int] = 2

    def from_counts(self, sums: Counts) -> Counts:
        return _mean(sums[..., 0] / math.log(2), sums[..., 2])
