"""Named entities: spans of a text and their types."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field as Limits
from pydantic import field_validator, model_validator

from ftkit.errors import InputError
from ftkit.records import Entities, Prediction, Record, Span
from ftkit.tagging import (
    PLAIN,
    Scheme,
    bio_tags,
    chunks,
    find_scheme,
    illegal_transitions,
    split_tag,
    tag_names,
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
)
from ftkit.tasks.base import Field, Task
from ftkit.tasks.reading import text_of

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
                "or {text: COLUMN, entities: COLUMN}",
            )
        return {field: column for field, column in chosen.items() if field in {"text", "entities"}}

    def blank(self, values: Mapping[str, Any]) -> bool:
        """Some sets end with a row without words."""
        tokens = values.get("token")
        return isinstance(tokens, (list, tuple)) and not tokens

    def read(self, values: Mapping[str, Any], where: str) -> Record:
        if "token" in values:
            return self._of_tokens(values, where)
        text = text_of(values.get("text"), "text", where)
        words = words_of(text, self.word_pattern)
        if not words:
            raise InputError("the text holds no word", where=where, hint="remove the row or fill it in")
        spans = values.get("entities")
        return Record(
            text, where=where, words=words, target=None if spans is None else _spans(spans, text, where)
        )

    def _of_tokens(self, values: Mapping[str, Any], where: str) -> Record:
        tokens = _list(values["token"], "tokens", where)
        for number, token in enumerate(tokens, 1):
            if not isinstance(token, str) or not token.strip():
                what = "is empty" if isinstance(token, str) else f"is {token!r}, not a string"
                raise InputError(f"token {number} of {len(tokens)} {what}", where=where, hint=_WORD_HINT)
        words, start = [], 0
        for token in tokens:
            words.append((start, start + len(token)))
            start += len(token) + 1
        tags = values.get("tag")
        target = None if tags is None else self._raw_tags(tags, tokens, where)
        return Record(
            text_of(" ".join(tokens), "text", where), where=where, words=tuple(words), target=target
        )

    def _raw_tags(self, tags: Any, tokens: Sequence[str], where: str) -> tuple[str, ...]:
        tags = _list(tags, "tags", where)
        if len(tags) != len(tokens):
            raise InputError(
                f"{len(tokens)} tokens but {len(tags)} tags", where=where, hint="each token needs a tag"
            )
        return tuple(
            self._raw_tag(tag, f"{where}, word {n} ({tokens[n - 1]!r:.40})") for n, tag in enumerate(tags, 1)
        )

    def _raw_tag(self, tag: Any, where: str) -> str:
        if isinstance(tag, str) and tag.strip() and not (self.tag_names and tag.isdecimal()):
            return tag.strip()
        number = int(tag) if isinstance(tag, str) and tag.isdecimal() else tag
        if not isinstance(number, int) or isinstance(number, bool):
            raise InputError(f"the tag is {tag!r}, not a name or a number", where=where)
        if self.tag_names is None:
            raise InputError(
                f"the tag is the number {number}", where=where,
                hint="name the tags with task.tag_names, such as [O, B-PER, I-PER]",
            )  # fmt: skip
        if not 0 <= number < len(self.tag_names):
            raise InputError(
                f"the tag is the number {number}, but task.tag_names has {len(self.tag_names)} names",
                where=where,
            )
        return self.tag_names[number]

    # Labels -----------------------------------------------------------------------------

    def find_labels(self, train: Sequence[Record], declared: Sequence[str]) -> tuple[str, ...]:
        if self.labels:
            return tuple(self.labels)
        raw = set(self._types(train))
        types = _types_named(declared or self.tag_names or ()) or tuple(sorted(raw))
        if not raw:
            raise InputError(
                "no training row holds an entity: there is nothing to learn",
                where=re.sub(r":\d+$| (item|row) \d+$", "", train[0].where) if train else "",
            )
        refuse_unreadable(self._unreadable(types))
        return types

    def _unreadable(self, labels: Sequence[str]) -> str:
        """Why the types cannot be told apart as text; empty where they can, or a head names them."""
        return label_refusal(labels, marks="[]") if self.writes else ""

    def settle(self, records: Sequence[Record], labels: Sequence[str]) -> tuple[list[Record], list[str]]:
        tagged = [record for record in records if _tags(record) is not None]
        scheme = self._scheme(tagged)
        settled = [self._settled(record, labels, scheme) for record in records]
        notes = [scheme.about] if scheme.about else []
        illegal = [
            (record, number)
            for record in tagged
            for number in illegal_transitions(_tags(record) or (), scheme)
        ]
        if illegal:
            record, number = illegal[0]
            start, end = record.words[number]
            notes.append(
                f"{len(illegal)} tags may not follow the one before them in {scheme.name} (first: "
                f"{record.where}, word {number + 1}, {record.text[start:end]!r} "
                f"{(_tags(record) or ())[number]}); they are read as the CoNLL evaluation reads them"
            )
        if empty := sum(1 for r in settled if isinstance(r.target, Entities) and not r.target.spans):
            notes.append(f"{empty} of {len(settled)} rows hold no entity")
        lost = uneven = 0
        for before, after in zip(records, settled, strict=True):
            read = _spans_read(before)
            found = after.target.spans if isinstance(after.target, Entities) else ()
            lost += max(0, len(read) - len(found))
            uneven += len(set(found) - set(read)) if read else 0
        if lost:
            notes.append(f"{lost} entities have no word of their own and are left out")
        if uneven:
            notes.append(
                f"{uneven} entities begin or end inside a word; the words they touch are tagged, and scored"
            )
        return settled, notes

    def _scheme(self, records: Sequence[Record]) -> Scheme:
        """The scheme of a split; what cannot be read is named with its row."""
        if self.scheme == "plain":
            return PLAIN
        try:
            scheme = find_scheme(_tags(record) or () for record in records)
        except ValueError as error:
            raise InputError(str(error), where=self._odd_place(records), hint=_SCHEME_HINT) from None
        for record in records:
            for number, tag in enumerate(_tags(record) or (), 1):
                try:
                    split_tag(tag, scheme)
                except ValueError as error:
                    where = f"{record.where}, word {number}"
                    raise InputError(str(error), where=where, hint=_SCHEME_HINT) from None
        return scheme

    def _odd_place(self, records: Sequence[Record]) -> str:
        """The first row whose tags do not go with those before it."""

        def odd(number: int) -> bool:
            try:
                find_scheme(_tags(record) or () for record in records[: number + 1])
            except ValueError:
                return True
            return False

        return records[bisect_left(range(len(records)), True, key=odd)].where

    def _settled(self, record: Record, labels: Sequence[str], scheme: Scheme) -> Record:
        if record.target is None:
            return record
        tags = _tags(record)
        if tags is None:
            spans = cast("tuple[Span, ...]", record.target)
            for span in spans:
                self._refuse_unseen(
                    span.label, labels, f"{record.where}, {record.text[span.start : span.end]!r:.40}"
                )
            found = _words_touched(spans, record.words)
        else:
            found = chunks(tags, scheme)
            for start, _, kind in found:
                self._refuse_unseen(kind, labels, f"{record.where}, word {start + 1} ({tags[start]})")
        tags = bio_tags(found, len(record.words))
        target = Entities(spans_of(found, record.words), tags, record.text, record.words)
        return replace(record, target=target)

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

    def _types(self, records: Sequence[Record]) -> Iterator[str]:
        scheme = self._scheme([record for record in records if _tags(record) is not None])
        for record in records:
            tags = _tags(record)
            if tags is not None:
                yield from (kind for tag in tags if (kind := split_tag(tag, scheme)[1]))
            elif record.target is not None:
                yield from (span.label for span in cast("tuple[Span, ...]", record.target))

    def labels_of(self, record: Record) -> tuple[str, ...]:
        return (
            tuple(span.label for span in record.target.spans) if isinstance(record.target, Entities) else ()
        )

    def stratum(self, record: Record) -> str:
        return "|".join(sorted(set(self.labels_of(record))))

    def notes(self, train: Sequence[Record], labels: Sequence[str]) -> Iterator[str]:
        yield from super().notes(train, labels)
        times = Counter(name for record in train for name in self.labels_of(record))
        if few := [f"{name} {times[name]}" for name in labels if 0 < times[name] < _FEW]:
            yield f"fewer than {_FEW} training examples: {', '.join(few)}"

    # The model --------------------------------------------------------------------------

    def head(self, labels: Sequence[str]) -> Head:
        from ftkit.training.setup import Head

        if self.writes:
            return Head(None, {})
        tags = tag_names(labels)
        return Head(
            auto_class="AutoModelForTokenClassification",
            config={
                "num_labels": len(tags),
                "id2label": dict(enumerate(tags)),
                "label2id": {name: number for number, name in enumerate(tags)},
            },
        )

    def objective(
        self, labels: Sequence[str], train: Sequence[Record], *, family: str, label_smoothing: float
    ) -> Objective:
        if self.writes:
            return writing_head(
                family,
                template=self.template,
                asked="Entities",
                write=lambda record: written_entities(cast("Entities", record.target)),
                read=lambda text, record: read_entities(
                    text, record, {name: name for name in labels}, _entities_of
                ),
                label_smoothing=label_smoothing,
            )
        from ftkit.training.token_head import TokenHead

        return TokenHead(
            tags=tag_names(labels),
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
            read=lambda text, record: read_entities(text, record, meant, _entities_of, entity_format),
            unreadable=label_refusal(list(meant), marks=":" if entity_format == "lines" else ""),
        )

    # Results ----------------------------------------------------------------------------

    def usage(self, auto_class: str, generation: Mapping[str, Any]) -> list[str]:
        return text_usage(auto_class, generation, template=self.template, asked="Entities")

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


_WORD_HINT = "tokens are strings with at least one character; remove the token and its tag, or fill it in"
_SCHEME_HINT = (
    "tags are O, or a prefix (B-, I-; E-, S-; L-, U-) and a type, or in all rows a bare type; "
    "task.scheme: plain takes whole tags for types"
)


def words_of(text: str, pattern: str) -> tuple[tuple[int, int], ...]:
    """The words of raw text by their characters.

    Python's `\\w` matches no combining mark and no joiner, which would cut words of many scripts.

    >>> words_of("Jose\u0301e, U.S.", r"\\w+|[^\\w\\s]")
    ((0, 6), (6, 7), (8, 9), (9, 10), (10, 11), (11, 12))
    """
    words: list[tuple[int, int]] = []
    marked = False
    for match in re.finditer(pattern, text):
        start, end = match.span()
        touches = bool(words) and words[-1][1] == start < end
        is_mark = touches and all(map(_is_mark, match[0]))
        goes_on = touches and marked and match[0][0].isalnum() and text[words[-1][0]].isalnum()
        if is_mark or goes_on:
            words[-1] = (words[-1][0], end)
        elif end > start:
            words.append((start, end))
        marked = is_mark
    return tuple(words)


def _is_mark(character: str) -> bool:
    """A combining mark, or a joiner that stands inside words."""
    return unicodedata.category(character).startswith("M") or character in "\u200c\u200d"


def spans_of(found: Sequence[tuple[int, int, str]], words: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
    """Entities by words as spans of characters.

    >>> spans_of([(1, 3, "PER")], [(0, 3), (4, 7), (8, 12)])
    (Span(start=4, end=12, label='PER', score=None),)
    """
    return tuple(Span(words[start][0], words[end - 1][1], kind) for start, end, kind in found)


def _entities_of(spans: Sequence[Span], record: Record) -> Entities:
    """Spans of a record's text as its entities, with a tag for each word."""
    found = _words_touched(spans, record.words)
    tags = bio_tags(found, len(record.words))
    return Entities(spans_of(found, record.words), tags, record.text, record.words)


