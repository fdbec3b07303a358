"""Named entities: a saved run needs no ftkit, predictions point into the text as it was given."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny as tiny_models
import torch
from safetensors import safe_open
from test_round_trip import card_snippet, fresh, saved
from torch.nn import functional
from training.test_gradients import SEED, assert_same_gradients, engine_gradients
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline, set_seed

import ftkit as library
from ftkit.cli.predict import _conll
from ftkit.data.source import DataSource
from ftkit.dataset import load_records
from ftkit.prediction import predict_records, records_of_file
from ftkit.records import Entities, Record
from ftkit.tasks.ner import Ner
from ftkit.training.batches import EpochBatches
from ftkit.training.token_head import TokenHead

TYPES = ["COLOUR", "THING"]
TAGS = ["O", "B-COLOUR", "I-COLOUR", "B-THING", "I-THING"]
BATCH = 8
# What a tiny model learns in seconds: colours are of one word, things of one to three. Words that
# WordPiece knows, that it cuts to pieces, and that it does not know at all.
_OUTSIDE = [
    *"the a of and to in it is was for on that with where when money want order".split(),
    "☃",
    "lorem",
    "xyz7",
]
_COLOURS = ["red", "green", "blue", "violet"]
_THINGS = [["phone"], ["film", "game"], ["world", "business"], ["sports", "card", "game"], ["gizmo"]]


def write_conll(path: Path, sentences: int, seed: int, longest: int = 5) -> Path:
    """Sentences of random words, colours and things; of `longest` parts at most."""
    generator = random.Random(seed)
    lines = []
    for _ in range(sentences):
        rows: list[tuple[str, str]] = []
        for _ in range(generator.randint(2, longest)):
            rows += [(word, "O") for word in generator.choices(_OUTSIDE, k=generator.randint(0, 2))]
            if generator.random() < 0.5:
                rows.append((generator.choice(_COLOURS), "B-COLOUR"))
            elif generator.random() < 0.5:
                first, *rest = generator.choice(_THINGS)
                rows += [(first, "B-THING"), *((word, "I-THING") for word in rest)]
        # The pipeline tells pieces of a byte-level word by the space before it, which a text's first
        # character does not have: there it takes every byte for a word.
        if not rows or not rows[0][0].isascii():
            rows[:1] = [("the", "O")]
        lines += [*(f"{word}\t{tag}" for word, tag in rows), ""]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CoNLL files of colours and things."""
    folder = tmp_path_factory.mktemp("named")
    for split, sentences, seed in (("train", 80, 0), ("validation", 10, 1), ("test", 20, 2)):
        write_conll(folder / f"{split}.conll", sentences, seed)
    return folder


