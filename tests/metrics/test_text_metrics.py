"""Scores of written texts against rouge-score, sacrebleu and SQuAD's definition; scores of a loss."""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

import ftkit
from ftkit.component import discover
from ftkit.metrics.base import Headline, Metric
from ftkit.metrics.bootstrap import interval
from ftkit.metrics.written import ExactMatch
from ftkit.records import Prediction, Record, Writing
from ftkit.scoring import score

METRICS = {name: kind() for name, kind in discover(Metric).items() if "text" in kind.answers}
WRITTEN = {name: metric for name, metric in METRICS.items() if metric.reads_text}
LIKELIHOODS = {name: metric for name, metric in METRICS.items() if not metric.reads_text}

Rows = Sequence[tuple[str, tuple[str, ...]]]
"""What was written, and the right texts."""


# Definitions of others, or our own second ones ----------------------------------------------------


def rouge(kind: str) -> Callable[[Rows], float]:
    """The mean of rouge-score's F1, of several right texts the highest."""
    scorer = rouge_scorer.RougeScorer([kind], use_stemmer=False)

    def score(rows: Rows) -> float:
        best = [max(scorer.score(one, said)[kind].fmeasure for one in right) for said, right in rows]
        return float(numpy.mean(best))

    return score


def columns(rows: Rows) -> tuple[list[str], list[list[str | None]]]:
    """As sacrebleu takes them; it says `None` for a right text that a row does not have."""
    most = max(len(right) for _, right in rows)
    streams = [[right[n] if n < len(right) else None for _, right in rows] for n in range(most)]
    return [said for said, _ in rows], streams


def squad_words(text: str) -> list[str]:
    """normalize_answer of SQuAD's evaluation, step by step."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split()).split()


def squad_f1(said: str, right: str) -> float:
    """compute_f1 of SQuAD's evaluation, by precision and recall."""
    gold, predicted = squad_words(right), squad_words(said)
    common = sum((Counter(gold) & Counter(predicted)).values())
    if not gold or not predicted:
        return float(gold == predicted)
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def mean_of_best(score: Callable[[str, str], float]) -> Callable[[Rows], float]:
    return lambda rows: sum(max(score(said, one) for one in right) for said, right in rows) / len(rows)


DEFINITIONS: dict[str, Callable[[Rows], float]] = {
    "rouge1": rouge("rouge1"),
    "rouge2": rouge("rouge2"),
    "rouge_l": rouge("rougeL"),
    "rouge_lsum": rouge("rougeLsum"),
    "bleu": lambda rows: sacrebleu.corpus_bleu(*columns(rows)).score,
    "chrf": lambda rows: sacrebleu.corpus_chrf(*columns(rows)).score,
    "exact_match": mean_of_best(lambda said, right: float(said.strip() == right.strip())),
    "normalized_exact_match": mean_of_best(
        lambda said, right: float(squad_words(said) == squad_words(right))
    ),
    "token_f1": mean_of_best(squad_f1),
}


# Rows ---------------------------------------------------------------------------------------------

_WORD = st.sampled_from(
    [
        "a",
        "the",
        "An",
        "cat",
        "Cat",
        "sat",
        "on",
        "mat",
        "dog",
        "ran",
        "über",
        "3.5",
        "it's",
        "U.S.",
        "new\nline",
        "",
    ]
)
_MARK = st.sampled_from(["", "", "", ".", ",", "!", ")"])
_TEXT = st.lists(st.tuples(_WORD, _MARK).map("".join), max_size=9).map(" ".join)
_RIGHT = _TEXT.filter(lambda text: bool(text.strip()))
_ROW = st.lists(_RIGHT, min_size=1, max_size=3).flatmap(
    lambda right: st.tuples(st.one_of(_TEXT, st.sampled_from(right)), st.just(tuple(right)))
)
_ROWS = st.lists(_ROW, min_size=1, max_size=6)

