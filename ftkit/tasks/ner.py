"""Named entities: spans of a text and their types."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field as Limits
from pydantic import field_validator, model_validator

from ftkit.errors import InputError
from ftkit.records import Entities, Prediction, RawSpans, RawTags, Record, Span
from ftkit.tagging import Scheme, bio_tags, chunks, illegal_transitions, tag_names
from ftkit.tasks.annotations import (
    read_spans,
    read_tags,
    read_tokens,
    scheme_of,
    spans_read,
    tag_place,
    tags_read,
    types_named,
    types_read,
)
from ftkit.tasks.as_text import (
    ENTITY_FORMS,
    checked_template,
    label_refusal,
    read_entities,
    refuse_unreadable,
    text_refusal,
    text_usage,
    writing_head,
    written_entities,
    written_template,
)
from ftkit.tasks.base import Field, Task
from ftkit.tasks.reading import text_of
from ftkit.words import chunks_touched, entities_by_words, words_joined, words_of

if TYPE_CHECKING:
    from ftkit.questions import Questions
    from ftkit.training.heads import Objective
    from ftkit.training.setup import Head

_FEW = 10
_MOST_SHOWN = 12


class Ner(Task):
    """Find the named entities of a text: where they stand and of what type they are."""

    type: Literal["ner"] = "ner"
    labels: list[Annotated[str, Limits(min_length=1)]] | None = None
    """Entity types in the model's order; by default those of the training data, sorted."""
    tag_names: list[Annotated[str, Limits(min_length=1)]] | None = None
    """Names of the tags, where the data writes them as numbers, such as `[O, B-PER, I-PER]`."""
    scheme: Literal["auto", "plain"] = "auto"
    """How tags are read: `auto` knows BIO, IOB1, IO, BIOES and BILOU; `plain` takes a whole tag
    for a type, even one that looks prefixed."""
    word_pattern: Annotated[str, Limits(min_length=1)] = r"\w+|[^\w\s]"
    """What a word is in raw text, as a regular expression; a combining mark goes with the character
    before it. Data with tokens keeps its own words."""
    stride: Annotated[int, Limits(ge=0)] | None = None
    """Tokens that neighbouring windows of a long text share; by default a quarter of a window."""
    formulation: Literal["head", "text"] = "head"
    """`head` reads the answer off an output layer of its own; with `text` a decoder or encoder-decoder
    writes it (`[TYPE] words [TYPE] words`, or `none`)."""
    template: str | None = None
    """With `formulation: text`, Jinja that makes what the model reads from `text`."""
    constrained: bool = False
    """Whether predicted tags are the likeliest sequence without an `I-` where none may stand."""

    fields: ClassVar[Mapping[str, Field]] = {
        "token": Field(("token", "tokens", "words"), required=False),
        "tag": Field(("tag", "ner_tags", "tags", "labels"), required=False),
        "text": Field(("text", "sentence"), required=False),
        "entities": Field(("entities", "spans", "label", "labels"), required=False),
    }
    answer_fields: ClassVar[tuple[str, ...]] = ("tag", "entities")
    tags_words: ClassVar[bool] = True
    pipeline: ClassVar[str] = "token-classification"

    @field_validator("word_pattern")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        if pattern.match(""):
            raise ValueError("matches the empty string: every word must have a character")
        return value

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: list[str] | None) -> list[str] | None:
        if twice := [name for name, times in Counter(value or ()).items() if times > 1]:
            raise ValueError(f"{twice[0]!r} stands twice")
        return value

    @model_validator(mode="after")
    def _readable(self) -> Ner:
        if unreadable := self._unreadable(self.labels or ()):
            raise ValueError(f"formulation: text: {unreadable}")
        return self

    _template = field_validator("template")(checked_template)
    _written_template = model_validator(mode="after")(written_template)

    @property
    def writes(self) -> bool:
        return self.formulation == "text"

    def refusal(self, family: str, metrics: Sequence[str]) -> str:
        return text_refusal(family) if self.writes else ""

    @property
    def answer(self) -> str:
        return "entities"

    @property
    def default_metrics(self) -> list[str]:
        return ["entity_f1", "entity_precision", "entity_recall", "per_entity", "entity_errors"]

    # Reading ----------------------------------------------------------------------------

    def columns(self, found: Sequence[Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Tokens with tags, or a text with spans; what the recipe names, else what is there."""
        if found and all(isinstance(name, int) for name in found):
            # A CoNLL file: the first column and the last, unless others are named.
            usual = {"token": 0, "tag": -1} if len(found) > 1 else {"token": 0}
            return super().columns(found, {**usual, **given}, where)
        chosen = super().columns(found, given, where)
        named = {"text", "entities"} & given.keys() and "token" not in given
        if "token" in chosen and not named and ("tag" in chosen or "entities" not in chosen):
            return {field: column for field, column in chosen.items() if field in {"token", "tag"}}
        if "text" not in chosen:
            raise InputError(
                "there is no column of tokens or of text",
                where=where,
                hint=f"found: {', '.join(map(str, found))}; map one with data.columns: {{token: COLUMN}}, "
                "or {text: COLUMN, entities: COLUMN} (or --set data.columns.text=COLUMN)",
            )
        return {field: column for field, column in chosen.items() if field in {"text", "entities"}}

    def blank(self, values: Mapping[str, Any]) -> bool:
        """Some sets end with a row without words."""
        tokens = values.get("token")
        return isinstance(tokens, (list, tuple)) and not tokens and not values.get("tag")

    def read(self, values: Mapping[str, Any], where: str) -> Record:
        if "token" in values:
            return self._of_tokens(values, where)
        text = text_of(values.get("text"), "text", where)
        words = words_of(text, self.word_pattern)
        if not words:
            raise InputError("the text holds no word", where=where, hint="remove the row or fill it in")
        spans = values.get("entities")
        target = None if spans is None else read_spans(spans, text, where)
        return Record(text, where=where, words=words, target=target)

    def _of_tokens(self, values: Mapping[str, Any], where: str) -> Record:
        tokens = read_tokens(values["token"], where)
        tags = values.get("tag")
        target = None if tags is None else read_tags(tags, tokens, self.tag_names, where)
        text = text_of(" ".join(tokens), "text", where)
        return Record(text, where=where, words=words_joined(tokens), target=target)

    # Labels -----------------------------------------------------------------------------

    def find_labels(self, train: Sequence[Record], declared: Sequence[str]) -> tuple[str, ...]:
        if self.labels:
            return tuple(self.labels)
        scheme = self._scheme(train)
        seen = {kind for record in train for kind in types_read(record, scheme)}
        types = types_named(declared or self.tag_names or ()) or tuple(sorted(seen))
        if not seen:
            raise InputError(
                "no training row holds an entity: there is nothing to learn",
                where=re.sub(r":\d+$| (item|row) \d+$", "", train[0].where) if train else "",
            )
        refuse_unreadable(self._unreadable(types))
        return types

    def _unreadable(self, labels: Sequence[str]) -> str:
        """Why the types cannot be told apart as text; empty where they can, or a head names them."""
        return label_refusal(labels, marks="[]") if self.writes else ""

    def settle(self, records: Sequence[Record], labels: Sequence[str]) -> tuple[Iterable[Record], list[str]]:
        scheme = self._scheme(records)
        notes = [scheme.about] if scheme.about else []
        return self._settle(records, labels, scheme, notes), notes

    def _settle(
        self, records: Sequence[Record], labels: Sequence[str], scheme: Scheme, notes: list[str]
    ) -> Iterator[Record]:
        """The settled records; what was seen on the way goes to `notes` after the last one."""
        illegal = empty = lost = uneven = 0
        first = ""
        for record in records:
            after = self._settled(record, labels, scheme)
            for number in illegal_transitions(tags_read(record), scheme):
                illegal += 1
                first = first or tag_place(record, number)
            read = spans_read(record)
            found = after.target.spans if isinstance(after.target, Entities) else ()
            empty += isinstance(after.target, Entities) and not found
            lost += max(0, len(read) - len(found))
            uneven += len(set(found) - set(read)) if read else 0
            yield after
        if illegal:
            notes.append(
                f"{illegal} tags may not follow the one before them in {scheme.name} (first: {first}); "
                "they are read as the CoNLL evaluation reads them"
            )
        if empty:
            notes.append(f"{empty} of {len(records)} rows hold no entity")
        if lost:
            notes.append(f"{lost} entities have no word of their own and are left out")
        if uneven:
            notes.append(
                f"{uneven} entities begin or end inside a word; the words they touch are tagged, and scored"
            )

    def _scheme(self, records: Sequence[Record]) -> Scheme:
        return scheme_of(records, plain=self.scheme == "plain")

    def _settled(self, record: Record, labels: Sequence[str], scheme: Scheme) -> Record:
        match record.target:
            case RawTags(tags):
                found = chunks(tags, scheme)
                for start, _, kind in found:
                    self._refuse_unseen(kind, labels, f"{record.where}, word {start + 1} ({tags[start]})")
            case RawSpans(spans):
                found = chunks_touched(spans, record.words)
                for span in spans:
                    inside = record.text[span.start : span.end]
                    self._refuse_unseen(span.label, labels, f"{record.where}, {inside!r:.40}")
            case _:
                return record
        return replace(record, target=replace(entities_by_words(found, record), apart=scheme.apart))

    def _refuse_unseen(self, kind: str, labels: Sequence[str], where: str) -> None:
        if kind in labels:
            return
        close = get_close_matches(kind, labels, n=1)
        shown = ", ".join(labels[:_MOST_SHOWN]) + (", ..." if len(labels) > _MOST_SHOWN else "")
        of_names = "that task.tag_names names" if self.tag_names else "of the training data"
        source = "that task.labels names" if self.labels else of_names
        raise InputError(
            f"the entity type {kind!r} is not among the {len(labels)} {source}"
            + (f"; did you mean {close[0]!r}?" if close else ""),
            where=where,
            hint=f"types: {shown}",
        )

    def labels_of(self, record: Record) -> tuple[str, ...]:
        return (
            tuple(span.label for span in record.target.spans) if isinstance(record.target, Entities) else ()
        )

    def stratum(self, record: Record) -> str:
        return "|".join(sorted(set(self.labels_of(record))))

    @property
    def strata_overlap(self) -> bool:
        return True

    def notes(self, train: Sequence[Record], labels: Sequence[str]) -> Iterator[str]:
        yield from super().notes(train, labels)
        times = Counter(name for record in train for name in self.labels_of(record))
        if few := [f"{name} {times[name]}" for name in labels if 0 < times[name] < _FEW]:
            yield f"fewer than {_FEW} training examples: {', '.join(few)}"

    # The model --------------------------------------------------------------------------

    @property
    def auto_class(self) -> str | None:
        return None if self.writes else "AutoModelForTokenClassification"

    def head(self, labels: Sequence[str], learned: Mapping[str, Any]) -> Head:
        from ftkit.training.setup import Head

        if self.auto_class is None:
            return Head(None, {})
        tags = self._tags(labels, learned)
        return Head(
            auto_class=self.auto_class,
            config={
                "num_labels": len(tags),
                "id2label": dict(enumerate(tags)),
                "label2id": {name: number for number, name in enumerate(tags)},
            },
        )

    def learned(self, train: Sequence[Record], labels: Sequence[str]) -> dict[str, Any]:
        """Whether the training data tells where one of two neighbouring entities of a type begins."""
        apart = any(r.target.apart for r in train if isinstance(r.target, Entities))
        return {} if apart or self.writes else {"apart": False}

    def _tags(self, labels: Sequence[str], learned: Mapping[str, Any]) -> tuple[str, ...]:
        """The tags of a model: what the data does not tell apart is not learned either."""
        return tag_names(labels, apart=learned.get("apart", True))

    def objective(
        self, labels: Sequence[str], learned: Mapping[str, Any], *, family: str, label_smoothing: float
    ) -> Objective:
        if self.writes:
            return writing_head(
                family,
                template=self.template,
                asked="Entities",
                write=lambda record: written_entities(cast("Entities", record.target)),
                read=lambda text, record: read_entities(text, record, {name: name for name in labels}),
                label_smoothing=label_smoothing,
            )
        from ftkit.training.token_head import TokenHead

        return TokenHead(
            tags=self._tags(labels, learned),
            stride=self.stride,
            constrained=self.constrained,
            label_smoothing=label_smoothing,
        )

    @property
    def asked_by(self) -> tuple[str, ...]:
        return ("generate",)

    prompt_fields: ClassVar[tuple[str, ...]] = ("text", "labels", "form")

    def questions(
        self, labels: Sequence[str], words: Mapping[str, Sequence[str]], entity_format: str
    ) -> Questions:
        from ftkit.questions import Questions, pair_fields

        meant = {word: label for label in labels for word in words[label]}
        names = {label: words[label][0] for label in labels}
        return Questions(
            template="Text: {{ text }}\nEntities:",
            fields=pair_fields,
            shared={"labels": ", ".join(names.values()), "form": ENTITY_FORMS[entity_format]},
            write=lambda record: written_entities(cast("Entities", record.target), entity_format, names),
            read=lambda text, record: read_entities(text, record, meant, entity_format),
            unreadable=label_refusal(list(meant), marks=":" if entity_format == "lines" else ""),
        )

    # Results ----------------------------------------------------------------------------

    def usage(self, auto_class: str, generation: Mapping[str, Any], *, pairs: bool) -> list[str]:
        return text_usage(auto_class, generation, template=self.template, asked="Entities", pairs=pairs)

    def answer_json(self, value: Any, record: Record) -> Any:
        return None if value is None else [_span_json(span, record) for span in value.spans]

    def prediction_json(self, prediction: Prediction, record: Record) -> dict[str, Any]:
        failed = {"unreadable": prediction.failed} if prediction.failed else {}
        return {"entities": self.answer_json(prediction.value, record), **failed}

    def prediction_text(self, prediction: Prediction, record: Record) -> str:
        assert isinstance(prediction.value, Entities)
        found = [
            f"  {span.label}  {record.text[span.start : span.end]}  ({span.start}-{span.end}"
            + (f", {span.score:.3f})" if span.score is not None else ")")
            for span in prediction.value.spans
        ]
        return "\n".join([record.text, *(found or ["  (no entities)"])])

    def word_tags(self, prediction: Prediction) -> Sequence[str]:
        """Legal BIO: an entity that was read from a stray I- begins with B-."""
        assert isinstance(prediction.value, Entities)
        return bio_tags(chunks(prediction.value.tags), len(prediction.value.tags))

    def pipeline_note(self) -> str:
        return (
            "The pipeline has its own idea of words (its tokenizer's) and cuts long texts; `ftkit predict` "
            "keeps the words of the data and goes through long texts in windows."
        )

    def pipeline_options(self) -> dict[str, Any]:
        return {"aggregation_strategy": "first"}


def _span_json(span: Span, record: Record) -> dict[str, Any]:
    score = {} if span.score is None else {"score": round(span.score, 6)}
    return {
        "start": span.start,
        "end": span.end,
        "label": span.label,
        "text": record.text[span.start : span.end],
        **score,
    }
