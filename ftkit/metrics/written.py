"""Scores of written texts that are means over rows: matches of words and of whole answers."""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ftkit.late import numpy
from ftkit.metrics.base import Counts, Headline, ratio

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class WrittenMean(Headline):
    """The mean over rows of a score in [0, 1]; of several right texts, the nearest counts."""

    answers: ClassVar[tuple[str, ...]] = ("text",)
    reads_text: ClassVar[bool] = True

    @abstractmethod
    def row_score(self, right: str, written: str) -> float:
        """The score of one text against one right text."""

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        """The row's score, and 1."""
        scores = [
            max(self.row_score(right, p.text) for right in (r.text, *r.others))
            for r, p in zip(references, predictions, strict=True)
        ]
        return numpy.stack([numpy.array(scores, dtype=float), numpy.ones(len(scores))], axis=1)

    def from_counts(self, sums: Counts) -> Counts:
        return ratio(sums[..., 0], sums[..., 1])


class ExactMatch(WrittenMean):
    """Share of the rows whose text is exactly right, but for spaces around it."""

    type: Literal["exact_match"] = "exact_match"

    def row_score(self, right: str, written: str) -> float:
        return float(right.strip() == written.strip())


class NormalizedExactMatch(WrittenMean):
    """Share of the rows whose text is right but for case, punctuation and articles, as SQuAD counts it."""

    type: Literal["normalized_exact_match"] = "normalized_exact_match"

    def row_score(self, right: str, written: str) -> float:
        return float(_words(right) == _words(written))


class TokenF1(WrittenMean):
    """F1 of the words that a text shares with the right one, as in SQuAD (Rajpurkar et al., 2016).

    Case, punctuation and English articles do not count.
    """

    type: Literal["token_f1"] = "token_f1"

    def row_score(self, right: str, written: str) -> float:
        expected, said = _words(right), _words(written)
        if not expected or not said:
            return float(expected == said)
        shared = (Counter(expected) & Counter(said)).total()
        return 2 * shared / (len(expected) + len(said))


def _words(text: str) -> list[str]:
    """The words of a text that count.

    >>> _words("The cat, a Dog!")
    ['cat', 'dog']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