SENTENCES: Rows = [
    ("The cat sat on the mat. It was happy.", ("It was happy. The cat sat on a mat.", "A cat. On the mat.")),
    ("One line\nand another line", ("another line\nand one line",)),
    ("nothing in common", ("zero",)),
    ("The U.S. won.", ("U.S. won", "The United States won.", "America won.")),
    ("", ("something",)),
]


def values(rows: Rows) -> tuple[list[Writing], list[Writing]]:
    return [Writing(right[0], right[1:]) for _, right in rows], [Writing(said) for said, _ in rows]


def ours(name: str, rows: Rows) -> float:
    return METRICS[name].compute(*values(rows), [])


# Written texts ------------------------------------------------------------------------------------


def test_every_metric_is_compared() -> None:
    assert set(WRITTEN) == set(DEFINITIONS)
    assert set(LIKELIHOODS) == {"answer_loss", "perplexity", "bits_per_byte"}


# ROUGE-Lsum reads a line as a sentence; ours first writes sentences on lines of their own.
@pytest.mark.parametrize("name", sorted(set(DEFINITIONS) - {"rouge_lsum"}))
@settings(max_examples=25, deadline=None)
@given(rows=_ROWS)
def test_against_the_definition(name: str, rows: Rows) -> None:
    assert ours(name, rows) == pytest.approx(DEFINITIONS[name](rows), abs=1e-9)


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize(
    "rows", [SENTENCES, SENTENCES[:1], SENTENCES[3:], [("a b", ("a b",))], [("", ("x",))]]
)
def test_against_the_definition_on_sentences(name: str, rows: Rows) -> None:
    if name == "rouge_lsum":
        lines = [(_lines(said), tuple(map(_lines, right))) for said, right in rows]
        assert ours(name, rows) == pytest.approx(DEFINITIONS[name](lines), abs=1e-9)
        assert ours(name, lines) == pytest.approx(DEFINITIONS[name](lines), abs=1e-9)
    else:
        assert ours(name, rows) == pytest.approx(DEFINITIONS[name](rows), abs=1e-9)


def _lines(text: str) -> str:
    return text if "\n" in text else re.sub(r"\. ", ".\n", text)


@pytest.mark.parametrize("name", ["rouge_lsum", "rouge_l"])
def test_sentences_in_another_order(name: str) -> None:
    """The longest common subsequence of a whole text pays for order, that of sentences does not."""
    rows = [("It was late. We left.", ("We left. It was late.",))]
    assert ours(name, rows) == pytest.approx(1.0 if name == "rouge_lsum" else 3 / 5)


@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=15, deadline=None)
@given(rows=_ROWS)
def test_scores_of_summed_counts(name: str, rows: Rows) -> None:
    """What the bootstrap draws from: counts that add up, of all rows and of any of them."""
    metric = WRITTEN[name]
    assert isinstance(metric, Headline)
    counts = metric.counts(*values(rows), [])
    assert counts.shape[0] == len(rows)
    assert metric.from_counts(counts.sum(axis=0)) == pytest.approx(ours(name, rows), abs=1e-9)
    drawn = [*rows[::2], *rows[:1]]
    again = [*range(0, len(rows), 2), 0]
    both = numpy.stack([counts[again].sum(axis=0), counts.sum(axis=0)])
    assert metric.from_counts(both) == pytest.approx([ours(name, drawn), ours(name, rows)], abs=1e-9)


@pytest.mark.parametrize("name", WRITTEN)
def test_the_interval_holds_the_score(name: str) -> None:
    rows = SENTENCES * 5
    metric = WRITTEN[name]
    assert isinstance(metric, Headline)
    low, high = interval(metric.from_counts, metric.counts(*values(rows), []))
    score = ours(name, rows)
    if name.endswith("exact_match"):
        assert low <= score <= high
    else:
        assert low < score < high
    same = [("the same", ("the same",))] * 5
    perfect = ours(name, same)
    assert interval(metric.from_counts, metric.counts(*values(same), [])) == pytest.approx((perfect, perfect))


