"""Data sets in Hub layout: what ftkit makes of their splits, configurations and labels.

Nearly every test is run twice, with rows that are downloaded first and with rows that are streamed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value
from hub_layout import write, write_converted

from ftkit.data.hub import HubDataset
from ftkit.data.source import DataSource
from ftkit.dataset import load_records
from ftkit.errors import InputError, UsageError
from ftkit.recipe import load_recipe
from ftkit.tasks.base import Task
from ftkit.tasks.classification import Classification
from ftkit.tasks.ner import Ner

COLOURS = ["red", "green", "blue"]
ONE_LABEL = Features(text=Value("string"), label=ClassLabel(names=COLOURS))
SEVERAL = Features(text=Value("string"), labels=Sequence(ClassLabel(names=COLOURS)))
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TAGGED = Features(tokens=Sequence(Value("string")), ner_tags=Sequence(ClassLabel(names=TAGS)))


def rows(*labels: Any, column: str = "label", word: str = "row") -> dict[str, list[Any]]:
    return {"text": [f"{word} {number}" for number in range(len(labels))], column: list(labels)}


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """One configuration, without a validation split; blue comes first in the rows."""
    folder = tmp_path / "plain"
    write(folder, ONE_LABEL, {"train": rows(2, 0, 1, 0), "test": rows(1, 2, word="new")})
    return folder


@pytest.fixture
def configured(tmp_path: Path) -> Path:
    """Two configurations, none of them the default."""
    folder = tmp_path / "configured"
    write(folder, ONE_LABEL, {"train": rows(0, 1)}, "single")
    write(folder, SEVERAL, {"train": rows([2, 0], [], [1], column="labels")}, "several")
    return folder


USUAL: dict[str, Any] = {}
ONCE = pytest.mark.parametrize("streaming", [False], indirect=True)


@pytest.fixture(autouse=True, params=[False, True], ids=["downloaded", "streamed"])
def streaming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(USUAL, "streaming", request.param)


def load(folder: Path | str, task: Task | None = None, limit: int | None = None, **data: Any) -> Any:
    source = DataSource(dataset_name=str(folder), **(USUAL | data))
    return load_records(source, task or Classification(), limit=limit)


# What is read ---------------------------------------------------------------------------------


def test_rows_have_label_names_and_their_place(plain: Path) -> None:
    read = list(HubDataset(str(plain), None, None).rows("test"))
    assert read == [
        (f"{plain}[test] row 1", {"text": "new 0", "label": "green"}),
        (f"{plain}[test] row 2", {"text": "new 1", "label": "blue"}),
    ]


def test_splits_that_are_not_there_are_left_out(plain: Path) -> None:
    assert list(load(plain).splits) == ["train", "test"]


def test_labels_keep_the_declared_order(plain: Path) -> None:
    dataset = load(plain)
    assert dataset.labels == tuple(COLOURS)
    assert [record.target for record in dataset["train"]] == ["blue", "red", "green", "red"]


def test_a_configuration_is_read(configured: Path) -> None:
    dataset = load(configured, dataset_config_name="single")
    assert [record.target for record in dataset["train"]] == ["red", "green"]


def test_several_labels_a_row(configured: Path) -> None:
    dataset = load(configured, Classification(multi_label=True), dataset_config_name="several")
    assert dataset.labels == tuple(COLOURS)
    # In the order of the labels; no label at all is an answer too.
    assert [record.target for record in dataset["train"]] == [("red", "blue"), (), ("green",)]


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    """Tagged words in the layout of the branch refs/convert/parquet; a place comes first in the rows."""
    train = {
        "tokens": [["Rome", "saw", "Ann", "Lee"], ["Nobody", "came"]],
        "ner_tags": [[3, 0, 1, 2], [0, 0]],
    }
    folder = tmp_path / "converted"
    write_converted(folder, TAGGED, {"train": train, "test": {"tokens": [["Ann"]], "ner_tags": [[1]]}}, "all")
    return folder


def test_a_converted_set_needs_no_card_and_no_configuration(converted: Path) -> None:
    dataset = load(converted, Ner(), revision="refs/convert/parquet")
    assert list(dataset.splits) == ["train", "test"]
    assert dataset["train"][0].target.tags == ("B-LOC", "O", "B-PER", "I-PER")


def test_entity_types_keep_the_declared_order(converted: Path) -> None:
    assert load(converted, Ner()).labels == ("PER", "LOC")


def test_a_row_without_words_is_no_error(tmp_path: Path) -> None:
    """The script of ncbi/ncbi_disease adds one to the end of each split."""
    write(tmp_path, TAGGED, {"train": {"tokens": [["Ann", "ran"], []], "ner_tags": [[1, 0], []]}})
    assert load(tmp_path, Ner()).labels == ("PER", "LOC")


@pytest.mark.parametrize("unknown", [-1, None])
def test_unknown_labels_make_a_split_unlabelled(tmp_path: Path, unknown: int | None) -> None:
    write(tmp_path, ONE_LABEL, {"train": rows(0, 1), "test": rows(unknown, unknown, word="new")})
    dataset = load(tmp_path)
    assert [record.target for record in dataset["train"]] == ["red", "green"]
    assert [record.target for record in dataset["test"]] == [None, None]


def test_unknown_label_sets_make_a_split_unlabelled(tmp_path: Path) -> None:
    test = rows([-1], [-1], column="labels", word="new")
    write(tmp_path, SEVERAL, {"train": rows([0], [1], column="labels"), "test": test})
    dataset = load(tmp_path, Classification(multi_label=True))
    assert [record.target for record in dataset["test"]] == [None, None]


def test_bare_numbers_are_labels_too(tmp_path: Path) -> None:
    features = Features(text=Value("string"), label=Value("int64"))
    write(tmp_path, features, {"train": rows(10, 9, 2), "test": rows(-1, word="new")})
    dataset = load(tmp_path)
    assert dataset.labels == ("2", "9", "10")
    assert dataset["test"][0].target is None


def test_a_named_split_takes_the_place_of_the_usual_one(plain: Path) -> None:
    given = {"train_split": "train[:3]", "validation_split": "test", "test_split": "train[3:]"}
    dataset = load(plain, **given, streaming=False)
    assert {split: len(records) for split, records in dataset.splits.items()} == {
        "train": 3,
        "validation": 2,
        "test": 1,
    }


def test_a_limit_pulls_no_more_rows(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = []
    kind = datasets.IterableDataset if USUAL["streaming"] else datasets.Dataset
    iterate = kind.__iter__

    def counting(rows: Any) -> Any:
        for row in iterate(rows):
            pulled.append(row)
            yield row

    monkeypatch.setattr(kind, "__iter__", counting)
    assert len(load(plain, limit=2)["train"]) == 2
    assert len(pulled) == 4, "two rows of two splits"


def test_streamed_and_downloaded_rows_are_the_same(tmp_path: Path) -> None:
    numbers = [row % 3 for row in range(30)]
    write(tmp_path, ONE_LABEL, {"train": rows(*numbers), "test": rows(-1, -1, word="new")})
    plain, streamed = (
        load(tmp_path, validation_fraction=0.2, streaming=streaming) for streaming in (False, True)
    )
    assert {split: list(rows) for split, rows in streamed.splits.items()} == {
        split: list(rows) for split, rows in plain.splits.items()
    }
    assert (streamed.labels, streamed.notes) == (plain.labels, plain.notes)


def test_a_fraction_takes_the_place_of_the_validation_split(tmp_path: Path) -> None:
    numbers = [row % 3 for row in range(30)]
    write(tmp_path, ONE_LABEL, {"train": rows(*numbers), "validation": rows(0, word="new")})
    dataset = load(tmp_path, validation_fraction=0.2)
    assert {split: len(records) for split, records in dataset.splits.items()} == {
        "train": 24,
        "validation": 6,
    }


def test_a_folder_is_found_beside_its_recipe(plain: Path) -> None:
    path = plain.parent / "recipe.yaml"
    path.write_text(
        "task: classification\nmodel: {name_or_path: some/model}\nmethod: full\n"
        "data: {dataset_name: plain}\noutput_dir: runs/plain\n"
    )
    assert load_recipe(path).data.dataset_name == str(plain)


# What is asked of the `datasets` library ----------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `datasets` is called with; it answers with two rows."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(*arguments: Any, **options: Any) -> Dataset:
        calls.append((*arguments, options))
        return Dataset.from_dict(rows(0, 1, word=options["split"]), features=ONE_LABEL)

    def get_dataset_split_names(*arguments: Any, **options: Any) -> list[str]:
        calls.append((*arguments, options))
        return ["train", "test"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", get_dataset_split_names)
    return calls


def test_configuration_and_revision_are_passed_on(asked: list[tuple[Any, ...]]) -> None:
    load("some/data", dataset_config_name="small", revision="0a1b2c")
    assert asked
    for name, config, options in asked:
        assert (name, config, options["revision"]) == ("some/data", "small", "0a1b2c")


def test_each_split_is_asked_for_once(asked: list[tuple[Any, ...]]) -> None:
    load("some/data")
    assert [options.get("split") for *_, options in asked] == [None, "train", "test"]


# What is refused ------------------------------------------------------------------------------


def test_a_missing_split_names_those_there_are(plain: Path) -> None:
    with pytest.raises(InputError) as error:
        load(plain, test_split="dev")
    assert "no split 'dev'" in str(error.value)
    assert "it has: train, test" in str(error.value)


def test_a_part_of_a_stream_is_refused(plain: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.streaming: a stream has no parts such as 'train\[:3\]'"):
        load(plain, train_split="train[:3]", streaming=True)


def test_a_missing_train_split_names_those_there_are(tmp_path: Path) -> None:
    write(tmp_path, ONE_LABEL, {"test": rows(0, 1)})
    with pytest.raises(InputError, match="no split 'train'\n  it has: test"):
        load(tmp_path)


def test_a_configuration_is_asked_for(configured: Path) -> None:
    with pytest.raises(InputError) as error:
        load(configured)
    assert str(error.value).splitlines()[0].endswith("available configs: ['several', 'single']")
    assert "set data.dataset_config_name" in str(error.value)


def test_an_unknown_configuration_names_those_there_are(configured: Path) -> None:
    with pytest.raises(InputError) as error:
        load(configured, dataset_config_name="triple")
    assert "'triple' not found. Available: ['several', 'single']" in str(error.value)
    assert "set data.dataset_config_name" in str(error.value)


@ONCE
def test_the_shipped_recipes_need_their_configuration(standin: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=r"set data\.dataset_config_name"):
        load(standin("nyu-mll/glue"))


def test_a_split_with_some_labels_unknown_is_refused_by_row(tmp_path: Path) -> None:
    write(tmp_path, ONE_LABEL, {"train": rows(0, 1, -1)})
    with pytest.raises(InputError, match=r"\[train\] row 3: the row has no answer"):
        load(tmp_path)


def test_a_number_beyond_the_names_is_refused_by_row(tmp_path: Path) -> None:
    bare = Features(text=Value("string"), label=Value("int64"))
    write(tmp_path, bare, {"train": rows(0, 1, 3)})
    card = tmp_path / "README.md"
    names = "dtype:\n      class_label:\n        names:\n          '0': red\n          '1': green"
    card.write_text(card.read_text().replace("dtype: int64", names))
    with pytest.raises(InputError, match=r"\[train\] row 3: the label '3' is not among the 2 labels"):
        load(tmp_path)


def a_script(folder: Path) -> None:
    (folder / f"{folder.name}.py").write_text("raise SystemExit('this must never run')")


def nothing(folder: Path) -> None:
    pass


def broken_parquet(folder: Path) -> None:
    (folder / "train.parquet").write_bytes(b"not Parquet at all")


def broken_csv(folder: Path) -> None:
    (folder / "train.csv").write_bytes(b"text,label\n\xff\xfe\x00,red\n")


def a_broken_card(folder: Path) -> None:
    (folder / "README.md").write_text("---\nconfigs: [\n---\n")


def another_format(folder: Path) -> None:
    Dataset.from_dict(rows(0, 1)).save_to_disk(folder)


def no_folder(folder: Path) -> None:
    folder.rmdir()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (a_script, r"scripts are no longer supported.*\n  a script .* is never run"),
        (nothing, "doesn't contain any data files"),
        (broken_parquet, "Parquet magic bytes not found"),
        (broken_csv, "can't decode byte 0xff"),
        (a_broken_card, "while parsing a flow node"),
        (another_format, r"save_to_disk.*\n  write it with Dataset.to_parquet"),
        (no_folder, "Couldn't find any data file"),
    ],
)
def test_a_folder_that_cannot_be_read(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    make(folder)
    with pytest.raises(InputError, match=says) as error:
        load(folder)
    assert str(folder) in str(error.value)
    assert len(str(error.value).splitlines()) <= 2
    assert "network" not in str(error.value), "the folder is local"


def test_a_saved_dict_is_no_surprise(tmp_path: Path) -> None:
    """Of `DatasetDict.save_to_disk`, `datasets` reads the Arrow files; no label names are lost."""
    DatasetDict(train=Dataset.from_dict(rows(2, 0), features=ONE_LABEL)).save_to_disk(tmp_path)
    assert load(tmp_path).labels == tuple(COLOURS)


def test_a_connection_that_breaks_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import HTTPError

    def breaks(*arguments: Any, **options: Any) -> None:
        raise HTTPError("the read operation timed out")

    monkeypatch.setattr(datasets, "get_dataset_split_names", breaks)
    with pytest.raises(
        InputError, match=r"some/data: cannot be loaded: the read operation timed out\n  check"
    ):
        load("some/data")


def test_offline_an_id_is_an_error_at_once() -> None:
    started = time.perf_counter()
    with pytest.raises(InputError, match="nobody/nothing: cannot be loaded") as error:
        load("nobody/nothing")
    assert error.value.exit_code == 3
    assert time.perf_counter() - started < 2


@ONCE
def test_offline_the_command_line_says_so(
    ftkit: Callable[..., Any], tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    done = ftkit(
        "finetune",
        "classification/bert_full_sst2",
        *("--set", "data.dataset_name=nobody/nothing"),
        *("--set", f"model.name_or_path={tiny('bert')}"),
        *("--set", f"output_dir={tmp_path / 'run'}"),
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    said = done.stderr[done.stderr.index("error:") :].splitlines()
    assert "nobody/nothing" in said[0]
    assert "give local files under data" in said[1]
    assert len(said) <= 3
    assert not (tmp_path / "run").exists()