@pytest.fixture(scope="session")
def pretrained(
    tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`tiny`, with a RoBERTa whose tokens hold the space before a word, as those of a real one do.

    Elsewise a space is a token of its own, which the pipeline takes for a word.
    """

    def with_spaces(folder: Path) -> Any:
        from tokenizers import models

        tokenizer = plain(folder)
        pairs = [("Ġ", letter) for letter in string.ascii_letters + string.digits + "â"]
        names = [*tokenizer.get_vocab(), *map("".join, pairs)]
        tokenizer.backend_tokenizer.model = models.BPE(
            {name: number for number, name in enumerate(sorted(names, key=order(tokenizer)))}, pairs
        )
        return tokenizer

    def order(tokenizer: Any) -> Callable[[str], int]:
        known = tokenizer.get_vocab()
        return lambda name: known.get(name, len(known))

    plain = tiny_models._byte_level
    folders: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture != "roberta":
            return tiny(architecture)
        if not folders:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tiny_models, "_byte_level", with_spaces)
                folder = tmp_path_factory.mktemp("spaces") / architecture
                folders[architecture] = tiny_models.build_model(architecture, folder)
        return folders[architecture]

    return get


@pytest.fixture
def ner(
    recipe: dict[str, Any], named: Path, pretrained: Callable[[str], Path]
) -> Callable[..., dict[str, Any]]:
    """A recipe for entities, of an architecture and a method."""

    def make(architecture: str, method: str = "full") -> dict[str, Any]:
        made = recipe | {
            "task": {"type": "ner"},
            "method": method,
            "model": {"name_or_path": str(pretrained(architecture))},
            "data": {"data_dir": str(named)},
        }
        made["training"] = {
            "num_train_epochs": 8, "learning_rate": 1.0e-2, "per_device_train_batch_size": 8,
            "save_strategy": "no", "eval_strategy": "no",
        }  # fmt: skip
        return made

    return make


@pytest.fixture(scope="session")
def finished(
    pretrained: Callable[[str], Path], named: Path, tmp_path_factory: pytest.TempPathFactory
) -> library.Run:
    """A tiny BERT that knows colours and things."""
    return library.finetune(
        {
            "task": {"type": "ner"},
            "model": {"name_or_path": str(pretrained("bert"))},
            "data": {"data_dir": str(named)},
            "method": "full",
            "training": {"num_train_epochs": 8, "learning_rate": 1.0e-2, "per_device_train_batch_size": 8},
            "engine": {"precision": "fp32"},
            "output_dir": str(tmp_path_factory.mktemp("finished") / "run"),
            "seed": 7,
        }
    )


def same(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """What the pipeline finds is what ftkit wrote."""
    places = [(one["start"], one["end"], one["entity_group"]) for one in found]
    assert places == [(one["start"], one["end"], one["label"]) for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-4)


def predicted(ftkit: Any, run: Any, *arguments: object, **options: object) -> list[dict[str, Any]]:
    """What `ftkit predict` prints, a row each."""
    done = ftkit("predict", run.folder, *arguments, "--json", **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["predictions"]


# Without ftkit ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_pipeline_finds_what_predict_finds(architecture: str, ner: Callable[..., dict[str, Any]]) -> None:
    run = library.finetune(ner(architecture))
    find = pipeline("token-classification", model=str(run.folder / "model"), aggregation_strategy="first")
    rows = saved(run)
    assert {one["label"] for row in rows for one in row["prediction"]} == set(TYPES)
    assert sum(len(row["prediction"]) for row in rows) > len(rows) == 20
    again = library.predict(run, [row["text"] for row in rows])
    for row, prediction in zip(rows, again, strict=True):
        same(find(row["text"]), row["prediction"])
        # Words with nothing but spaces between them are the same in raw text.
        found = [(span.start, span.end, span.label) for span in prediction.value.spans]
        assert found == [(one["start"], one["end"], one["label"]) for one in row["prediction"]]


def test_tags_without_b_are_learned_without_b(
    ner: Callable[..., dict[str, Any]], named: Path, tmp_path: Path, ftkit: Any
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for file in named.iterdir():
        (data / file.name).write_text(file.read_text().replace("\tB-", "\tI-"))
    run = library.finetune(ner("bert") | {"data": {"data_dir": str(data)}})
    config = json.loads((run.folder / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["O", "I-COLOUR", "I-THING"]
    rows = saved(run)
    find = pipeline("token-classification", model=str(run.folder / "model"), aggregation_strategy="first")
    for row in rows:
        same(find(row["text"]), row["prediction"])
    scores = json.loads((run.folder / "metrics.json").read_text())
    assert scores["metrics"]["entity_f1"]["value"] > 0.8
    done = ftkit("eval", run.folder, "--set", "metrics=[entity_f1, token_accuracy]", "--json")
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)["metrics"]
    assert again["entity_f1"] == scores["metrics"]["entity_f1"]
    assert again["token_accuracy"]["value"] > 0.9
    written = ftkit("predict", run.folder, "--text", "the red phone", "--format", "conll").stdout
    assert [line.split("\t")[-1] for line in written.split("\n") if line] == ["O", "B-COLOUR", "B-THING"]


@pytest.mark.parametrize(("architecture", "method"), [("distilbert", "lora"), ("bert", "full")])
def test_model_card_snippet_in_a_fresh_process(
    architecture: str, method: str, ner: Callable[..., dict[str, Any]]
) -> None:
    run = library.finetune(ner(architecture, method))
    rows = saved(run)
    assert sum(len(row["prediction"]) for row in rows) > 10
    printed = fresh(card_snippet(run, [row["text"] for row in rows]), run.folder)
    for found, row in zip(eval(printed, {"np": numpy}), rows, strict=True):
        same(found, row["prediction"])


def test_lora_saves_the_head(ner: Callable[..., dict[str, Any]]) -> None:
    run = library.finetune(ner("distilbert", "lora"), ["training.num_train_epochs=1"])
    with safe_open(run.folder / "model" / "adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    new = run.manifest["training"]["new_parameters"]
    assert new == ["classifier.bias", "classifier.weight"]
    assert {f"base_model.model.{parameter}" for parameter in new} <= names
    head = json.loads((run.folder / "model" / "head.json").read_text())
    assert list(head["id2label"].values()) == TAGS


def test_merged_adapters_find_the_same(
    ner: Callable[..., dict[str, Any]], ftkit: Any, tmp_path: Path
) -> None:
    run = library.finetune(ner("bert", "lora"))
    done = ftkit("export", run.folder, "--merge", "--output", tmp_path / "merged", "--json")
    assert done.returncode == 0, done.stderr
    model = json.loads(done.stdout)["model"]
    find = pipeline("token-classification", model=model, aggregation_strategy="first")
    rows = saved(run)
    assert sum(len(row["prediction"]) for row in rows) > 10
    for row in rows:
        same(find(row["text"]), row["prediction"])


# Raw text ---------------------------------------------------------------------------------


# A text and the entities in it, in order; a tiny BERT knows these words.
ODD = [
    ("red", ["red"]),
    ("  \t the red\u00a0phone   ", ["red", "phone"]),
    ("\u3000red \u2003 film\u2009 \u2009game of\t\tblue", ["red", "film\u2009 \u2009game", "blue"]),
    ("the red\r\n\r\nof the green\n", ["red", "green"]),
    ("the\u2028red\u2029of\u202fgreen", ["red", "green"]),
    (
        "\U0001f469\u200d\U0001f469\u200d\U0001f467 red \U0001f600 and \U0001f1e9\U0001f1ea green",
        ["red", "green"],
    ),
    ("\U0001f600\U0001f600 the \U0001f600 red", ["red"]),
    ("the mone\u0301y of green wo\u0308rld busi\u0304ness", ["green", "wo\u0308rld busi\u0304ness"]),
    ("the \u200bred \u200b and\u200d the blue", ["red", "blue"]),
    ("\ufeffred of \ufeff blue", ["red", "blue"]),
    ("the RED of Gr\u00c9en", ["RED", "Gr\u00c9en"]),
    ("# red", ["red"]),
    (" ".join(["the"] * 150 + ["red"] + ["of"] * 150 + ["film", "game"]), ["red", "film game"]),
]


def places(text: str, parts: Iterable[str]) -> list[tuple[int, int]]:
    """Where parts of a text stand, one after the other."""
    found, end = [], 0
    for part in parts:
        start = text.index(part, end)
        end = start + len(part)
        found.append((start, end))
    return found


@pytest.mark.parametrize(("text", "parts"), ODD)
def test_offsets_are_those_of_the_text_as_given(finished: Any, text: str, parts: list[str]) -> None:
    (prediction,) = library.predict(finished, [text])
    value = prediction.value
    assert value.text == text
    assert [text[span.start : span.end] for span in value.spans] == parts
    assert [(span.start, span.end) for span in value.spans] == places(text, parts)
    assert all(0.5 < span.score <= 1.0 for span in value.spans)


@pytest.mark.parametrize("space", ["\x0b", "\x0c", "\x1c", "\x85"])
def test_any_white_space_parts_words(finished: Any, space: str) -> None:
    """BERT's tokenizer drops these as control characters, and so would glue the words around them."""
    text = f"the{space}red{space}of"
    (prediction,) = library.predict(finished, [text])
    assert [text[span.start : span.end] for span in prediction.value.spans] == ["red"]


def test_the_command_line_prints_the_same_offsets(finished: Any, ftkit: Any, tmp_path: Path) -> None:
    texts = [text for text, _ in ODD]
    expected = [prediction.value for prediction in library.predict(finished, texts)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "odd.jsonl").write_text(lines)
    typed = [argument for text in texts for argument in ("--text", text)]
    for rows in (
        predicted(ftkit, finished, tmp_path / "odd.jsonl"),
        predicted(ftkit, finished, "-", input=lines),
        predicted(ftkit, finished, *typed),
    ):
        assert [row["text"] for row in rows] == texts
        for row, value in zip(rows, expected, strict=True):
            assert [(one["start"], one["end"], one["label"]) for one in row["entities"]] == [
                (span.start, span.end, span.label) for span in value.spans
            ]
            scores = [span.score for span in value.spans]
            assert [one["score"] for one in row["entities"]] == pytest.approx(scores, abs=1e-5)
            assert all(row["text"][one["start"] : one["end"]] == one["text"] for one in row["entities"])


# CoNLL ------------------------------------------------------------------------------------


def printed_conll(ftkit: Any, run: Any, file: Path) -> list[Record]:
    """What `--format conll` prints, read as data again."""
    done = ftkit("predict", run.folder, file, "--format", "conll")
    assert done.returncode == 0, done.stderr
    return read_conll(done.stdout, file.with_name("printed.conll"))


def read_conll(text: str, path: Path) -> list[Record]:
    path.write_text(text, encoding="utf-8")
    return list(load_records(DataSource(train_file=str(path)), Ner())["train"])


def by_words(value: Entities) -> list[tuple[int, int, str]]:
    """Entities by the numbers of their words, whatever stands between these."""
    starts = {start: number for number, (start, _) in enumerate(value.words)}
    ends = {end: number for number, (_, end) in enumerate(value.words)}
    return [(starts[span.start], ends[span.end], span.label) for span in value.spans]


def words_of(value: Entities | Record) -> list[str]:
    return [value.text[start:end] for start, end in value.words]


def test_conll_output_reads_back(finished: Any, named: Path, ftkit: Any, tmp_path: Path) -> None:
    file = tmp_path / "test.conll"
    file.write_bytes((named / "test.conll").read_bytes())
    records = printed_conll(ftkit, finished, file)
    rows = saved(finished)
    assert [record.text for record in records] == [row["text"] for row in rows]
    for record, row in zip(records, rows, strict=True):
        assert [(span.start, span.end, span.label) for span in record.target.spans] == [
            (one["start"], one["end"], one["label"]) for one in row["prediction"]
        ]


def test_conll_output_of_raw_text_reads_back(finished: Any, ftkit: Any, tmp_path: Path) -> None:
    texts = [text for text, _ in ODD]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    records = printed_conll(ftkit, finished, tmp_path / "odd.jsonl")
    values = [prediction.value for prediction in library.predict(finished, texts)]
    assert sum(len(value.spans) for value in values) > 15
    for record, value in zip(records, values, strict=True):
        assert words_of(record) == words_of(value)
        assert by_words(record.target) == by_words(value)


@pytest.mark.parametrize(
    "rows",
    [
        [{"tokens": ["the", "red", "New York", "phone"]}],
        [{"tokens": ["the", "red\tgreen", "phone"]}, {"tokens": ["a", "blue"]}],
        [{"tokens": ["the", "red\ngreen", "phone"]}, {"tokens": ["a", "blue"]}],
        [{"tokens": ["the", "\u00a0red"]}, {"tokens": ["a", "red\u3000"]}],
        [{"tokens": ["#", "red"]}, {"tokens": ["#blue", "blue"]}],
    ],
    ids=["space", "tab", "line end", "white space", "hash"],
)
def test_conll_output_of_odd_words_reads_back(
    rows: list[dict[str, Any]], finished: Any, tmp_path: Path
) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = list(records_of_file(finished, file))
    predictions = predict_records(finished, records)
    # As the command prints them; a process for each case would take a minute.
    task = finished.recipe.task
    printed = "\n\n".join(map(_conll, [task] * len(records), records, predictions)) + "\n"
    again = read_conll(printed, tmp_path / "printed.conll")
    assert len(again) == len(rows)
    for record, prediction in zip(again, predictions, strict=True):
        assert prediction.value.spans
        assert by_words(record.target) == by_words(prediction.value)
        assert [word.split() for word in words_of(record)] == [
            word.lstrip("\ufeff").split() for word in words_of(prediction.value)
        ]


# Gradients --------------------------------------------------------------------------------


ROWS = 21  # with batches of 8 the last window is short


def frozen(recipe: dict[str, Any], model: Path, data: Path) -> dict[str, Any]:
    """One epoch whose steps leave the weights where they are."""
    return recipe | {
        "task": {"type": "ner"},
        "model": {"name_or_path": str(model)},
        "data": {"train_file": str(data)},
        "training": {
            "num_train_epochs": 1, "max_grad_norm": 0.0, "optim": "sgd", "learning_rate": 1e-30,
            "logging_steps": 1,
        },
    }  # fmt: skip


def sentences_of(path: Path) -> Iterator[tuple[list[str], list[str]]]:
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        words, tags = zip(*(line.split("\t") for line in block.split("\n")), strict=True)
        yield list(words), list(tags)


def plain_gradients(model_folder: Path, data: Path) -> tuple[list[Any], list[float]]:
    """transformers' own loss over a whole batch, with the labels of its own examples:
    the first token of each word has the word's tag, all others -100.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    set_seed(SEED)
    model = AutoModelForTokenClassification.from_pretrained(model_folder, num_labels=len(TAGS)).eval()
    sentences = list(sentences_of(data))
    steps, losses = [], []
    for rows in EpochBatches(total=ROWS, size=BATCH, seed=SEED, rank=0, processes=1):
        chosen = [sentences[row] for row, *_ in rows]
        batch = tokenizer([" ".join(words) for words, _ in chosen], padding=True, return_tensors="pt")
        labels = torch.full(batch["input_ids"].shape, -100)
        for row, (words, tags) in enumerate(chosen):
            for start, tag in zip(places(" ".join(words), words), tags, strict=True):
                labels[row, batch.char_to_token(row, start[0])] = TAGS.index(tag)
        model.zero_grad()
        loss = model(**batch, labels=labels).loss
        loss.backward()
        losses.append(loss.item())
        steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    return steps, losses


@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (2, 4)])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_gradients_equal_plain_transformers(
    architecture: str,
    size: int,
    accumulation: int,
    recipe: dict[str, Any],
    still: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, model = write_conll(tmp_path / "rows.conll", ROWS, 3, longest=3), still(architecture)
    made = frozen(recipe, model, data)
    made["training"] |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    ours, our_losses = engine_gradients(made, monkeypatch)
    plain, plain_losses = plain_gradients(model, data)
    assert len(ours) == len(plain) == 3
    for one, other in zip(ours, plain, strict=True):
        assert_same_gradients(one, other)
    assert our_losses == pytest.approx(plain_losses, rel=1e-5)


@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (2, 4)])
def test_gradients_of_windows(
    size: int,
    accumulation: int,
    recipe: dict[str, Any],
    still: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows ask for different numbers of words: each word of the batch counts the same."""
    data, model_folder = write_conll(tmp_path / "rows.conll", ROWS, 3), still("bert")
    made = frozen(recipe, model_folder, data)
    made["model"] |= {"max_length": 8}
    made["training"] |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
    ours, our_losses = engine_gradients(made, monkeypatch)
    records = load_records(DataSource(train_file=str(data)), Ner())["train"]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    features = TokenHead(tags=tuple(TAGS)).encode(records, tokenizer, 8).features
    assert len(features) > ROWS
    set_seed(SEED)
    model = AutoModelForTokenClassification.from_pretrained(model_folder, num_labels=len(TAGS)).eval()
    batches = EpochBatches(total=len(features), size=BATCH, seed=SEED, rank=0, processes=1)
    assert len(ours) == len(batches)
    for step, loss, rows in zip(ours, our_losses, batches, strict=True):
        model.zero_grad()
        losses = []
        for row, *_ in rows:  # one at a time, without padding
            logits = model(torch.tensor([features[row]["input_ids"]])).logits[0]
            losses.append(
                functional.cross_entropy(logits, torch.tensor(features[row]["labels"]), reduction="sum")
            )
        words = sum(len(features[row]["words"]) for row, *_ in rows)
        plain = torch.stack(losses).sum() / words
        plain.backward()
        assert loss == pytest.approx(plain.item(), rel=1e-5)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert_same_gradients(step, gradients)


def test_a_batch_without_a_word_is_no_division_by_zero(
    recipe: dict[str, Any], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    """A token longer than a window fills windows where no word begins; so does a lone space mark."""
    data = tmp_path / "rows.conll"
    data.write_text(f"see\tO\n{'x' * 60}\tO\nred\tB-COLOUR\n\n\u200b\tO\n\nred\tB-COLOUR\n")
    made = frozen(recipe, tiny("bert"), data)
    made["model"] |= {"max_length": 16}
    made["training"] |= {"per_device_train_batch_size": 1}
    run = library.finetune(made)
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert numpy.isfinite(losses).all(), losses


def test_all_words_of_a_row_without_tokens(finished: Any) -> None:
    """A text of nothing that the tokenizer knows has no entity, and is no error."""
    predictions = library.predict(finished, ["\u200b \u200d", "the red", "\ufe0f"])
    assert [len(prediction.value.spans) for prediction in predictions] == [0, 1, 0]
