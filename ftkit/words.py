"""Words of a text, and where entities stand: by words, as spans of characters, as tags."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from ftkit.records import Entities, Record, Span
from ftkit.tagging import Chunk, bio_tags

Word = tuple[int, int]
"""First and last character (exclusive) of a word."""


def words_of(text: str, pattern: str) -> tuple[Word, ...]:
    """The words of raw text by their characters.

    Python's `\\w` matches no combining mark and no joiner, which would cut words of many scripts.

    >>> words_of("Jose\u0301e, U.S.", r"\\w+|[^\\w\\s]")
    ((0, 6), (6, 7), (8, 9), (9, 10), (10, 11), (11, 12))
    """
    words: list[Word] = []
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


def words_joined(tokens: Sequence[str]) -> tuple[Word, ...]:
    """The words of a text that is tokens with a space between them.

    >>> words_joined(["Ann", "won"])
    ((0, 3), (4, 7))
    """
    words, start = [], 0
    for token in tokens:
        words.append((start, start + len(token)))
        start += len(token) + 1
    return tuple(words)


def _is_mark(character: str) -> bool:
    """A combining mark, or a joiner that stands inside words."""
    return unicodedata.category(character).startswith("M") or character in "\u200c\u200d"


def span_of(chunk: Chunk, words: Sequence[Word], score: float | None = None) -> Span:
    """An entity by words as a span of characters.

    >>> span_of((1, 3, "PER"), [(0, 3), (4, 7), (8, 12)])
    Span(start=4, end=12, label='PER', score=None)
    """
    start, end, kind = chunk
    return Span(words[start][0], words[end - 1][1], kind, score)


def chunks_touched(spans: Sequence[Span], words: Sequence[Word]) -> list[Chunk]:
    """The words that each span overlaps; one without a word of its own is left out.

    >>> chunks_touched([Span(4, 5, "PER"), Span(6, 7, "LOC")], [(0, 3), (4, 7)])
    [(1, 2, 'PER')]
    """
    found: list[Chunk] = []
    taken = 0
    for span in spans:
        inside = [n for n in range(taken, len(words)) if words[n][0] < span.end and words[n][1] > span.start]
        if inside:
            taken = inside[-1] + 1
            found.append((inside[0], taken, span.label))
    return found


def entities_by_words(found: Sequence[Chunk], record: Record) -> Entities:
    """The entities of a record, with a tag for each word."""
    spans = tuple(span_of(chunk, record.words) for chunk in found)
    return Entities(spans, bio_tags(found, len(record.words)), record.text, record.words)


def entities_by_characters(spans: Sequence[Span], record: Record) -> Entities:
    """The same, where only spans of characters are known: each becomes the words that it touches."""
    return entities_by_words(chunks_touched(spans, record.words), record)
