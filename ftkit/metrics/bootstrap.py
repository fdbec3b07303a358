"""Bootstrap confidence intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy

from ftkit.metrics.base import Headline

_RESAMPLES = 1000
_SEED = 12345


def interval(
    metric: Headline,
    references: Sequence[Any],
    predictions: Sequence[Any],
    labels: Sequence[str],
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap over rows (Efron and Tibshirani, 1993, chapter 13).

    Rows that add the same counts are interchangeable, so resamples are drawn over distinct counts
    with their multiplicities: the cost hardly grows with the rows.

    Returns:
        The lower and the upper end; the same for the same predictions, as the seed is fixed.
    """
    pairs = Counter(zip(references, predictions, strict=True))
    times = numpy.array(list(pairs.values()))
    counts = metric.counts([pair[0] for pair in pairs], [pair[1] for pair in pairs], labels)
    counts, group = numpy.unique(counts, axis=0, return_inverse=True)
    times = numpy.bincount(group.ravel(), weights=times)
    generator = numpy.random.default_rng(_SEED)
    draws = generator.multinomial(int(times.sum()), times / times.sum(), size=_RESAMPLES)
    scores = metric.from_counts(draws @ counts)
    tail = (1 - level) / 2
    low, high = numpy.quantile(scores, [tail, 1 - tail])
    return float(low), float(high)
