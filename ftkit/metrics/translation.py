"""BLEU and chrF by sacrebleu: scores of a whole corpus, from counts that add up over rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ftkit.late import numpy
from ftkit.metrics.base import Counts, Headline


class Sacre(Headline):
    """A corpus score of sacrebleu (Post, 2018), from 0 to 100.

    Rows may have several right texts, and not all as many.
    """

    answers: ClassVar[tuple[str, ...]] = ("text",)
    reads_text: ClassVar[bool] = True

    @abstractmethod
    def scorer(self) -> Any:
        """The metric of sacrebleu."""

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        """The statistics that sacrebleu keeps of every row."""
        written = [prediction.text for prediction in predictions]
        # Not public, but the only way to the numbers that its own bootstrap resamples.
        statistics = self.scorer()._extract_corpus_statistics(written, _streams(references))
        return numpy.array(statistics, dtype=float)

    def from_counts(self, sums: Counts) -> Counts:
        scorer = self.scorer()
        flat = sums.reshape(-1, sums.shape[-1]).round().astype(int).tolist()
        scores = [scorer._compute_score_from_stats(row).score for row in flat]
        return numpy.array(scores, dtype=float).reshape(sums.shape[:-1])

    def signature(self, references: Sequence[Any]) -> str:
        scorer = self.scorer()
        scorer.corpus_score(["a"] * len(references), _streams(references))
        return str(scorer.get_signature())


class Bleu(Sacre):
    """BLEU (Papineni et al., 2002) with sacrebleu's defaults."""

    type: Literal["bleu"] = "bleu"

    def scorer(self) -> Any:
        from sacrebleu import BLEU

        return BLEU()


class Chrf(Sacre):
    """chrF (Popović, 2015): F-score of character sequences, with sacrebleu's defaults."""

    type: Literal["chrf"] = "chrf"

    def scorer(self) -> Any:
        from sacrebleu import CHRF

        return CHRF()


def _streams(references: Sequence[Any]) -> list[list[str | None]]:
    """The first right text of every row, then the second, and so on; `None` where a row has fewer."""
    longest = max((1 + len(reference.others) for reference in references), default=1)
    rows = [(r.text, *r.others, *[None] * (longest - 1 - len(r.others))) for r in references]
    return [list(stream) for stream in zip(*rows, strict=True)]
