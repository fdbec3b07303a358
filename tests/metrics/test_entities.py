"""Entity scores against seqeval, and against a reading of the CoNLL-2000 evaluation of our own."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import evaluate
import numpy
import pytest
import seqeval.metrics as seqeval
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support
from seqeval.scheme import IOB2

from ftkit.component import discover
from ftkit.metrics.base import Headline, Metric
from ftkit.metrics.bootstrap import interval
from ftkit.records import Entities, Span
from ftkit.tagging import chunks
from ftkit.tasks.ner import Ner

# Not in alphabetical order, and one with a hyphen: seqeval sorts and splits names.
TYPES = ["PER", "work-of-art", "LOC"]
METRICS = {name: kind() for name, kind in discover(Metric).items() if "entities" in kind.answers}
HEADLINES = {name: metric for name, metric in METRICS.items() if isinstance(metric, Headline)}
STRICT = {"mode": "strict", "scheme": IOB2, "zero_division": 0}

Tags = list[str]
Sentences = list[tuple[Tags, Tags]]
SEQEVAL: dict[str, Callable[[list[Tags], list[Tags]], float]] = {
    "entity_f1": lambda t, p: seqeval.f1_score(t, p, average="micro", zero_division=0),
    "entity_precision": lambda t, p: seqeval.precision_score(t, p, average="micro", zero_division=0),
    "entity_recall": lambda t, p: seqeval.recall_score(t, p, average="micro", zero_division=0),
    "entity_macro_f1": lambda t, p: seqeval.f1_score(t, p, average="macro", zero_division=0),
    "strict_entity_f1": lambda t, p: seqeval.f1_score(t, p, average="micro", **STRICT),
    "strict_entity_macro_f1": lambda t, p: seqeval.f1_score(t, p, average="macro", **STRICT),
    "token_accuracy": seqeval.accuracy_score,
}


# The definition ---------------------------------------------------------------------------


def definition(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """Entities by the rules of the CoNLL-2000 evaluation, which look at neighbouring tags only.

    An entity starts at a tag that is not O where it is B or S, where the tag before is O, E or S,
    and where the type changes. One ends after a tag that is not O where it is E or S, where the
    tag after is O, B or S, and where the type changes.
    """
    around = ["O", *tags, "O"]
    split = [(tag[:1], tag[2:]) for tag in around]
    starts = [
        place
        for place, ((before, type_before), (prefix, kind)) in enumerate(pairwise(split))
        if prefix != "O" and (prefix in "BS" or before in "OES" or kind != type_before)
    ]
    ends = [
        place
        for place, ((prefix, kind), (after, type_after)) in enumerate(pairwise(split))
        if prefix != "O" and (prefix in "ES" or after in "OBS" or kind != type_after)
    ]
    return [(start, end, tags[start][2:]) for start, end in zip(starts, ends, strict=True)]


def entities(tags: Sequence[str]) -> Entities:
    """A value for tags alone: every word is one letter."""
    words = tuple((2 * n, 2 * n + 1) for n in range(len(tags)))
    spans = tuple(Span(words[start][0], words[end - 1][1], kind) for start, end, kind in definition(tags))
    return Entities(spans, tuple(tags), " ".join("w" * len(tags)), words)


def split(sentences: Sentences) -> tuple[list[Tags], list[Tags], list[Entities], list[Entities]]:
    true, said = [gold for gold, _ in sentences], [predicted for _, predicted in sentences]
    return true, said, [entities(tags) for tags in true], [entities(tags) for tags in said]


@st.composite
def sentence(draw: Any) -> tuple[Tags, Tags]:
    """Legal gold tags; predicted ones that are often right, and otherwise anything."""
    gold: Tags = []
    for kind, words in draw(
        st.lists(
            st.tuples(st.sampled_from(["", *TYPES]), st.integers(min_value=1, max_value=3)),
            min_size=1,
            max_size=5,
        )
    ):
        gold += [f"B-{kind}", *[f"I-{kind}"] * (words - 1)] if kind else ["O"] * words
    anything = st.sampled_from(["O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI")])
    return gold, [tag if draw(st.booleans()) else draw(anything) for tag in gold]


sentences = st.lists(sentence(), min_size=1, max_size=6)


# Against seqeval --------------------------------------------------------------------------


def test_every_headline_is_compared() -> None:
    assert set(HEADLINES) == set(SEQEVAL)


@settings(max_examples=150, deadline=None)
@given(sentences)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SEQEVAL)
def test_headlines(name: str, tagged: Sentences) -> None:
    true, said, references, predictions = split(tagged)
    expected = SEQEVAL[name](true, said)
    if math.isnan(expected):  # the mean over no types; see test_without_any_entity
        return
    metric = HEADLINES[name]
    assert metric.compute(references, predictions, TYPES) == pytest.approx(expected, abs=1e-9)
    counts = metric.counts(references, predictions, TYPES)
    # Several resamples at once, as the bootstrap asks for them: all rows, and each row by itself.
    stacked = metric.from_counts(numpy.stack([counts.sum(axis=0), *counts]))
    assert stacked.shape == (1 + len(tagged),)
    assert float(stacked[0]) == pytest.approx(expected, abs=1e-9)
    for row, score in enumerate(stacked[1:]):
        alone = SEQEVAL[name](true[row : row + 1], said[row : row + 1])
        assert math.isnan(alone) or float(score) == pytest.approx(alone, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(sentences)
@pytest.mark.filterwarnings("ignore")
def test_per_entity(tagged: Sentences) -> None:
    true, said, references, predictions = split(tagged)
    table = METRICS["per_entity"].compute(references, predictions, TYPES)
    assert list(table) == TYPES
    report = seqeval.classification_report(true, said, output_dict=True, zero_division=0)
    columns = precision_recall_fscore_support(true, said, average=None, zero_division=0)
    present = sorted({kind for tags in (*true, *said) for _, _, kind in definition(tags)})
    for kind in TYPES:
        if kind not in present:
            assert set(table[kind].values()) == {0.0}
            continue
        precision, recall, f1, support = (column[present.index(kind)] for column in columns)
        expected = {"precision": precision, "recall": recall, "f1": f1, "support": support}
        assert table[kind] == pytest.approx(expected, abs=1e-9)
        assert list(report[kind].values()) == pytest.approx(list(expected.values()), abs=1e-9)


@pytest.mark.parametrize("name", SEQEVAL)
def test_without_any_entity(name: str) -> None:
    """Rows of O are no error and no NaN, which JSON does not know and no gate can compare."""
    rows = [entities(["O", "O"])] * 3
    score = HEADLINES[name].compute(rows, rows, TYPES)
    assert score == (1.0 if name == "token_accuracy" else 0.0)
    assert interval(HEADLINES[name].from_counts, HEADLINES[name].counts(rows, rows, TYPES)) == (score, score)


def test_tables_without_any_entity() -> None:
    rows = [entities(["O", "O"])] * 3
    table = METRICS["per_entity"].compute(rows, rows, TYPES)
    assert table == {kind: {"precision": 0, "recall": 0, "f1": 0, "support": 0} for kind in TYPES}
    errors = METRICS["entity_errors"].compute(rows, rows, TYPES)
    assert errors == {"boundary": 0, "type": 0, "both": 0, "missed": 0, "spurious": 0, "examples": {}}


# Against the definition -------------------------------------------------------------------


def random_sequences(prefixes: str) -> Iterator[Tags]:
    generator = random.Random(20000913)
    tags = ["O", "O", *(f"{prefix}-{kind}" for kind in TYPES[:2] for prefix in prefixes)]
    for _ in range(1000):
        yield generator.choices(tags, k=generator.randint(1, 12))


@pytest.mark.parametrize("prefixes", ["BI", "I", "BIES"])
def test_chunks_are_those_of_the_definition(prefixes: str) -> None:
    for tags in random_sequences(prefixes):
        expected = definition(tags)
        assert chunks(tags) == expected
        assert [(start, end + 1, kind) for kind, start, end in get_entities(tags)] == expected


def test_bilou_and_bmes_are_bioes_in_other_letters() -> None:
    for tags in random_sequences("BIES"):
        for letters in ({"E": "L", "S": "U"}, {"I": "M"}):
            renamed = ["O" if tag == "O" else letters.get(tag[0], tag[0]) + tag[1:] for tag in tags]
            assert chunks(renamed) == definition(tags)


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_counts_are_those_of_the_definition(prefixes: str) -> None:
    tagged = list(random_sequences(prefixes))
    # The second of a pair has the length of the first, and half of its tags.
    generator = random.Random(1)
    pairs = [
        (
            true,
            [tag if generator.random() < 0.5 else generator.choice(other) for tag in true],
        )
        for true, other in pairwise(tagged)
    ]
    true, said, references, predictions = split(pairs)
    metric = HEADLINES["entity_f1"]
    counts = metric.counts(references, predictions, TYPES).reshape(-1, 3, len(TYPES))
    for row, (gold, predicted) in enumerate(pairs):
        found, given_ = set(definition(predicted)), set(definition(gold))
        for part, members in enumerate((found & given_, found, given_)):
            times = Counter(kind for _, _, kind in members)
            assert counts[row, part].tolist() == [times[kind] for kind in TYPES]
    right, predicted_, true_ = counts.sum(axis=(0, 2))
    assert 0 < right < predicted_
    expected = 2 * right / (predicted_ + true_)
    assert metric.compute(references, predictions, TYPES) == pytest.approx(expected, abs=1e-9)
    assert seqeval.f1_score(true, said) == pytest.approx(expected, abs=1e-9)


# Intervals --------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["entity_f1", "entity_macro_f1", "strict_entity_f1"])
def test_interval_equals_resampling_sentences_one_by_one(name: str) -> None:
    generator = numpy.random.default_rng(0)
    tags = ["O", *(f"{prefix}-{kind}" for kind in TYPES for prefix in "BI")]
    pairs = []
    for _ in range(150):
        gold: Tags = []
        for kind in generator.choice(["", *TYPES], 3):
            gold += [f"B-{kind}", f"I-{kind}"] if kind else ["O"]
        pairs.append((gold, [tag if generator.random() < 0.8 else generator.choice(tags) for tag in gold]))
    true, said, references, predictions = split(pairs)
    low, high = interval(HEADLINES[name].from_counts, HEADLINES[name].counts(references, predictions, TYPES))
    scores = []
    for _ in range(400):
        rows = generator.integers(0, len(pairs), len(pairs))
        scores.append(SEQEVAL[name]([true[row] for row in rows], [said[row] for row in rows]))
    assert (low, high) == pytest.approx(tuple(numpy.quantile(scores, [0.025, 0.975])), abs=0.02)
    assert low < SEQEVAL[name](true, said) < high


# Mistakes ---------------------------------------------------------------------------------


TEXT = "Ann Lee met Acme Corp in Rome today near Oslo"


def spans(*found: tuple[str, str] | tuple[str, str, float], text: str = TEXT) -> Entities:
    """Entities by their words, in the order of the text."""
    words = []
    for word in text.split():
        start = text.index(word, words[-1][1] if words else 0)
        words.append((start, start + len(word)))
    tags = ["O"] * len(words)
    placed = []
    for part, kind, *score in found:
        start = text.index(part)
        span = Span(start, start + len(part), kind, *score)
        inside = [n for n, (first, end) in enumerate(words) if first < span.end and end > span.start]
        for n in inside:
            tags[n] = f"{'B' if n == inside[0] else 'I'}-{kind}"
        placed.append(span)
    return Entities(tuple(placed), tuple(tags), text, tuple(words))


GOLD = spans(("Ann Lee", "PER"), ("Acme Corp", "ORG"), ("Rome", "LOC"), ("Oslo", "LOC"))
SAID = spans(
    ("Ann", "PER", 0.9), ("Acme Corp", "LOC", 0.8), ("in Rome", "ORG", 0.7), ("today", "LOC", 0.6)
)  # fmt: skip


def errors(references: Sequence[Entities], predictions: Sequence[Entities]) -> dict[str, Any]:
    return METRICS["entity_errors"].compute(references, predictions, ["PER", "ORG", "LOC"])


def test_every_kind_of_mistake() -> None:
    assert errors([GOLD], [SAID]) == {
        "boundary": 1, "type": 1, "both": 1, "missed": 1, "spurious": 1,
        "examples": {
            "boundary": [
                "row 1: predicted [Ann] Lee met Acme Corp ... PER (0.90); "
                "true [Ann Lee] met Acme Corp in ... PER"
            ],
            "type": [
                "row 1: predicted Ann Lee met [Acme Corp] in Rome today near ... LOC (0.80); "
                "true Ann Lee met [Acme Corp] in Rome today near ... ORG"
            ],
            "both": [
                "row 1: predicted ... Lee met Acme Corp [in Rome] today near Oslo ORG (0.70); "
                "true ... met Acme Corp in [Rome] today near Oslo LOC"
            ],
            "missed": ["row 1: true ... in Rome today near [Oslo] LOC"],
            "spurious": ["row 1: predicted ... Acme Corp in Rome [today] near Oslo LOC (0.60)"],
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (GOLD, {}),
        (spans(), {"missed": 4}),
        (spans(("met", "PER"), ("Acme Corp", "ORG"), ("near", "LOC")), {"spurious": 2, "missed": 3}),
        # Two halves of one entity are two wrong boundaries, and nothing is missed.
        (
            spans(("Ann", "PER"), ("Lee", "PER"), ("Acme Corp", "ORG"), ("Rome", "LOC"), ("Oslo", "LOC")),
            {"boundary": 2},
        ),
        # One prediction over two entities is compared with the one of its type.
        (
            spans(("Ann Lee", "PER"), ("Acme Corp in Rome", "LOC"), ("Oslo", "LOC")),
            {"boundary": 1},
        ),
        (spans(("Ann Lee met Acme Corp in Rome today near Oslo", "MISC")), {"both": 1}),
    ],
)
def test_counts_of_mistakes(said: Entities, expected: dict[str, int]) -> None:
    found = errors([GOLD], [said])
    assert {kind: times for kind, times in found.items() if kind != "examples" and times} == expected
    assert {kind: len(shown) for kind, shown in found["examples"].items()} == expected


def test_the_surest_mistakes_are_shown() -> None:
    rows = 9
    said = [spans(("today", "LOC", n / 10)) for n in range(1, rows + 1)]
    found = errors([spans()] * rows, said)
    assert found["spurious"] == rows
    shown = found["examples"]["spurious"]
    assert [text.partition(":")[0] for text in shown] == ["row 9", "row 8", "row 7", "row 6", "row 5"]
    missed = errors([GOLD], [spans()])["examples"]["missed"]
    assert [text[text.index("[") : text.index("]") + 1] for text in missed] == [
        "[Acme Corp]", "[Ann Lee]", "[Rome]", "[Oslo]",
    ]  # fmt: skip


def test_tables_do_not_contradict_the_scores() -> None:
    """An entity inside a word counts as that word: the right tags are no mistake in any table."""
    task = Ner()
    record = task.read({"text": "Berlins mayor", "entities": [[0, 6, "LOC"]]}, "row 1")
    (settled,), _ = task.settle([record], ["LOC"])
    gold = settled.target
    said = Entities((Span(0, 7, "LOC", 0.9),), ("B-LOC", "O"), settled.text, settled.words)
    assert gold.tags == said.tags
    assert HEADLINES["entity_f1"].compute([gold], [said], ["LOC"]) == 1.0
    assert METRICS["per_entity"].compute([gold], [said], ["LOC"])["LOC"]["f1"] == 1.0
    found = errors([gold], [said])
    assert {
        kind: found[kind] for kind in ("boundary", "type", "both", "missed", "spurious")
    } == dict.fromkeys(("boundary", "type", "both", "missed", "spurious"), 0)


# The `evaluate` library -------------------------------------------------------------------


def test_evaluate_module_takes_lists_of_tags() -> None:
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "O"], ["B-PER"]]
    said = [["B-PER", "I-PER", "O", "O"], ["I-PER", "O"], ["B-LOC"]]
    module = HEADLINES["entity_f1"].module(TYPES)
    assert isinstance(module, evaluate.Metric)
    expected = seqeval.f1_score(true, said)
    assert module.compute(references=true, predictions=said) == {"entity_f1": pytest.approx(expected)}
    # Row by row, as a loop over batches uses it.
    for reference, prediction in zip(true, said, strict=True):
        module.add(references=reference, predictions=prediction)
    assert module.compute() == {"entity_f1": pytest.approx(expected)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", METRICS)
def test_every_entity_metric_is_a_module(name: str) -> None:
    true, said = [["B-PER", "I-PER", "O"], ["O"]], [["B-PER", "O", "I-LOC"], ["O"]]
    expected = METRICS[name].compute(*([entities(tags) for tags in rows] for rows in (true, said)), TYPES)
    found = METRICS[name].module(TYPES).compute(references=true, predictions=said)[name]
    if name == "entity_errors":  # the texts of the examples are not known here
        found.pop("examples"), expected.pop("examples")
    assert found == expected
