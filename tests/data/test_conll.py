"""Sentences and their entities from CoNLL files, and the same from JSON lines."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ftkit.data.base import Reading
from ftkit.data.conll import Conll
from ftkit.data.source import DataSource
from ftkit.dataset import load_records, read_unlabelled
from ftkit.errors import InputError, UsageError
from ftkit.records import Dataset
from ftkit.tagging import chunks
from ftkit.tasks.base import Task
from ftkit.tasks.classification import Classification
from ftkit.tasks.ner import Ner

Read = Callable[..., Dataset]
PARIS = "Paris\tB-LOC\nfell\tO\n"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """`read("Paris\\tB-LOC")` is that training file, read as a run reads it."""

    def load(
        content: str | bytes | Sequence[dict[str, Any]],
        name: str = "train.conll",
        task: dict[str, Any] | None = None,
        limit: int | None = None,
        **data: Any,
    ) -> Dataset:
        if not isinstance(content, str | bytes):
            name, content = "train.jsonl", "\n".join(map(json.dumps, content))
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_records(DataSource(train_file=str(path), **data), Ner(**task or {}), limit=limit)

    return load


def words(dataset: Dataset) -> list[list[str]]:
    return [[record.text[start:end] for start, end in record.words] for record in dataset["train"]]


def entities(dataset: Dataset) -> list[list[tuple[str, str]]]:
    """What stands at the offsets of each span, and its type."""
    return [
        [(record.text[span.start : span.end], span.label) for span in record.target.spans]
        for record in dataset["train"]
    ]


# Lines -------------------------------------------------------------------------------------------

TWO = [["Paris", "fell"], ["Lee", "won"]]
LINES = [
    ("tabs", "Paris\tB-LOC\nfell\tO\n\nLee\tB-PER\nwon\tO\n\n", TWO),
    ("spaces", "Paris B-LOC\nfell O\n\nLee B-PER\nwon O\n\n", TWO),
    ("many spaces", "Paris     B-LOC\nfell      O\n\nLee       B-PER  \nwon       O\n", TWO),
    ("a tab among spaces", "Paris B-LOC\nfell O\n\nLee\tB-PER\nwon O\n", TWO),
    ("no last blank line", "Paris\tB-LOC\nfell\tO\n\nLee\tB-PER\nwon\tO", TWO),
    ("blank lines", "\n\nParis\tB-LOC\nfell\tO\n\n\n\nLee\tB-PER\nwon\tO\n\n\n", TWO),
    ("blank lines of spaces and tabs", "Paris\tB-LOC\nfell\tO\n \n\t\n \t \nLee\tB-PER\nwon\tO\n  ", TWO),
    ("windows", "Paris\tB-LOC\r\nfell\tO\r\n\r\nLee\tB-PER\r\nwon\tO\r\n\r\n", TWO),
    ("old mac", "Paris\tB-LOC\rfell\tO\r\rLee\tB-PER\rwon\tO\r", TWO),
    ("bom", "\ufeffParis\tB-LOC\nfell\tO\n\nLee\tB-PER\nwon\tO\n", TWO),
    ("documents", "-DOCSTART- O\n\nParis B-LOC\nfell O\n\n-DOCSTART- O\n\nLee B-PER\nwon O\n", TWO),
    ("documents without blank lines", "-DOCSTART-\tO\nParis\tB-LOC\nfell\tO\n-DOCSTART-\tO\n"
     "Lee\tB-PER\nwon\tO", TWO),
    ("documents of four columns", "-DOCSTART- -X- -X- O\n\nParis NNP B-NP B-LOC\nfell VBD B-VP O\n\n"
     "-DOCSTART- -X- -X- O\n\nLee NNP B-NP B-PER\nwon VBD B-VP O\n", TWO),
    ("documents of one word", "-DOCSTART-\n\nParis\tB-LOC\nfell\tO\n\n-DOCSTART-\n\n"
     "Lee\tB-PER\nwon\tO\n", TWO),
    ("comments", "# a comment\nParis\tB-LOC\n# text = Paris fell\nfell\tO\n\n#\n# sent_id = 2\n"
     "Lee\tB-PER\nwon\tO\n", TWO),
    ("comments of a hub data set", "# id 5239d808-f300\tdomain=en\nParis _ _ B-LOC\nfell _ _ O\n\n"
     "# id 1f0d2c8a-9a7b\tdomain=en\nLee _ _ B-PER\nwon _ _ O\n", TWO),
    ("comments as wide as the words", "# sent_id = 1\nParis NNP B-NP B-LOC\nfell VBD B-VP O\n\n"
     "# sent_id = 2\nLee NNP B-NP B-PER\nwon VBD B-VP O\n", TWO),
    ("comments as wide as the words, bare types", "# sent_id = 1\nParis NNP B-NP LOC\nfell VBD B-VP O\n\n"
     "# sent_id = 2\nLee NNP B-NP PER\nwon VBD B-VP O\n", TWO),
    ("a long licence", "# of words\n" * 250 + "Paris\tB-LOC\nfell\tO\n\nLee\tB-PER\nwon\tO\n", TWO),
    ("words that begin with #", "#hashtag\tO\n#\tO\nParis\tB-LOC\n", [["#hashtag", "#", "Paris"]]),
    ("words that begin with #, spaces", "# O\n#Paris B-LOC\nParis B-LOC\n", [["#", "#Paris", "Paris"]]),
    ("spaces in a word", "New York\tB-LOC\nfell\tO\n", [["New York", "fell"]]),
    ("line ends of Unicode", "a\u2028b\tB-LOC\nc\x85d\tO\ne\x0cf\tO\n", [["a\u2028b", "c\x85d", "e\x0cf"]]),
    ("spaces that do not break", "10\u00a0000 O\nParis B-LOC\nNew\u202fYork B-LOC\nfell O\n",
     [["10\u00a0000", "Paris", "New\u202fYork", "fell"]]),
    ("line ends of Unicode, spaces", "a\u2028b B-LOC\nc\x85d O\ne O\n", [["a\u2028b", "c\x85d", "e"]]),
    ("a very long word", "x" * 10_000 + "\tB-LOC\nfell\tO\n", [["x" * 10_000, "fell"]]),
    ("other scripts", "東京\tB-LOC\nمرحبا\tO\n👩‍👩‍👧\tO\n", [["東京", "مرحبا", "👩‍👩‍👧"]]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), [case[1:] for case in LINES], ids=[c[0] for c in LINES])
def test_words(content: str, expected: list[list[str]], read: Read) -> None:
    dataset = read(content)
    assert words(dataset) == expected
    assert [record.text for record in dataset["train"]] == [" ".join(sentence) for sentence in expected]
    assert set(dataset.labels) <= {"LOC", "PER"}


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_encoding(encoding: str, read: Read) -> None:
    dataset = read("Zürich\tB-LOC\nfell\tO\n".encode(encoding), encoding=encoding)
    assert entities(dataset) == [[("Zürich", "LOC")]]


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        ("Paris NNP B-NP B-LOC\nfell VBD B-VP O\n", {}),
        ("Paris NNP B-NP B-LOC\nfell VBD B-VP O\n", {"token": 0, "tag": -1}),
        ("Paris NNP B-NP B-LOC\nfell VBD B-VP O\n", {"token": 0, "tag": 3}),
        ("1\tParis\tNNP\tB-LOC\tO\n2\tfell\tVBD\tO\tO\n", {"token": 1, "tag": 3}),
        ("1\tParis\tNNP\tB-LOC\tO\n2\tfell\tVBD\tO\tO\n", {"token": -4, "tag": -2}),
        ("B-LOC Paris\nO fell\n", {"token": 1, "tag": 0}),
        ("1 Paris B-LOC\n2 fell O\n", {"token": 1}),
        ("Paris B-LOC B-NP\nfell O B-VP\n", {"tag": 1}),
    ],
)
def test_columns(content: str, columns: dict[str, str | int], read: Read) -> None:
    dataset = read(content, columns=columns)
    assert words(dataset) == [["Paris", "fell"]]
    assert entities(dataset) == [[("Paris", "LOC")]]


@pytest.mark.parametrize("columns", [{"tag": 0}, {"token": 1}, {"token": -1}, {"token": 0, "tag": -2}])
def test_words_are_not_read_as_their_own_tags(columns: dict[str, int], read: Read) -> None:
    with pytest.raises(UsageError, match="both read from the column"):
        read(PARIS, columns=columns)


def test_tokens_alone_may_be_hashes(tmp_path: Path) -> None:
    (tmp_path / "tokens.conll").write_text("# read by a machine\nissue\n#\n5\n#nlp\n")
    rows = Conll().rows(tmp_path / "tokens.conll", Reading())
    assert [values for _, values in rows] == [{0: ("issue", "#", "5", "#nlp")}]


def test_a_hashtag_without_its_tag_is_no_comment(read: Read) -> None:
    with pytest.raises(InputError, match=r"train\.conll:2: 1 line does not have the 2 columns"):
        read("Paris\tB-LOC\n#nlp\nfell\tO\n")


STRAY = "Paris\tB-LOC\nfell\tO\nstray\nnow\tO\n\n" * 6


def test_stray_lines(read: Read) -> None:
    with pytest.raises(InputError) as caught:
        read(STRAY)
    assert "train.conll:3: 6 lines do not have the 2 columns of the rest" in str(caught.value)
    assert "lines 3, 8, 13, 18, 23, 28; mend them, or set data.stray_lines: skip" in str(caught.value)


def test_stray_lines_skipped(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ftkit"):
        dataset = read(STRAY, stray_lines="skip")
    assert words(dataset) == [["Paris", "fell", "now"]] * 6
    said = [record.getMessage() for record in caplog.records if record.name == "ftkit"]
    assert len(said) == 1
    assert "train.conll: 6 lines do not have the 2 columns of the rest and are skipped (3, 8, 13," in said[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [("a\tO\nstray\n" + PARIS + "\n" + PARIS, "train.conll:2: 1 line does not have the 2 columns"),
     ("word\tO\n" * 3000 + PARIS, "train.conll:1: the file is one sentence of 3,002 words")],
    ids=["stray", "giant"],
)  # fmt: skip
def test_a_limit_hides_nothing_in_what_was_read(content: str, says: str, read: Read) -> None:
    with pytest.raises(InputError) as caught:
        read(content, limit=1)
    assert says in str(caught.value)


# Schemes -----------------------------------------------------------------------------------------

# The same entities; the second sentence has two of a type side by side.
WORDS = ["Ann Lee met Bob in New York .".split(), "Rome Bonn fell".split()]
FIRST = [("Ann Lee", "PER"), ("Bob", "PER"), ("New York", "LOC")]
APART, AS_ONE = [("Rome", "LOC"), ("Bonn", "LOC")], [("Rome Bonn", "LOC")]
SCHEMES = [
    ("BIO", "B-PER I-PER O B-PER O B-LOC I-LOC O", "B-LOC B-LOC O", APART, ""),
    ("IOB1", "I-PER I-PER O I-PER O I-LOC I-LOC O", "I-LOC B-LOC O", APART, "tags are IOB1 (B- only between"),
    ("IO", "I-PER I-PER O I-PER O I-LOC I-LOC O", "I-LOC I-LOC O", AS_ONE, "tags are IO (no B-)"),
    ("BIOES", "B-PER E-PER O S-PER O B-LOC E-LOC O", "S-LOC S-LOC O", APART, ""),
    ("BILOU", "B-PER L-PER O U-PER O B-LOC L-LOC O", "U-LOC U-LOC O", APART, ""),
    ("plain", "PER PER O PER O LOC LOC O", "LOC LOC O", AS_ONE, "tags have no prefixes"),
]


def conll(*tags: str) -> str:
    pairs = [zip(sentence, row.split(), strict=True) for sentence, row in zip(WORDS, tags, strict=True)]
    return "\n\n".join("\n".join(f"{word}\t{tag}" for word, tag in pair) for pair in pairs)


@pytest.mark.parametrize(
    ("first", "second", "side_by_side", "says"), [case[1:] for case in SCHEMES], ids=[c[0] for c in SCHEMES]
)
def test_scheme(first: str, second: str, side_by_side: list[tuple[str, str]], says: str, read: Read) -> None:
    dataset = read(conll(first, second))
    assert entities(dataset) == [FIRST, side_by_side]
    assert dataset.labels == ("LOC", "PER")
    assert dataset["train"][0].target.tags == tuple("B-PER I-PER O B-PER O B-LOC I-LOC O".split())
    about = [note for note in dataset.notes if "tags" in note]
    assert [note.startswith(f"train: {says}") for note in about] == [True] * bool(says)


def test_a_scheme_of_long_entities(read: Read) -> None:
    tags = ["B-X I-X E-X O", "B-X I-X L-X O", "B-X I-X I-X O", "X X X O"]
    found = [read("".join(f"{w}\t{t}\n" for w, t in zip("abcd", row.split(), strict=True))) for row in tags]
    assert [entities(one) for one in found] == [[[("a b c", "X")]]] * 4


def test_plain_types_that_look_prefixed(read: Read) -> None:
    dataset = read("a\te-mail\nb\tB-movie\nc\tO\n", task={"scheme": "plain"})
    assert entities(dataset) == [[("a", "e-mail"), ("b", "B-movie")]]


@pytest.mark.parametrize(
    ("begin", "inside", "outside"),
    [("B", "I", "O"), ("B_PER", "I_PER", "O"), ("PER-B", "PER-I", "O"), ("B\u2010PER", "I\u2010PER", "O"),
     ("B-", "I-", "O"), ("b-per", "i-per", "o")],
)  # fmt: skip
def test_tags_that_nearly_have_prefixes(begin: str, inside: str, outside: str, read: Read) -> None:
    """One entity of two words, or an error: never one type for the beginning and one for the rest."""
    try:
        dataset = read(f"Ann\t{begin}\nLee\t{inside}\nwon\t{outside}\n\nBob\t{begin}\nwon\t{outside}\n")
    except InputError as error:
        assert "train.conll:1" in str(error)
    else:
        assert [[text for text, _ in row] for row in entities(dataset)] == [["Ann Lee"], ["Bob"]]


@pytest.mark.parametrize("kind", ["ЛИЦО", "人名", "a person", "x-y-z", "café"])
def test_types_in_other_words(kind: str, read: Read) -> None:
    assert entities(read(f"Ann\tB-{kind}\nLee\tI-{kind}\nwon\tO\n")) == [[("Ann Lee", kind)]]


def test_a_space_in_a_tag_makes_no_second_type(read: Read) -> None:
    try:
        dataset = read("Ann\tB- PER\nLee\tI-PER\nwon\tO\n")
    except InputError as error:
        assert "B- PER" in str(error)
    else:
        assert dataset.labels == ("PER",)


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ("B-X O I-X", "1 tags may not follow the one before them in BIO (first: PATH:1, word 3, 'c' I-X)"),
        ("S-X O I-X", "1 tags may not follow the one before them in BIOES (first: PATH:1, word 3, 'c' I-X)"),
        (
            "U-X I-X L-X",
            "1 tags may not follow the one before them in BILOU (first: PATH:1, word 2, 'b' I-X)",
        ),
    ],
)
def test_tags_that_may_not_stand_there_are_counted_once(
    tags: str, says: str, read: Read, tmp_path: Path
) -> None:
    dataset = read("".join(f"{word}\t{tag}\n" for word, tag in zip("abc", tags.split(), strict=True)))
    (note,) = [note for note in dataset.notes if "may not follow" in note]
    assert says.replace("PATH", str(tmp_path / "train.conll")) in note


def test_an_entity_that_is_not_ended_does_not_begin_with_o(read: Read) -> None:
    dataset = read("a\tS-X\nb\tB-X\nc\tO\n")
    assert not [note for note in dataset.notes if "'c' O); they are read as the beginning" in note]


def test_a_mistake_in_the_last_of_many_rows_is_found_quickly(read: Read) -> None:
    begun = time.process_time()
    with pytest.raises(InputError, match=r"train.conll:12001.* mixed: 'PER'"):
        read("Ann\tB-PER\nwon\tO\n\n" * 4000 + "Lee\tPER\n")
    assert time.process_time() - begun < 4


# JSON lines --------------------------------------------------------------------------------------

TOKENS = ["Ann", "Lee", "met", "Bob"]
TEXT = "Ann Lee met Bob."
NAMED = [("Ann Lee", "PER"), ("Bob", "PER")]


@pytest.mark.parametrize(
    ("row", "task"),
    [
        ({"tokens": TOKENS, "ner_tags": ["B-PER", "I-PER", "O", "B-PER"]}, {}),
        ({"words": TOKENS, "labels": ["B-PER", "I-PER", "O", "B-PER"]}, {}),
        ({"tokens": TOKENS, "ner_tags": [1, 2, 0, 1]}, {"tag_names": ["O", "B-PER", "I-PER"]}),
        ({"tokens": TOKENS, "ner_tags": ["1", "2", "0", "1"]}, {"tag_names": ["O", "B-PER", "I-PER"]}),
        ({"tokens": TOKENS, "ner_tags": [1, 1, 0, 1]}, {"tag_names": ["O", "PER"]}),
        ({"text": TEXT, "entities": [{"start": 0, "end": 7, "label": "PER"},
                                     {"start": 12, "end": 15, "type": "PER", "text": "Bob"}]}, {}),
        ({"text": TEXT, "entities": [[12, 15, "PER"], [0, 7, "PER"]]}, {}),
        ({"text": TEXT, "label": [[0, 8, "PER"], [11, 15, " PER "]]}, {}),
        ({"tokens": TOKENS, "text": TEXT, "ner_tags": ["B-PER", "I-PER", "O", "B-PER"]}, {}),
        ({"tokens": TOKENS, "text": TEXT, "entities": [[0, 7, "PER"], [12, 15, "PER"]]}, {}),
    ],
)  # fmt: skip
def test_json_lines(row: dict[str, Any], task: dict[str, Any], read: Read) -> None:
    dataset = read([row], task=task)
    assert entities(dataset) == [NAMED]
    assert dataset.labels == ("PER",)
    assert dataset["train"][0].target.tags[:4] == ("B-PER", "I-PER", "O", "B-PER")


def test_characters_are_counted_not_bytes(read: Read) -> None:
    dataset = read([{"text": "😀 Zoë met Bob", "entities": [[2, 5, "PER"]]}])
    assert entities(dataset) == [[("Zoë", "PER")]]


def test_tag_names_give_the_order_of_types(read: Read) -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
    dataset = read([{"tokens": ["Rome", "Ann"], "ner_tags": [3, 1]}], task={"tag_names": names})
    assert dataset.labels == ("PER", "LOC", "ORG")


def test_tag_names_without_prefixes_are_whole_types(read: Read) -> None:
    names = ["O", "person", "e-mail"]
    dataset = read([{"tokens": ["Ann", "won"], "ner_tags": [1, 0]}], task={"tag_names": names})
    assert dataset.labels == ("person", "e-mail")


def test_columns_that_are_said_are_read(read: Read) -> None:
    row = {"tokens": ["other", "words"], "ner_tags": ["B-X", "O"], "raw": TEXT, "marks": [[0, 7, "PER"]]}
    dataset = read([row], columns={"text": "raw", "entities": "marks"})
    assert entities(dataset) == [[("Ann Lee", "PER")]]


def test_unlabelled_tokens_keep_their_words(tmp_path: Path) -> None:
    """A row with tokens and text is predicted on the words it would be trained on."""
    source = DataSource(test_file=str(tmp_path / "none.jsonl"))
    rows = iter([("row 1", {"text": "U.S. don't", "tokens": ["U.S.", "don't"]})])
    (record,) = read_unlabelled(rows, source, Ner())
    assert [record.text[start:end] for start, end in record.words] == ["U.S.", "don't"]


@pytest.mark.parametrize(
    ("task", "columns", "row"),
    [
        (Ner(), {"token": "words", "tag": "ner"}, {"words": ["Ann", "won"]}),
        (Ner(), {"text": "raw", "entities": "marks"}, {"raw": "Ann won"}),
        (Classification(), {"text": "sentence", "label": "intent"}, {"sentence": "Ann won"}),
    ],
)
def test_predicting_needs_no_column_of_answers(
    task: Task, columns: dict[str, str], row: dict[str, Any], tmp_path: Path
) -> None:
    source = DataSource(test_file=str(tmp_path / "none.jsonl"), columns=columns)
    (record,) = read_unlabelled(iter([("row 1", row)]), source, task)
    assert record.text == "Ann won"


@pytest.mark.parametrize("pattern", [r"\b", r"(?=\w)", r"\w+|(?=!)"])
def test_no_word_is_empty(pattern: str, read: Read) -> None:
    try:
        dataset = read([{"text": "Ann won!", "entities": [[0, 3, "PER"]]}], task={"word_pattern": pattern})
    except (InputError, UsageError, ValueError):
        return
    assert all(start < end for start, end in dataset["train"][0].words)


def test_entities_within_words_are_noted(read: Read) -> None:
    dataset = read([{"text": "Annabel won", "entities": [[0, 3, "PER"]]}])
    assert entities(dataset) == [[("Annabel", "PER")]], "scores and tags are those of words"
    assert dataset["train"][0].target.tags == ("B-PER", "O")
    assert any("1 entities begin or end inside a word" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("text", "spans", "pattern"),
    [("Annabel won", [[0, 3, "PER"], [3, 7, "PER"]], r"\w+"), ("Ann !! Bob", [[4, 6, "X"]], r"\w+")],
    ids=["two in a word", "no word"],
)
def test_spans_and_tags_tell_the_same(text: str, spans: list[list[Any]], pattern: str, read: Read) -> None:
    """What has no word of its own cannot be learned or scored: it is refused, or left out and said."""
    rows = [{"text": "Eve won", "entities": [[0, 3, "PER"]]}, {"text": text, "entities": spans}]
    try:
        dataset = read(rows, task={"word_pattern": pattern})
    except InputError as error:
        assert "train.jsonl:2" in str(error)
        return
    target = dataset["train"][1].target
    assert len(chunks(target.tags)) == len(target.spans)


# What is refused; the command line's words for it are in tests/cli/test_bad_ner.py.

RIGHT = {"tokens": ["Ann", "won"], "ner_tags": ["B-PER", "O"]}
ROWS = [
    ((["Ann"], ["B-PER", "O"]), ": 1 tokens but 2 tags"),
    ((["Ann", " \u2028"], ["B-PER", "O"]), ": token 2 of 2 is empty"),
    ((["Ann", None], ["B-PER", "O"]), ": token 2 of 2 is"),
    ((["Ann", ["won"]], ["B-PER", "O"]), ": token 2 of 2 is ['won']"),
    (("Ann won", ["B-PER", "O"]), ": the tokens are 'Ann won', not a list"),
    ((None, ["B-PER", "O"]), ": the tokens are None, not a list"),
    ((["Ann", "won"], []), ": the row has no tags"),
    ((["Ann", "won"], "B-PER O"), ": the tags are 'B-PER O', not a list"),
    ((["Ann", "won"], None), ": the row has no answer, as other rows do"),
    ((["Ann", "won"], ["B-PER", True]), ", word 2 ('won'): the tag is True"),
    ((["Ann", "won"], ["B-PER", 0.5]), ", word 2 ('won'): the tag is 0.5"),
    ((["Ann", "won"], ["B-PER", " "]), ", word 2 ('won'): the tag is ' '"),
    ((["Ann", "won"], ["B-PER", ["O"]]), ", word 2 ('won'): the tag is ['O']"),
    ((["\ud800", "won"], ["B-PER", "O"]), ": the text holds half a character (the surrogate U+D800)"),
]


@pytest.mark.parametrize(("row", "says"), ROWS)
def test_tokens_that_are_wrong(row: tuple[Any, Any], says: str, read: Read) -> None:
    with pytest.raises(InputError) as caught:
        read([RIGHT, {"tokens": row[0], "ner_tags": row[1]}])
    assert f"train.jsonl:2{says}" in str(caught.value)


@pytest.mark.parametrize("number", [3, -1, -100, "7"])
def test_numbers_without_a_name(number: Any, read: Read) -> None:
    row = {"tokens": ["Ann", "won"], "ner_tags": [1, number]}
    with pytest.raises(InputError) as caught:
        read([row], task={"tag_names": ["O", "B-PER", "I-PER"]})
    assert f"train.jsonl:1, word 2 ('won'): the tag is the number {number}, but task" in str(caught.value)


SPANS = [
    ([[0, 3, "PER"], [0, 3, "ORG"]], ": the entities 'Ann' (0-3) and 'Ann' (0-3) overlap"),
    ([[-3, 3, "PER"]], ": the entity -3-3 (PER) is empty or lies beyond the text's 11 characters"),
    ([[7, 3, "PER"]], ": the entity 7-3 (PER) is empty or lies beyond"),
    ([[3, 4, "PER"]], ": the entity 3-4 (PER) holds white space only"),
    ([["0", "3", "PER"]], ": the entity ['0', '3', 'PER'] is no span"),
    ([[0.0, 3.0, "PER"]], ": the entity [0.0, 3.0, 'PER'] is no span"),
    ([[False, True, "PER"]], ": the entity [False, True, 'PER'] is no span"),
    ([[0, 3, " "]], ": the entity [0, 3, ' '] is no span"),
    ([[0, 3, None]], ": the entity [0, 3, None] is no span"),
    ([[0, 3, "PER", 1]], ": the entity [0, 3, 'PER', 1] is no span"),
    (
        [{"begin": 0, "end": 3, "label": "PER"}],
        ": the entity {'begin': 0, 'end': 3, 'label': 'PER'} is no span",
    ),
    ([{"start": 0, "end": 3}], ": the entity {'start': 0, 'end': 3} is no span"),
    ([None], ": the entity None is no span"),
    ({"start": 0, "end": 3}, ": the entities are {'start': 0, 'end': 3}, not a list"),
    ("Ann", ": the entities are 'Ann', not a list"),
    (None, ": the row has no answer, as other rows do"),
]


@pytest.mark.parametrize(("spans", "says"), SPANS)
def test_spans_that_are_wrong(spans: Any, says: str, read: Read) -> None:
    right = {"text": "Eve won", "entities": [[0, 3, "PER"]]}
    with pytest.raises(InputError) as caught:
        read([right, {"text": "Ann met Bob", "entities": spans}])
    assert f"train.jsonl:2{says}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train.conll", "-DOCSTART- O\n\n-DOCSTART- O\n", ": the train split has no rows"),
        ("train.conll", "text,label\na good film,pos\na bad film,neg\n", ":1: 1 line does not have the 3"),
        ("train.conll", PARIS * 11 + "\nstray\n" * 11, ":24: 11 lines do not have the 2 columns of the "
         "rest\n  lines 24, 26, 28, 30, 32, 34, 36, 38, 40, 42, ...; mend them"),
        ("train.conll", PARIS + "\n\tO\n", ":4: token 1 of 1 is empty"),
        ("train.conll", PARIS + "Ann\tB-PER\n\u00a0\tO\n", ":1: token 4 of 4 is empty"),
        ("train.conll", PARIS + "a\0b\tO\n", ": the file is binary, not text"),
        ("train.conll", "Ann\tb-per\nwon\tO\n", ":1, word 1: the tag 'b-per' has the unknown prefix b-"),
        ("train.conll", PARIS + "\nAnn\tB-PER\no\to\n", ":4: tags with and without prefixes are mixed: 'o'"),
        ("train.conll", PARIS + "\nAnn\tB-\n", ":4: tags with and without prefixes are mixed: 'B-'"),
        ("train.conll", PARIS + "\nAnn\t-PER\n", ":4: tags with and without prefixes are mixed: '-PER'"),
        ("train.conll", PARIS + "\nAnn\tB_PER\n", ":4: tags with and without prefixes are mixed: 'B_PER'"),
        ("train.conll", PARIS + "\nAnn\tB\u2010PER\n", ":4: tags with and without prefixes are mixed: "
         "'B\u2010PER'"),
        ("train.json", '[{"tokens": ["a"], "ner_tags": ["O"]}]', ": no training row holds an entity"),
        ("train.jsonl", '{"text": " ", "entities": []}', ":1: the text is empty"),
        ("train.jsonl", '{"text": "Ann won", "entities": []}', ": no training row holds an entity"),
        ("train.jsonl", '{"text": "Ann won", "entities": null}', ":1: no training row has an answer"),
        ("train.jsonl", '{"sentence": "Ann won", "word_labels": "B-PER O"}', ":1: no column 'tag' or"),
        ("train.jsonl", '{"intent": "a", "label": "b"}', ":1: there is no column of tokens or of text"),
    ],
)  # fmt: skip
def test_files_that_are_wrong(name: str, content: str, says: str, read: Read, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(content, name=name)
    assert f"{tmp_path / name}{says}" in str(caught.value)


def test_an_entity_begins_at_its_first_character(read: Read) -> None:
    """What stands right before it or after it is another word, though no space is between them."""
    dataset = read([{"text": "(Ann)won", "entities": [[1, 4, "PER"]]}])
    assert entities(dataset) == [[("Ann", "PER")]]
    assert dataset["train"][0].target.tags == ("O", "B-PER", "O", "O")


@pytest.mark.parametrize("letters", ["BIES", "BILU"])
def test_an_entity_that_is_not_ended_is_noted(letters: str, read: Read) -> None:
    *_, end, single = letters
    dataset = read(f"a\t{single}-X\nb\tB-X\nc\t{end}-X\n\nd\tB-X\ne\tO\n")
    assert any(note.startswith("train: 1 tags may not follow the one before") for note in dataset.notes)