def _words_touched(spans: Sequence[Span], words: Sequence[tuple[int, int]]) -> list[tuple[int, int, str]]:
    """The words that each span overlaps; one without a word of its own is left out."""
    found: list[tuple[int, int, str]] = []
    taken = 0
    for span in spans:
        inside = [n for n in range(taken, len(words)) if words[n][0] < span.end and words[n][1] > span.start]
        if inside:
            taken = inside[-1] + 1
            found.append((inside[0], taken, span.label))
    return found


def _types_named(names: Sequence[str]) -> tuple[str, ...]:
    """The types in the names of tags, in their order; names without prefixes are types themselves.

    >>> _types_named(["O", "B-LOC", "I-LOC", "B-PER"]), _types_named(["O", "person", "e-mail"])
    (('LOC', 'PER'), ('person', 'e-mail'))
    """
    known = [name for name in names if name != "O"]
    try:
        return tuple(dict.fromkeys(split_tag(name)[1] for name in known))
    except ValueError:
        return tuple(known)


def _tags(record: Record) -> tuple[str, ...] | None:
    """The tags of a record as read; `None` where it has spans or no answer."""
    target = record.target
    if not isinstance(target, tuple) or (target and not isinstance(target[0], str)):
        return None
    return target if target else None


def _spans_read(record: Record) -> tuple[Any, ...]:
    """The spans that a record was read with; of tags there are none yet."""
    return record.target if isinstance(record.target, tuple) and _tags(record) is None else ()


