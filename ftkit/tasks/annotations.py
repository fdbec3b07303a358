"""Entities as corpora have them: a tag for each word, in any scheme, or spans of characters."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

from ftkit.errors import InputError
from ftkit.records import RawSpans, RawTags, Record, Span
from ftkit.tagging import PLAIN, Scheme, find_scheme, split_tag

_WORD_HINT = "tokens are strings with at least one character; remove the token and its tag, or fill it in"
_SPAN_HINT = 'entities are objects such as {"start": 0, "end": 5, "label": "PER"}, or [0, 5, "PER"]'
_SCHEME_HINT = (
    "tags are O, or a prefix (B-, I-; E-, S-; L-, U-) and a type, or in all rows a bare type; "
    "task.scheme: plain takes whole tags for types"
)

# Tokens and tags ------------------------------------------------------------------------


def read_tokens(value: Any, where: str) -> list[str]:
    """The words of a row.

    Raises:
        InputError: There are none, or one is empty or no string.
    """
    tokens = _list(value, "tokens", where)
    for number, token in enumerate(tokens, 1):
        if not isinstance(token, str) or not token.strip():
            what = "is empty" if isinstance(token, str) else f"is {token!r}, not a string"
            raise InputError(f"token {number} of {len(tokens)} {what}", where=where, hint=_WORD_HINT)
    return tokens


def read_tags(value: Any, tokens: Sequence[str], names: Sequence[str] | None, where: str) -> RawTags:
    """The tags of a row's tokens.

    Args:
        value: Names, or numbers among `names`.
        tokens: The words.
        names: What numbers stand for; `None` where the recipe does not say.
        where: The row's place, for messages.

    Raises:
        InputError: There is not one for each token, or one is neither a name nor a known number.
    """
    tags = _list(value, "tags", where)
    if len(tags) != len(tokens):
        raise InputError(
            f"{len(tokens)} tokens but {len(tags)} tags", where=where, hint="each token needs a tag"
        )
    return RawTags(
        tuple(_tag(tag, names, f"{where}, word {n} ({tokens[n - 1]!r:.40})") for n, tag in enumerate(tags, 1))
    )


def _tag(tag: Any, names: Sequence[str] | None, where: str) -> str:
    if isinstance(tag, str) and tag.strip() and not (names and tag.isdecimal()):
        return tag.strip()
    number = int(tag) if isinstance(tag, str) and tag.isdecimal() else tag
    if not isinstance(number, int) or isinstance(number, bool):
        raise InputError(f"the tag is {tag!r}, not a name or a number", where=where)
    if names is None:
        raise InputError(
            f"the tag is the number {number}", where=where,
            hint="name the tags with task.tag_names, such as [O, B-PER, I-PER]",
        )  # fmt: skip
    if not 0 <= number < len(names):
        raise InputError(
            f"the tag is the number {number}, but task.tag_names has {len(names)} names", where=where
        )
    return names[number]


def _list(value: Any, what: str, where: str) -> list[Any]:
    if isinstance(value, (list, tuple)) and value:
        return list(value)
    raise InputError(
        f"the {what} are {value!r:.80}, not a list" if value not in ([], ()) else f"the row has no {what}",
        where=where,
        hint='a row holds lists, such as {"tokens": ["Paris", "fell"], "ner_tags": ["B-LOC", "O"]}; a file '
        "with a word a line is read with data.format: conll",
    )


# Spans ----------------------------------------------------------------------------------


def read_spans(value: Any, text: str, where: str) -> RawSpans:
    """Character spans as annotation tools write them: objects, or [start, end, label].

    Raises:
        InputError: They are none, lie beyond the text, or overlap.
    """
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
    return RawSpans(tuple(spans))


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
    named = value.get("text") if isinstance(value, Mapping) else None
    if isinstance(named, str) and named.strip() and _letters(named) != _letters(inside):
        raise InputError(
            f"the entity {start}-{end} ({label}) is {named!r:.40} by its text, {inside!r:.40} by its place",
            where=where,
            hint="start and end count characters of the row's text from 0 (not bytes), end is exclusive",
        )
    if not inside.strip():
        raise InputError(f"the entity {start}-{end} ({label}) holds white space only", where=where)
    return Span(
        start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip()), label.strip()
    )


def _letters(text: str) -> str:
    """What stays of a text that a tool writes again: not white space, case, or how accents are coded."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


# What they say --------------------------------------------------------------------------


def tags_read(record: Record) -> tuple[str, ...]:
    """The tags that a record was read with; of spans or no answer there are none."""
    return record.target.tags if isinstance(record.target, RawTags) else ()


def tag_place(record: Record, number: int) -> str:
    """A tag that a record was read with, with its word and its place, for messages."""
    start, end = record.words[number]
    return f"{record.where}, word {number + 1}, {record.text[start:end]!r} {tags_read(record)[number]}"


def spans_read(record: Record) -> tuple[Span, ...]:
    """The spans that a record was read with; of tags or no answer there are none."""
    return record.target.spans if isinstance(record.target, RawSpans) else ()


def scheme_of(records: Sequence[Record], *, plain: bool) -> Scheme:
    """The scheme of a split's tags; `plain` takes whole tags for types.

    Raises:
        InputError: They cannot be read, with the row.
    """
    if plain:
        return PLAIN
    try:
        scheme = find_scheme(map(tags_read, records))
    except ValueError as error:
        raise InputError(str(error), where=_odd_place(records), hint=_SCHEME_HINT) from None
    for record in records:
        for number, tag in enumerate(tags_read(record), 1):
            try:
                split_tag(tag, scheme)
            except ValueError as error:
                where = f"{record.where}, word {number}"
                raise InputError(str(error), where=where, hint=_SCHEME_HINT) from None
    return scheme


def _odd_place(records: Sequence[Record]) -> str:
    """The first row whose tags do not go with those before it."""

    def odd(number: int) -> bool:
        try:
            find_scheme(map(tags_read, islice(records, number + 1)))
        except ValueError:
            return True
        return False

    return records[bisect_left(range(len(records)), True, key=odd)].where


def types_read(record: Record, scheme: Scheme) -> Iterator[str]:
    """The types that a record names, once or more."""
    yield from (kind for tag in tags_read(record) if (kind := split_tag(tag, scheme)[1]))
    yield from (span.label for span in spans_read(record))


def types_named(names: Sequence[str]) -> tuple[str, ...]:
    """The types in the names of tags, in their order; names without prefixes are types themselves.

    >>> types_named(["O", "B-LOC", "I-LOC", "B-PER"]), types_named(["O", "person", "e-mail"])
    (('LOC', 'PER'), ('person', 'e-mail'))
    """
    known = [name for name in names if name != "O"]
    try:
        return tuple(dict.fromkeys(split_tag(name)[1] for name in known))
    except ValueError:
        return tuple(known)
