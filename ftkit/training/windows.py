"""Overlapping windows over a long text, so that every token is seen with context on both sides."""

from __future__ import annotations

Window = tuple[int, int]


def windows(tokens: int, size: int, stride: int) -> list[Window]:
    """First token and end of each window; neighbours share at least `stride` tokens.

    The last window ends with the text and is as long as the others.

    >>> windows(10, size=4, stride=2)
    [(0, 4), (2, 6), (4, 8), (6, 10)]
    >>> windows(3, size=4, stride=2)
    [(0, 3)]
    """
    if tokens <= size:
        return [(0, tokens)]
    starts = list(range(0, tokens - size, size - stride))
    return [(start, start + size) for start in [*starts, tokens - size]]


def window_of(token: int, found: list[Window]) -> int:
    """The window that sees most context around a token: the one whose nearer edge is farthest.

    The beginning and the end of the text are no edges, since nothing is cut off there. Of equally
    good windows it is the first.

    >>> [window_of(token, [(0, 4), (2, 6), (4, 8)]) for token in range(8)]
    [0, 0, 0, 1, 1, 2, 2, 2]
    """
    end_of_text = found[-1][1]

    def context(number: int) -> int:
        start, end = found[number]
        before = token - start if start else end_of_text
        after = end - 1 - token if end < end_of_text else end_of_text
        return min(before, after)

    return max((n for n, (start, end) in enumerate(found) if start <= token < end), key=context)