def test_a_text_is_compared_once() -> None:
    """ROUGE of long texts takes longer than all else in scoring: its interval needs no second time."""
    compared: list[str] = []

    class Slow(ExactMatch):
        def row_score(self, right: str, written: str) -> float:
            compared.append(written)
            return super().row_score(right, written)

    records = [Record("x", target=right) for right in values(SENTENCES)[0]]
    predictions = [Prediction(said) for said in values(SENTENCES)[1]]
    found = score(predictions, records, [Slow()], [], "test").metrics["exact_match"]
    assert found.low is not None
    assert len(compared) == sum(len(right) for _, right in SENTENCES)


@pytest.mark.parametrize("name", WRITTEN)
def test_bounds(name: str) -> None:
    """A text that is right scores most, one without anything in common none, whatever the others are."""
    right = "where is the red card of my good friend"
    rows = [(right, ("zzz", right)), (right, (right,))]
    assert ours(name, rows) == pytest.approx(100.0 if name in ("bleu", "chrf") else 1.0)
    assert ours(name, [("", (right,))]) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        ("The Cat!", "a cat", 1.0),  # case, punctuation and articles do not count
        ("cat cat", "cat", 2 / 3),  # words are counted, not only seen
        ("theatre", "the atre", 0.0),
        ("the", "a", 1.0),  # nothing is left of either
        ("the", "cat", 0.0),
        ("it's", "its", 1.0),
    ],
)
def test_token_f1(said: str, right: str, score: float) -> None:
    assert ours("token_f1", [(said, (right,))]) == pytest.approx(score)


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [("Paris", "Paris", 1.0), (" Paris\n", "Paris", 1.0), ("paris", "Paris", 0.0), ("Paris.", "Paris", 0.0)],
)
def test_exact_match(said: str, right: str, score: float) -> None:
    assert ours("exact_match", [(said, (right,))]) == score


# Losses -------------------------------------------------------------------------------------------


def losses(*rows: tuple[float, int, str]) -> tuple[list[Writing], list[Writing]]:
    """Right texts, and predictions that hold a loss in nats over so many tokens."""
    right = [Writing(text) for _, _, text in rows]
    octets = [len(text.encode()) if tokens else 0 for _, tokens, text in rows]
    said = [
        Writing("", loss=loss, tokens=tokens, octets=size)
        for (loss, tokens, _), size in zip(rows, octets, strict=True)
    ]
    return right, said


def test_the_arithmetic_of_losses() -> None:
    rows = losses((3.0, 2, "ab"), (5.0, 6, "größe"))
    assert METRICS["answer_loss"].compute(*rows, []) == pytest.approx(8 / 8)
    assert METRICS["perplexity"].compute(*rows, []) == pytest.approx(math.e)
    # ö and ß have two bytes each.
    assert METRICS["bits_per_byte"].compute(*rows, []) == pytest.approx(8 / math.log(2) / (2 + 7))


def test_the_interval_of_perplexity_is_of_draws_with_a_token() -> None:
    """One row in nine has tokens: a third of the draws have none, of which nothing is known."""
    right, said = losses((30.0, 10, "known"), *[(0.0, 0, "unknown")] * 8)
    perplexity: Any = METRICS["perplexity"]
    low, high = interval(perplexity.from_counts, perplexity.counts(right, said, []))
    assert low == high == pytest.approx(math.exp(3.0))


