"""Word tags and the entities they stand for, in the schemes that corpora come in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

OUTSIDE = "O"
Chunk = tuple[int, int, str]
"""First word, last word (exclusive) and type of an entity."""

_PREFIXED = re.compile(r"([A-Za-z])-(.+)", re.DOTALL)
# What looks like a prefix and is none: B, B_PER, PER-B, b-per.
_NEARLY = re.compile(r"[BIESLUMO]([^A-Za-z0-9].*)?|.+[-_/][BIESLU]", re.DOTALL | re.IGNORECASE)
# BILOU's last and unit, and the middle of BMES, under the letters of BIOES.
_LETTERS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "M": "I"}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How the tags of a corpus are written.

    Attributes:
        name: BIO, IOB1, IO, BIOES, BILOU or plain (types without prefixes).
        about: What a reader of the corpus should know about it; may be empty.
        apart: Whether neighbouring entities of one type can be told apart.
    """

    name: str
    about: str = ""
    apart: bool = True


PLAIN = Scheme(
    "plain", "tags have no prefixes: neighbouring words of one type are taken for one entity", apart=False
)
_IO = Scheme("IO", "tags are IO (no B-): neighbouring entities of one type are taken for one", apart=False)
_IOB1 = Scheme("IOB1", "tags are IOB1 (B- only between neighbours of one type)")


def split_tag(tag: str, scheme: Scheme | None = None) -> tuple[str, str]:
    """Prefix letter (of BIOES) and type of a tag.

    Raises:
        ValueError: The prefix is none that a scheme knows.

    >>> split_tag("B-PER"), split_tag("U-LOC"), split_tag("O"), split_tag("person", PLAIN)
    (('B', 'PER'), ('S', 'LOC'), ('O', ''), ('I', 'person'))
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if scheme == PLAIN:
        return "I", tag
    match = _PREFIXED.fullmatch(tag)
    if match is None:
        raise ValueError(f"the tag {tag!r} has no prefix such as B- or I-")
    if match[1] not in _LETTERS:
        raise ValueError(f"the tag {tag!r} has the unknown prefix {match[1]}-")
    return _LETTERS[match[1]], match[2].strip()


def find_scheme(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme that a corpus is written in.

    Raises:
        ValueError: Two schemes are mixed, or tags look prefixed and are not.

    >>> find_scheme([["I-PER", "O"], ["I-PER", "B-PER"]]).name
    'IOB1'
    >>> find_scheme([["B-PER", "E-PER", "O", "S-LOC"]]).name
    'BIOES'
    """
    letters: set[str] = set()
    plain: str | None = None
    nearly: str | None = None
    opened_by_inside = opened_by_begin = False
    for tags in sentences:
        before = OUTSIDE
        for tag in tags:
            match = _PREFIXED.fullmatch(tag)
            if match is None:
                plain = plain or (tag if tag != OUTSIDE else None)
                nearly = nearly or (tag if tag != OUTSIDE and _NEARLY.fullmatch(tag) else None)
            else:
                letters.add(match[1])
                inside_same = before != OUTSIDE and before[1:] == tag[1:]
                opened_by_inside |= match[1] == "I" and not inside_same
                opened_by_begin |= match[1] == "B" and not inside_same
            before = tag
    if nearly and not letters & set(_LETTERS):
        raise ValueError(f"the tag {nearly!r} looks as if it had a prefix, which is written B- or I-")
    if not letters & set(_LETTERS):
        return PLAIN if plain else Scheme("BIO")
    if plain is not None:
        raise ValueError(f"tags with and without prefixes are mixed: {plain!r} has none")
    if letters & {"E", "S"} and letters & {"L", "U"}:
        raise ValueError("the schemes BIOES (E-, S-) and BILOU (L-, U-) are mixed")
    if letters & {"E", "S"}:
        return Scheme("BIOES")
    if letters & {"L", "U"}:
        return Scheme("BILOU")
    if "B" not in letters:
        return _IO
    return _IOB1 if opened_by_inside and not opened_by_begin else Scheme("BIO")


def chunks(tags: Sequence[str], scheme: Scheme | None = None) -> list[Chunk]:
    """The entities that tags stand for, read as the CoNLL evaluation reads them.

    An entity ends before O, before a `B-` or `S-`, after an `E-` or `S-`, and where the type
    changes; whatever tag comes next begins another one. So an `I-` after O begins an entity: BIO,
    IOB1, IO and BIOES are all read by this one rule (Tjong Kim Sang and Buchholz, 2000).

    >>> chunks(["B-PER", "I-PER", "B-PER", "O", "I-LOC"])
    [(0, 2, 'PER'), (2, 3, 'PER'), (4, 5, 'LOC')]
    """
    found: list[Chunk] = []
    start, kind, ended = 0, "", True
    for number, tag in enumerate([*tags, OUTSIDE]):
        prefix, name = split_tag(tag, scheme)
        if kind and (ended or prefix in "BSO" or name != kind):
            found.append((start, number, kind))
            kind = ""
        if prefix != OUTSIDE and not kind:
            start, kind = number, name
        ended = prefix in "ES"
    return found


def bio_tags(entities: Iterable[Chunk], words: int) -> tuple[str, ...]:
    """BIO tags of entities.

    >>> bio_tags([(1, 3, "PER")], 4)
    ('O', 'B-PER', 'I-PER', 'O')
    """
    tags = [OUTSIDE] * words
    for start, end, kind in entities:
        tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
    return tuple(tags)


def illegal_transitions(tags: Sequence[str], scheme: Scheme) -> Iterator[int]:
    """Numbers of the words whose tag may not stand there: nothing to go on with, or never ended.

    >>> list(illegal_transitions(["O", "I-PER", "I-LOC", "B-LOC", "I-LOC"], Scheme("BIO")))
    [1, 2]
    """
    if scheme.name not in {"BIO", "BIOES", "BILOU"}:
        return
    must_end = scheme.name != "BIO"
    before, kind_before = OUTSIDE, ""
    found: list[int] = []
    for number, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = split_tag(tag)
        goes_on = prefix in "IE" and before in "BI" and kind == kind_before
        if must_end and before in "BI" and not goes_on:
            found.append(number - 1)
        if prefix in "IE" and not goes_on:
            found.append(number)
        before, kind_before = prefix, kind
    yield from sorted(set(found))


def tag_names(types: Sequence[str], *, apart: bool = True) -> tuple[str, ...]:
    """The tags of a model: O, then B- and I- of every type, or I- alone.

    Args:
        types: Entity types.
        apart: Whether neighbouring entities of one type are to be told apart, which takes a B-.

    >>> tag_names(["LOC", "PER"])
    ('O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER')
    >>> tag_names(["LOC", "PER"], apart=False)
    ('O', 'I-LOC', 'I-PER')
    """
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in ("BI" if apart else "I")))
