"""Gold entities survive tokens, windows and schemes; predicted tags can be kept legal."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SHARED_DATA, _byte_level, _wordpiece
from torch.nn import functional

from ftkit.data.source import DataSource
from ftkit.dataset import load_records
from ftkit.errors import UsageError
from ftkit.records import Entities, Record, Span
from ftkit.tagging import tag_names
from ftkit.tasks.ner import Ner
from ftkit.training.heads import Encoded
from ftkit.training.token_head import TokenHead, likeliest_legal
from ftkit.training.windows import window_of, windows

TOKENIZERS = {"wordpiece": _wordpiece(Path()), "byte-level": _byte_level(Path())}
TYPES = ["PER", "LOC"]
tokenizers = pytest.mark.parametrize("tokenizer", TOKENIZERS)


def one_hot_logits(encoded: Encoded, tags: int) -> torch.Tensor:
    """Logits of a model that knows every label; where none is asked for, it says anything but O."""
    width = max(len(row["input_ids"]) for row in encoded.features)
    labels = torch.full((len(encoded.features), width), -100)
    for number, row in enumerate(encoded.features):
        labels[number, : len(row["labels"])] = torch.tensor(row["labels"])
    anything = (1 + torch.arange(width) % (tags - 1)).expand_as(labels)
    return 30.0 * functional.one_hot(torch.where(labels >= 0, labels, anything), tags)


def perfect(head: TokenHead, records: Sequence[Record], encoded: Encoded) -> list[Entities]:
    """What a model predicts that knows every label."""
    decoded = head.decode(one_hot_logits(encoded, len(head.tags)), encoded.features)
    return [prediction.value for prediction in head.predictions(records, encoded, decoded)]


# Windows by themselves --------------------------------------------------------------------


@st.composite
def cuts(draw: Any) -> tuple[int, int, int]:
    size = draw(st.integers(min_value=1, max_value=12))
    return draw(st.integers(min_value=0, max_value=80)), size, draw(st.integers(0, size - 1))


@settings(max_examples=400, deadline=None)
@given(cuts())
def test_windows_cover_all_tokens(cut: tuple[int, int, int]) -> None:
    tokens, size, stride = cut
    found = windows(tokens, size, stride)
    assert all(end - start == min(size, tokens) for start, end in found)
    assert {token for start, end in found for token in range(start, end)} == set(range(tokens))
    assert (found[0][0], found[-1][1]) == (0, tokens)
    for (start, end), (later, later_end) in pairwise(found):
        assert start < later and end < later_end, "no window lies in another"
        assert end - later >= stride


@settings(max_examples=400, deadline=None)
@given(cuts())
def test_each_token_is_read_where_its_nearer_cut_is_farthest(cut: tuple[int, int, int]) -> None:
    tokens, size, stride = cut
    found = windows(tokens, size, stride)
    for token in range(tokens):
        # The tokens on either side that a window shows; a side that it shows whole is no limit.
        seen = {}
        for number, (start, end) in enumerate(found):
            if start <= token < end:
                left = token - start if start > 0 else tokens
                right = end - token - 1 if end < tokens else tokens
                seen[number] = min(left, right)
        chosen = window_of(token, found)
        assert seen[chosen] == max(seen.values())
        assert chosen == min(number for number, least in seen.items() if least == seen[chosen])
        if len(found) > 1:
            # An inner token has half of what is shared, or more, on both sides.
            assert seen[chosen] >= (stride - 1) // 2


# Encoding ---------------------------------------------------------------------------------


# Letters that WordPiece knows, words it knows, one character of one, two, three and four bytes.
words = st.text(alphabet="abcXYZ019.-'éßЖ漢€😀", min_size=1, max_size=14) | st.sampled_from(
    ["the", "The", "money", "www.example.com/a_b", "U.S.", "don't", "..."]
)


@st.composite
def example(draw: Any) -> tuple[list[str], list[tuple[int, int, str]], int, int | None]:
    """Words, entities by their words, longest input and stride."""
    tokens = draw(st.lists(words, min_size=1, max_size=25))
    found, place = [], 0
    while place < len(tokens):
        kind = draw(st.sampled_from(["", "", *TYPES]))
        end = place + draw(st.integers(min_value=1, max_value=min(4, len(tokens) - place)))
        if kind:
            found.append((place, end, kind))
        place = end
    longest = draw(st.integers(min_value=4, max_value=40))
    stride = draw(st.none() | st.integers(min_value=0, max_value=longest - 3))
    return tokens, found, longest, stride


def record_of(tokens: list[str], found: Sequence[tuple[int, int, str]]) -> Record:
    """A record as the task reads it, its tags in the scheme BIOES."""
    tags = ["O"] * len(tokens)
    for start, end, kind in found:
        single = end - start == 1
        tags[start:end] = (
            [f"S-{kind}"] if single else [f"B-{kind}", *[f"I-{kind}"] * (end - start - 2), f"E-{kind}"]
        )
    task = Ner()
    (record,), _ = task.settle([task.read({"token": tokens, "tag": tags}, "row 1")], TYPES)
    return record


def spans_of(tokens: list[str], found: Sequence[tuple[int, int, str]]) -> list[Span]:
    starts = [0, *itertools.accumulate(len(token) + 1 for token in tokens)]
    return [Span(starts[first], starts[end] - 1, kind) for first, end, kind in found]


@tokenizers
@settings(max_examples=150, deadline=None)
@given(example())
def test_gold_entities_survive_any_cut(
    tokenizer: str, drawn: tuple[list[str], list[tuple[int, int, str]], int, int | None]
) -> None:
    tokens, found, longest, stride = drawn
    model_tokenizer = TOKENIZERS[tokenizer]
    head = TokenHead(tags=tag_names(TYPES), stride=stride, constrained=len(tokens) % 2 == 0)
    head.prepare(model_tokenizer, longest)
    record = record_of(tokens, found)
    encoded = head.encode([record], model_tokenizer, longest)
    (predicted,) = perfect(head, [record], encoded)
    gold = spans_of(tokens, found)
    assert list(record.target.spans) == gold
    assert list(predicted.spans) == gold
    assert predicted.tags == record.target.tags
    assert [record.text[span.start : span.end] for span in gold] == [
        " ".join(tokens[start:end]) for start, end, _ in found
    ]
    assert all(span.score == pytest.approx(1.0) for span in predicted.spans)


@tokenizers
@settings(max_examples=150, deadline=None)
@given(example())
def test_every_word_is_learned_once_at_its_first_token(
    tokenizer: str, drawn: tuple[list[str], list[tuple[int, int, str]], int, int | None]
) -> None:
    tokens, found, longest, stride = drawn
    model_tokenizer = TOKENIZERS[tokenizer]
    record = record_of(tokens, found)
    head = TokenHead(tags=tag_names(TYPES), stride=stride)
    encoded = head.encode([record], model_tokenizer, longest)
    whole = model_tokenizer(record.text, add_special_tokens=False)
    size = longest - 2
    found_windows = windows(len(whole["input_ids"]), size, head._stride(size))
    assert {n for start, end in found_windows for n in range(start, end)} == set(
        range(len(whole["input_ids"]))
    )
    assert list(encoded.owners) == [0] * len(encoded.features)
    # A window where no word begins may be there or not: nothing is asked of it.
    firsts = [whole.char_to_token(start) for start, _ in record.words]
    starts = [found_windows[number][0] for number in sorted({window_of(n, found_windows) for n in firsts})]
    rows = [row for row in encoded.features if row["words"]]
    supervised: Counter[int] = Counter()
    for start, row in zip(starts, rows, strict=True):
        ids = row["input_ids"]
        assert len(ids) <= longest
        assert (ids[0], ids[-1]) == (model_tokenizer.cls_token_id, model_tokenizer.sep_token_id)
        assert ids[1:-1] == whole["input_ids"][start : start + size]
        assert all(len(row[name]) == len(ids) for name in (*model_tokenizer.model_input_names, "labels"))
        asked = [position for position, label in enumerate(row["labels"]) if label != -100]
        assert asked == row["positions"], "only the words that are read here have labels"
        for word, position in zip(row["words"], row["positions"], strict=True):
            supervised[word] += 1
            assert head.tags[row["labels"][position]] == record.target.tags[word]
            assert position - 1 + start == firsts[word]
    assert supervised == dict.fromkeys(range(len(tokens)), 1)
    # Without answers, the model sees the same.
    bare = head.encode([Record(record.text, words=record.words)], model_tokenizer, longest)
    for row, other in zip(encoded.features, bare.features, strict=True):
        assert "labels" not in other
        assert {name: value for name, value in row.items() if name != "labels"} == other
    assert max(len(row["input_ids"]) for row in encoded.features) <= longest


@tokenizers
def test_records_keep_apart(tokenizer: str) -> None:
    """Short and long texts in one list: each record gets the tags of its own windows."""
    generator = numpy.random.default_rng(5)
    records = []
    for _ in range(30):
        length = int(generator.choice([1, 3, 40]))
        places = [place for place in range(0, length, 2) if generator.random() < 0.5]
        found = [(place, place + 1, TYPES[place % 4 // 2]) for place in places]
        records.append(record_of([f"w{n}x" for n in range(length)], found))
    head = TokenHead(tags=tag_names(TYPES))
    encoded = head.encode(records, TOKENIZERS[tokenizer], 20)
    assert list(encoded.owners) == sorted(encoded.owners)
    assert len(encoded.owners) > len(records) == len(set(encoded.owners))
    for record, predicted in zip(records, perfect(head, records, encoded), strict=True):
        assert predicted.spans == record.target.spans
        assert predicted.text == record.text


def test_a_stride_as_long_as_the_window_is_refused() -> None:
    for tokenizer in TOKENIZERS.values():
        TokenHead(tags=tag_names(TYPES), stride=7).prepare(tokenizer, 10)
        with pytest.raises(UsageError, match="8 tokens are shared by windows of 8"):
            TokenHead(tags=tag_names(TYPES), stride=8).prepare(tokenizer, 10)


def test_windows_are_noted() -> None:
    record = record_of(["the"] * 20, [(0, 20, "PER")])
    encoded = TokenHead(tags=tag_names(TYPES)).encode(
        [record, record_of(["the"], [])], TOKENIZERS["wordpiece"], 12
    )
    assert encoded.notes == (
        "1 of 2 rows are longer than 10 tokens and go through windows; 1 entities lie on the border of two",
    )


def test_a_window_without_a_word_is_left_out() -> None:
    """A token of 100 characters fills windows where no word begins: nothing is learned or read there.

    Alone in a batch, such a row has no item to divide its loss by.
    """
    record = record_of(["see", "x" * 100, "there"], [(2, 3, "LOC")])
    head = TokenHead(tags=tag_names(TYPES))
    for tokenizer in TOKENIZERS.values():
        encoded = head.encode([record], tokenizer, 16)
        (predicted,) = perfect(head, [record], encoded)
        assert predicted.spans == record.target.spans
        labels = [[label for label in row["labels"] if label != -100] for row in encoded.features]
        assert all(labels), f"{sum(not row for row in labels)} of {len(labels)} rows have no label"


def test_a_word_without_tokens_does_not_cut_an_entity() -> None:
    """WordPiece drops variation selectors and, in lower case, accents; the words around them go on."""
    head = TokenHead(tags=tag_names(TYPES))
    for tokens in (["Mona", "\N{VARIATION SELECTOR-16}", "Lisa"], ["Ann", "\u200d", "\u200d", "Lee"]):
        record = record_of(tokens, [(0, len(tokens), "PER")])
        encoded = head.encode([record], TOKENIZERS["wordpiece"], 32)
        (predicted,) = perfect(head, [record], encoded)
        assert predicted.spans == record.target.spans


@tokenizers
@pytest.mark.parametrize(
    "text",
    [
        "Jose\N{COMBINING ACUTE ACCENT} Garci\N{COMBINING ACUTE ACCENT}a came",
        "\u0928\u0930\u0947\u0928\u094d\u0926\u094d\u0930 \u092e\u094b\u0926\u0940 \u0906\u090f",
        "\u0e19\u0e49\u0e33\u0e1d\u0e19 \u0e17\u0e35\u0e48\u0e19\u0e35\u0e48 x",
    ],
    ids=["accents", "Hindi", "Thai"],
)
def test_combining_characters_belong_to_the_word(tokenizer: str, text: str) -> None:
    """Raw text: accents and vowel signs that follow a letter are no words of their own."""
    task = Ner()
    name = len(text) - len(text.split()[-1]) - 1
    record = task.read({"text": text, "entities": [[0, name, "PER"]]}, "row 1")
    (record,), _ = task.settle([record], TYPES)
    head = TokenHead(tags=tag_names(TYPES))
    encoded = head.encode([record], TOKENIZERS[tokenizer], 64)
    (predicted,) = perfect(head, [record], encoded)
    assert [(span.start, span.end) for span in predicted.spans] == [(0, name)]
    assert [text[start:end] for start, end in record.words] == text.split()


# Real corpora -----------------------------------------------------------------------------


CORPORA = [
    "wnut17/wnut17train.conll", "wnut17/emerging.dev.conll", "wnut17/emerging.test.annotated",
    "ncbi_disease/train.tsv", "ncbi_disease/devel.tsv", "ncbi_disease/test.tsv",
    "sec_filings/CONLL-format/data/train/FIN5.txt", "sec_filings/CONLL-format/data/test/FIN3.txt",
]  # fmt: skip


def sentences_of(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    """Words and tags of a file, read in the plainest way."""
    tokens: list[str] = []
    tags: list[str] = []
    for line in [*path.read_text(encoding="utf-8").split("\n"), ""]:
        values = line.split("\t") if "\t" in line else line.split(" ")
        if line.strip() and values[0] != "-DOCSTART-":
            tokens.append(values[0].strip())
            tags.append(values[-1].strip())
        elif tokens:
            yield tokens, tags
            tokens, tags = [], []


def gold_spans(tokens: list[str], tags: list[str]) -> list[Span]:
    """Entities of BIO and IO tags: each run of a type that no B- interrupts."""
    found: list[tuple[int, int, str]] = []
    for place, tag in enumerate(tags):
        kind = tag[2:]
        if found and kind and found[-1][1:] == (place, kind) and tag[0] == "I":
            found[-1] = (found[-1][0], place + 1, kind)
        elif kind:
            found.append((place, place + 1, kind))
    return spans_of(tokens, found)


@pytest.mark.parametrize("file", CORPORA)
def test_gold_entities_of_a_corpus_survive(file: str) -> None:
    path = SHARED_DATA / file
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    dataset = load_records(DataSource(train_file=str(path), format="conll"), Ner())
    records = dataset["train"]
    read = list(sentences_of(path))
    assert len(records) == len(read)
    gold = [gold_spans(*sentence) for sentence in read]
    total = sum(len(tokens) for tokens, _ in read)
    head = TokenHead(tags=tag_names(dataset.labels))
    for tokenizer, longest in itertools.product(TOKENIZERS.values(), (32, 512)):
        encoded = head.encode(records, tokenizer, longest)
        assert max(len(row["input_ids"]) for row in encoded.features) <= longest
        lost = total - sum(len(row["words"]) for row in encoded.features)
        # WordPiece has no token for a lone variation selector or replacement character.
        assert lost <= (0.001 * total if tokenizer is TOKENIZERS["wordpiece"] else 0)
        # In batches, as a model gives its logits: all at once would be gigabytes.
        decoded: list[Any] = []
        for start in range(0, len(encoded.features), 256):
            part = Encoded(encoded.features[start : start + 256], encoded.owners[start : start + 256])
            decoded += head.decode(one_hot_logits(part, len(head.tags)), part.features)
        predictions = head.predictions(records, encoded, decoded)
        for record, prediction, spans in zip(records, predictions, gold, strict=True):
            assert list(prediction.value.spans) == spans, record.where


# Constrained decoding ---------------------------------------------------------------------


TAGS = tag_names(["A", "B"])
# Weights a few orders apart, zeros among them: what a sure model says of the unlikely tags.
probabilities = st.lists(
    st.lists(st.sampled_from([0, 1, 2, 3, 5, 7, 100, 10_000]), min_size=len(TAGS), max_size=len(TAGS)).filter(
        any
    ),
    min_size=1,
    max_size=5,
).map(lambda rows: (numpy.array(rows) / numpy.sum(rows, axis=1, keepdims=True)).astype(numpy.float32))


def legal(path: Sequence[int]) -> bool:
    names = ["O", *(TAGS[number] for number in path)]
    return not any(
        name.startswith("I-") and before not in (f"B-{name[2:]}", name) for before, name in pairwise(names)
    )


LEGAL = {
    length: [path for path in itertools.product(range(len(TAGS)), repeat=length) if legal(path)]
    for length in range(1, 6)
}


def likelihood(rows: Any, path: Sequence[int]) -> float:
    with numpy.errstate(divide="ignore"):
        return float(sum(numpy.log(float(row[number])) for row, number in zip(rows, path, strict=True)))


@settings(max_examples=300, deadline=None)
@given(probabilities)
def test_the_likeliest_legal_sequence(rows: Any) -> None:
    path = likeliest_legal(rows, TAGS).tolist()
    assert legal(path)
    best = max(likelihood(rows, other) for other in LEGAL[len(rows)])
    assert best == -numpy.inf or likelihood(rows, path) == pytest.approx(best, abs=1e-9)


@settings(max_examples=300, deadline=None)
@given(st.integers(min_value=1, max_value=200), st.integers(min_value=0, max_value=2**32 - 1))
def test_long_sequences_are_legal_and_no_less_likely_than_greedy_ones(length: int, seed: int) -> None:
    rows = numpy.random.default_rng(seed).dirichlet([0.3] * len(TAGS), length).astype(numpy.float32)
    path = likeliest_legal(rows, TAGS).tolist()
    assert legal(path)
    # Greedy: the likeliest tag that may stand after the one chosen before.
    greedy: list[int] = []
    for row in rows:
        allowed = [number for number in range(len(TAGS)) if may_follow(TAGS[number], greedy)]
        greedy.append(max(allowed, key=lambda number: row[number]))
    assert legal(greedy)
    assert likelihood(rows, path) >= likelihood(rows, greedy) - 1e-9


def may_follow(tag: str, chosen: Sequence[int]) -> bool:
    return not tag.startswith("I-") or (bool(chosen) and TAGS[chosen[-1]][2:] == tag[2:])


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(min_value=0, max_value=2**32 - 1))
def test_a_legal_argmax_stays_as_it_is(data: st.DataObject, seed: int) -> None:
    path = data.draw(st.sampled_from(LEGAL[data.draw(st.integers(min_value=1, max_value=5))]))
    rows = numpy.random.default_rng(seed).dirichlet([1.0] * len(TAGS), len(path)).astype(numpy.float32)
    for row, number in zip(rows, path, strict=True):
        best = int(row.argmax())
        row[best], row[number] = row[number], row[best]
    assert likeliest_legal(rows, TAGS).tolist() == list(path) == rows.argmax(axis=1).tolist()


def test_constrained_predictions_are_legal() -> None:
    """From logits for O I-PER I-LOC: as they are, or with the likeliest beginning."""
    record = record_of(["the", "red", "phone"], [])
    logits = torch.zeros(1, 5, 5)
    logits[0, 1, 0] = 4.0
    logits[0, 2, 2], logits[0, 2, 1] = 5.0, 4.5
    logits[0, 3, 4], logits[0, 3, 2] = 5.0, 4.5
    found = {}
    for constrained in (False, True):
        head = TokenHead(tags=tag_names(TYPES), constrained=constrained)
        encoded = head.encode([record], TOKENIZERS["wordpiece"], 16)
        decoded = head.decode(logits, encoded.features)
        (prediction,) = head.predictions([record], encoded, decoded)
        found[constrained] = prediction.value
    assert found[False].tags == ("O", "I-PER", "I-LOC")
    assert found[False].spans == (Span(4, 7, "PER"), Span(8, 13, "LOC"))
    assert found[True].tags == ("O", "B-PER", "I-PER")
    assert found[True].spans == (Span(4, 13, "PER"),)


def test_windows_share_a_quarter_of_their_tokens_by_default() -> None:
    record = record_of(["a"] * 40, [])
    tags, tokenizer = tag_names(TYPES), TOKENIZERS["wordpiece"]
    found = TokenHead(tags).encode([record], tokenizer, 16 + 2)
    told = TokenHead(tags, stride=16 // 4).encode([record], tokenizer, 16 + 2)
    assert [list(row["words"]) for row in found.features] == [list(row["words"]) for row in told.features]
    assert len(found.features) == len(windows(40, 16, 4)) != len(windows(40, 16, 8))
