"""What kind of mistakes were made with entities, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

from ftkit.metrics.base import Table
from ftkit.metrics.tables import table
from ftkit.records import Entities, Span

_KINDS = ("boundary", "type", "both", "missed", "spurious")
_MOST_EXAMPLES = 5
_CONTEXT = 4


class EntityErrors(Table):
    """Counts of wrong boundaries, wrong types, both, missed and spurious entities, with examples.

    A predicted entity that overlaps a true one is a `boundary` error (same type), a `type` error
    (same words) or `both`; one that overlaps none is `spurious`, a true one that none overlaps is
    `missed`. Examples are those the model was most sure of; of missed ones, the longest.
    """

    type: Literal["entity_errors"] = "entity_errors"
    answers: ClassVar[tuple[str, ...]] = ("entities",)
    greater_is_better: ClassVar[bool] = False

    def compute(
        self, references: Sequence[Any], predictions: Sequence[Any], labels: Sequence[str]
    ) -> dict[str, Any]:
        found: dict[str, list[tuple[float, str]]] = {kind: [] for kind in _KINDS}
        for number, (reference, prediction) in enumerate(zip(references, predictions, strict=True), 1):
            for kind, true, said in _errors(reference, prediction):
                worth = said.score or 0.0 if said else float(true.end - true.start if true else 0)
                found[kind].append((worth, f"row {number}: {_shown(reference, true, said)}"))
        counts: dict[str, Any] = {kind: len(errors) for kind, errors in found.items()}
        examples = {
            kind: [text for _, text in sorted(errors, key=lambda error: -error[0])[:_MOST_EXAMPLES]]
            for kind, errors in found.items()
            if errors
        }
        return {**counts, "examples": examples}

    def lines(self, result: Any) -> Sequence[str]:
        """How many mistakes of each kind, and the one of each that the model was most sure of."""
        rows = [(kind, f"{count:,}") for kind, count in result.items() if kind != "examples"]
        shown = [f"  {kind}: {texts[0]}" for kind, texts in result["examples"].items()]
        return ["Errors", table(("kind", "entities"), rows), *shown]


def _errors(reference: Entities, prediction: Entities) -> Iterator[tuple[str, Span | None, Span | None]]:
    """Kind, true and predicted entity of every mistake."""
    right = set(reference.spans) & set(prediction.spans)
    touched: set[Span] = set(right)
    for said in prediction.spans:
        if said in right:
            continue
        overlapping = [true for true in reference.spans if true.start < said.end and said.start < true.end]
        touched |= set(overlapping)
        if not overlapping:
            yield "spurious", None, said
            continue
        true = max(overlapping, key=lambda span: (span.label == said.label, _shared(span, said)))
        same_words = (true.start, true.end) == (said.start, said.end)
        kind = "type" if same_words else "boundary" if true.label == said.label else "both"
        yield kind, true, said
    for true in reference.spans:
        if true not in touched:
            yield "missed", true, None


def _shared(one: Span, other: Span) -> int:
    return min(one.end, other.end) - max(one.start, other.start)


def _shown(reference: Entities, true: Span | None, said: Span | None) -> str:
    """A mistake in its context: `... said [Acme Corp] ORG, true [Acme] ORG ...`."""
    parts = []
    for name, span in (("predicted", said), ("true", true)):
        if span:
            sure = f" ({span.score:.2f})" if span.score is not None else ""
            parts.append(f"{name} {_in_context(reference, span)} {span.label}{sure}")
    return "; ".join(parts)


def _in_context(reference: Entities, span: Span) -> str:
    """The entity in brackets with the words around it."""
    before = [reference.text[start:end] for start, end in reference.words if end <= span.start]
    after = [reference.text[start:end] for start, end in reference.words if start >= span.end]
    left = ["..."] * (len(before) > _CONTEXT) + before[-_CONTEXT:]
    right = after[:_CONTEXT] + ["..."] * (len(after) > _CONTEXT)
    return " ".join([*left, f"[{reference.text[span.start : span.end]}]", *right])