def test_a_model_that_knows_nothing_needs_all_bits() -> None:
    """Uniform over 256 bytes, a token a byte: 8 bits for each, a perplexity of 256."""
    rows = losses(*((math.log(256) * len(text), len(text), text) for text in ("abc", "hello you")))
    assert METRICS["bits_per_byte"].compute(*rows, []) == pytest.approx(8.0)
    assert METRICS["perplexity"].compute(*rows, []) == pytest.approx(256.0)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_row_without_a_loss_does_not_count(name: str) -> None:
    known = ((3.0, 2, "ab"), (5.0, 6, "größe"))
    alone = METRICS[name].compute(*losses(*known), [])
    assert METRICS[name].compute(*losses(*known, (0.0, 0, "left out")), []) == pytest.approx(alone)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 9), st.sampled_from(["a", "über"])), min_size=1))
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_losses_of_summed_counts(name: str, rows: list[tuple[float, int, str]]) -> None:
    metric = LIKELIHOODS[name]
    assert isinstance(metric, Headline)
    assert not metric.greater_is_better
    loss, tokens = sum(row[0] for row in rows), sum(row[1] for row in rows)
    octets = sum(len(row[2].encode()) for row in rows)
    expected = {
        "answer_loss": loss / tokens,
        "perplexity": math.exp(loss / tokens),
        "bits_per_byte": loss / octets * math.log2(math.e),
    }[name]
    pairs = losses(*rows)
    assert metric.compute(*pairs, []) == pytest.approx(expected)
    sums = metric.counts(*pairs, []).sum(axis=0)
    assert metric.from_counts(numpy.stack([sums, 2 * sums])) == pytest.approx([expected, expected])


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_module_is_given_no_losses(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} scores a model's losses"):
        LIKELIHOODS[name].module(())


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_no_loss_at_all_is_not_the_best_score(name: str) -> None:
    """As where no row of a test file fits: it may be refused, or be no number."""
    assert not METRICS[name].compute(*losses((0.0, 0, "left out")), []) <= 1.0


# A run --------------------------------------------------------------------------------------------

RIGHT = [["the red card", "a red card"], "my phone", ["where", "when", "on"], "the game is good"]
ASKED = ["red", "phone", "where", "game"]


@pytest.fixture(scope="module")
def run(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> ftkit.Run:
    """A finished run that was scored with every metric of texts, on several right texts."""
    folder = tmp_path_factory.mktemp("scored")
    rows = [{"text": text, "target": right} for text, right in zip(ASKED, RIGHT, strict=True)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ftkit.finetune(
        {
            "task": "text2text",
            "model": {"name_or_path": str(tiny("gpt2"))},
            "data": {"train_file": str(folder / "rows.jsonl"), "test_file": str(folder / "rows.jsonl")},
            "method": "full",
            "training": {"max_steps": 60, "learning_rate": 0.01, "per_device_train_batch_size": 4},
            "generation": {"max_new_tokens": 20},
            "engine": {"precision": "fp32"},
            "metrics": sorted(METRICS),
            "output_dir": str(folder / "run"),
        }
    )


def test_a_run_is_scored_by_the_definitions(run: ftkit.Run) -> None:
    saved = [json.loads(line) for line in (run.folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["text"] for row in saved] == ASKED
    assert [row["target"] for row in saved] == RIGHT
    right = [(one,) if isinstance(one, str) else tuple(one) for one in RIGHT]
    rows = list(zip([row["prediction"] for row in saved], right, strict=True))
    assert any(said for said, _ in rows)
    for name, definition in DEFINITIONS.items():
        score = run.metrics["metrics"][name]
        assert score["value"] == pytest.approx(definition(rows), abs=1e-9), name
        assert score["low"] <= score["value"] <= score["high"]


def test_how_a_score_was_computed_is_recorded(run: ftkit.Run) -> None:
    signatures = run.metrics["signatures"]
    assert set(signatures) == {name for name in WRITTEN if name.startswith(("rouge", "bleu", "chrf"))}
    for name, variant in {"rouge1": "rouge1", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}.items():
        assert re.fullmatch(rf"rouge-score [\d.]+, {variant}, F1, stemmer: no", signatures[name])
    for name, scorer in {"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF()}.items():
        scorer.corpus_score(["a"], [["a"]])
        expected = str(scorer.get_signature()).partition("|")[2]
        assert signatures[name].partition("|")[2] == expected, "all but the number of references"


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_the_signature_tells_how_many_right_texts_there_were(name: str, run: ftkit.Run) -> None:
    scorer = {"bleu": sacrebleu.BLEU(), "chrf": sacrebleu.CHRF()}[name]
    scorer.corpus_score(*columns([("", (one,) if isinstance(one, str) else tuple(one)) for one in RIGHT]))
    assert run.metrics["signatures"][name] == str(scorer.get_signature()) != ""
    assert "nrefs:var" in run.metrics["signatures"][name]
