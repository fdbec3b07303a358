"""Bootstrap confidence intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from ftkit.late import numpy
from ftkit.metrics.base import Counts, Headline

_RESAMPLES = 1000
_SEED = 12345
_MOST_DRAWN = 1 << 22


def paired_interval(metric: Headline, ours: Counts, theirs: Counts) -> tuple[float, float]:
    """The interval of how much higher one score is than another of the same rows.

    Both are scored on the same resamples (the paired bootstrap; Koehn, 2004): what makes a row hard for both
    adds nothing to how unsure the difference is.

    Args:
        metric: What makes scores of summed counts.
        ours: What each row adds to the one score, shape (rows, k).
        theirs: What the same row adds to the other, shape (rows, m).
    """
    width = theirs.shape[1]

    def apart(sums: Counts) -> Counts:
        # Two infinite scores differ by no number.
        with numpy.errstate(invalid="ignore"):
            return metric.from_counts(sums[..., width:]) - metric.from_counts(sums[..., :width])

    return interval(apart, numpy.hstack([theirs, ours]))


def interval(
    from_counts: Callable[[Counts], Counts], counts: Counts, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap over rows (Efron and Tibshirani, 1993, chapter 13).

    Rows that add the same counts are interchangeable, so resamples are drawn over distinct counts
    with their multiplicities: the cost hardly grows with the rows.

    Args:
        from_counts: Makes scores of summed counts, shape (..., k) to (...).
        counts: What each row adds, shape (rows, k).
        level: The share of resamples whose scores lie between the ends.

    Returns:
        The lower and the upper end; the same for the same counts in any order, as the seed is fixed. Infinite
        where no resample has a score.
    """
    distinct, times = _distinct(counts)
    generator = numpy.random.default_rng(_SEED)
    sums = []
    # In parts: all draws of many distinct rows would be larger than the rows.
    for size in _parts(_RESAMPLES, max(_MOST_DRAWN // len(distinct), 1)):
        sums.append(generator.multinomial(len(counts), times / len(counts), size=size) @ distinct)
    scores = from_counts(numpy.concatenate(sums))
    # A resample may hold nothing to score, such as only rows without a token.
    if not len(known := scores[numpy.isfinite(scores)]):
        return math.inf, math.inf
    tail = (1 - level) / 2
    low, high = numpy.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def _parts(whole: int, most: int) -> list[int]:
    """A number in parts of at most so many.

    >>> _parts(10, 4)
    [4, 4, 2]
    """
    return [min(most, whole - start) for start in range(0, whole, most)]


def _distinct(counts: Counts) -> tuple[Counts, Counts]:
    """The distinct rows in order, and how often each is there.

    As `numpy.unique` would find them, which sorts all rows first: with 100,000 rows of 20 labels that takes
    half a minute, hashing them one second.
    """
    rows = Counter(map(bytes, counts.astype(float)))
    distinct = numpy.frombuffer(b"".join(rows)).reshape(len(rows), -1)
    order = numpy.lexsort(distinct.T[::-1])
    return distinct[order], numpy.array(list(rows.values()))[order]
