"""ROUGE: word sequences that a summary shares with the right one, by rouge-score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, ClassVar, Literal

from ftkit.late import numpy
from ftkit.metrics.base import Counts, Headline, ratio


class Rouge(Headline):
    """Mean ROUGE F1 over rows (Lin, 2004), by Google's rouge-score with its defaults (no stemming).

    Of several right texts the one with the highest score counts. It keeps letters and digits of ASCII
    only, so it does not suit other scripts.
    """

    answers: ClassVar[tuple[str, ...]] = ("text",)
    reads_text: ClassVar[bool] = True
    variant: ClassVar[str]

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        """The row's score, and 1."""
        scorer = _scorer(self.variant)
        split = self.variant == "rougeLsum"
        rows = []
        for reference, prediction in zip(references, predictions, strict=True):
            right = [_sentences(t) if split else t for t in (reference.text, *reference.others)]
            written = _sentences(prediction.text) if split else prediction.text
            rows.append((scorer.score_multi(right, written)[self.variant].fmeasure, 1.0))
        return numpy.array(rows, dtype=float)

    def from_counts(self, sums: Counts) -> Counts:
        return ratio(sums[..., 0], sums[..., 1])

    def signature(self, references: Sequence[Any]) -> str:
        from importlib.metadata import version

        return f"rouge-score {version('rouge-score')}, {self.variant}, F1, stemmer: no"


class Rouge1(Rouge):
    """ROUGE-1: single words shared with the right text, F1."""

    type: Literal["rouge1"] = "rouge1"
    variant: ClassVar[str] = "rouge1"


class Rouge2(Rouge):
    """ROUGE-2: pairs of words shared with the right text, F1."""

    type: Literal["rouge2"] = "rouge2"
    variant: ClassVar[str] = "rouge2"


class RougeL(Rouge):
    """ROUGE-L: the longest common subsequence of words, F1."""

    type: Literal["rouge_l"] = "rouge_l"
    variant: ClassVar[str] = "rougeL"


class RougeLsum(Rouge):
    """ROUGE-Lsum: longest common subsequences sentence by sentence (a line each), F1."""

    type: Literal["rouge_lsum"] = "rouge_lsum"
    variant: ClassVar[str] = "rougeLsum"


@cache
def _scorer(variant: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([variant])


def _sentences(text: str) -> str:
    """A sentence a line, which is what ROUGE-Lsum splits at; a text with line ends keeps its own."""
    return text if "\n" in text.strip() else text.replace(". ", ".\n")
