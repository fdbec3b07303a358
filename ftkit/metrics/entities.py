"""Scores of named entities as seqeval gives them: the F1 of the CoNLL evaluations and its parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ftkit.late import numpy
from ftkit.metrics.base import Counts, Headline, ratio
from ftkit.tagging import chunks


class EntityScore(Headline):
    """Precision, recall or F1 of entities: right are those with the same words and the same type.

    Counted from BIO tags as seqeval (Nakayama, 2018) counts. In its default mode, which is that of the
    CoNLL-2000 evaluation, an `I-` after O begins an entity; in strict mode it is none. Without any entity
    the score is 0.
    """

    answers: ClassVar[tuple[str, ...]] = ("entities",)
    part: ClassVar[str] = "f1"
    average: ClassVar[str] = "micro"
    strict: ClassVar[bool] = False

    def counts(self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]) -> Counts:
        """Right, predicted and true entities of every type."""
        number = {name: index for index, name in enumerate(labels)}
        counts = numpy.zeros((len(references), 3, len(labels)))
        for row, (reference, prediction) in enumerate(zip(references, predictions, strict=True)):
            true = set(chunks(reference.tags))
            said = set(_strict(prediction.tags) if self.strict else chunks(prediction.tags))
            for part, found in enumerate((true & said, said, true)):
                for _, _, kind in found:
                    counts[row, part, number[kind]] += 1
        return counts.reshape(len(references), -1)

    def from_counts(self, sums: Counts) -> Counts:
        right, said, true = numpy.split(sums, 3, axis=-1)
        if self.average == "micro":
            right, said, true = (part.sum(-1) for part in (right, said, true))
            return self._score(right, said, true)
        present = (said + true) > 0
        return ratio((self._score(right, said, true) * present).sum(-1), present.sum(-1))

    def _score(self, right: Counts, said: Counts, true: Counts) -> Counts:
        if self.part == "f1":
            return ratio(2 * right, said + true)
        return ratio(right, said if self.part == "precision" else true)


class EntityF1(EntityScore):
    """F1 of all entities together (micro average), as the CoNLL evaluations report it."""

    type: Literal["entity_f1"] = "entity_f1"


class EntityPrecision(EntityScore):
    """Share of the predicted entities that are right."""

    type: Literal["entity_precision"] = "entity_precision"
    part: ClassVar[str] = "precision"


class EntityRecall(EntityScore):
    """Share of the true entities that are found."""

    type: Literal["entity_recall"] = "entity_recall"
    part: ClassVar[str] = "recall"


class EntityMacroF1(EntityScore):
    """Mean of the types' entity F1: every type counts the same."""

    type: Literal["entity_macro_f1"] = "entity_macro_f1"
    average: ClassVar[str] = "macro"


class StrictEntityF1(EntityScore):
    """Entity F1 in strict mode: a predicted entity counts only if its tags are legal BIO."""

    type: Literal["strict_entity_f1"] = "strict_entity_f1"
    strict: ClassVar[bool] = True


class StrictEntityMacroF1(EntityScore):
    """Mean of the types' entity F1 in strict mode."""

    type: Literal["strict_entity_macro_f1"] = "strict_entity_macro_f1"
    average: ClassVar[str] = "macro"
    strict: ClassVar[bool] = True


def _strict(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """The entities whose first tag is a B-: what strict mode counts."""
    return [chunk for chunk in chunks(tags) if tags[chunk[0]].startswith("B-")]