def _list(value: Any, what: str, where: str) -> list[Any]:
    if isinstance(value, (list, tuple)) and value:
        return list(value)
    raise InputError(
        f"the {what} are {value!r:.80}, not a list" if value not in ([], ()) else f"the row has no {what}",
        where=where,
        hint='a row holds lists, such as {"tokens": ["Paris", "fell"], "ner_tags": ["B-LOC", "O"]}; a file '
        "with a word a line is read with data.format: conll",
    )


def _spans(value: Any, text: str, where: str) -> Any:
    """Character spans as annotation tools write them: objects, or [start, end, label]."""
    if not isinstance(value, (list, tuple)):
        raise InputError(f"the entities are {value!r:.80}, not a list", where=where, hint=_SPAN_HINT)
    spans = sorted((_span(one, text, where) for one in value), key=lambda span: (span.start, span.end))
    for left, right in pairwise(spans):
        if right.start < left.end:
            raise InputError(
                f"the entities {text[left.start : left.end]!r:.40} ({left.start}-{left.end}) and "
                f"{text[right.start : right.end]!r:.40} ({right.start}-{right.end}) overlap",
                where=where,
                hint="a word has one tag: keep one of them",
            )
    return tuple(spans)


def _span(value: Any, text: str, where: str) -> Span:
    if isinstance(value, Mapping):
        parts = [value.get("start"), value.get("end"), value.get("label", value.get("type"))]
    else:
        parts = list(value) if isinstance(value, (list, tuple)) else []
    match parts:
        case [int(start), int(end), str(label)] if label.strip() and bool not in map(type, parts):
            pass
        case _:
            raise InputError(f"the entity {value!r:.80} is no span", where=where, hint=_SPAN_HINT)
    if not 0 <= start < end <= len(text):
        raise InputError(
            f"the entity {start}-{end} ({label}) is empty or lies beyond the text's {len(text)} characters",
            where=where,
            hint="start counts from 0, end is exclusive, both in characters",
        )
    inside = text[start:end]
    if not inside.strip():
        raise InputError(f"the entity {start}-{end} ({label}) holds white space only", where=where)
    return Span(
        start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip()), label.strip()
    )


_SPAN_HINT = 'entities are objects such as {"start": 0, "end": 5, "label": "PER"}, or [0, 5, "PER"]'


def _span_json(span: Span, record: Record) -> dict[str, Any]:
    score = {} if span.score is None else {"score": round(span.score, 6)}
    return {
        "start": span.start,
        "end": span.end,
        "label": span.label,
        "text": record.text[span.start : span.end],
        **score,
    }
