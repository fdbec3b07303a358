"""Mistakes in data and recipes for named entities: refused with the file, the row and the word."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

Refused = Callable[..., str]
Say = Callable[..., None]
Ftkit = Callable[..., subprocess.CompletedProcess[str]]

GOOD = "Paris\tB-LOC\nfell\tO\n\n"


def tokens(words: list[Any], tags: list[Any]) -> str:
    """A line of JSON that is right, then one with these."""
    rows = ({"tokens": ["Ann", "won"], "ner_tags": ["B-PER", "O"]}, {"tokens": words, "ner_tags": tags})
    return "\n".join(map(json.dumps, rows))


def marked(*entities: Any) -> str:
    """A line of JSON that is right, then one with these entities."""
    rows = ({"text": "Eve won", "entities": [[0, 3, "PER"]]}, {"text": "Ann met Bob", "entities": entities})
    return "\n".join(map(json.dumps, rows))


# A training file, and what is to be read about it.
FILES = [
    # Columns and lines.
    ("train.conll", "Paris\nfell\n", ":1: no column 'tag' or"),
    ("train.conll", "# a comment\n# another one\n", "train.conll: "),
    ("train.conll", "token,tag\nParis,B-LOC\nfell,O\n",
     ": the lines have one column, such as 'token,tag'\n  columns are separated by tabs or spaces"),
    ("train.conll", GOOD + "Ann\tB-PER\nLee I-PER\nwon\tO\n", ":5: 1 line does not have the 2 columns of the "
     "rest\n  lines 5; mend them, or set data.stray_lines: skip"),
    ("train.conll", "word\tO\n" * 2999 + "Paris\tB-LOC\n",
     ": the file is one sentence of 3,000 words\n  a blank line ends a sentence"),
    ("train.conll", GOOD + "Ann\tB-PER\nwon\t\n", ":4, word 2 ('won'): the tag is ''"),
    # Tags.
    ("train.conll", GOOD + "Ann\tO\nLee\tX-PER\n", ":4, word 2: the tag 'X-PER' has the unknown prefix X-\n"
     "  tags are O, or a prefix (B-, I-; E-, S-; L-, U-)"),
    ("train.conll", GOOD + "Ann\tPER\nwon\tO\n", ":4: tags with and without prefixes are mixed: 'PER'"),
    ("train.conll", "Ann\tB-PER\nLee\tE-PER\n\nParis\tU-LOC\n",
     ":4: the schemes BIOES (E-, S-) and BILOU (L-, U-) are mixed"),
    ("train.conll", "Paris\tO\nfell\tO\n", ": no training row holds an entity: there is nothing to learn"),
    # Tokens and tags as JSON.
    ("train.jsonl", tokens(["Ann", "won"], ["B-PER"]), ":2: 2 tokens but 1 tags\n  each token needs a tag"),
    ("train.jsonl", tokens([], ["B-PER"]), ":2: the row has no tokens"),
    ("train.jsonl", tokens(["Ann", ""], ["B-PER", "O"]), ":2: token 2 of 2 is empty"),
    ("train.jsonl", tokens(["Ann", 42], ["B-PER", "O"]), ":2: token 2 of 2 is 42"),
    ("train.jsonl", tokens(["Ann", "won"], ["B-PER", None]), ":2, word 2 ('won'): the tag is None"),
    ("train.jsonl", tokens(["Ann", "won"], [1, 0]), ":2, word 1 ('Ann'): the tag is the number 1\n"
     "  name the tags with task.tag_names, such as [O, B-PER, I-PER]"),
    # Spans.
    ("train.jsonl", marked([0, 7, "PER"], [4, 11, "ORG"]), ":2: the entities 'Ann met' (0-7) and 'met Bob' "
     "(4-11) overlap\n  a word has one tag"),
    ("train.jsonl", marked([8, 12, "PER"]), ":2: the entity 8-12 (PER) is empty or lies beyond the text's 11 "
     "characters\n  start counts from 0, end is"),
    ("train.jsonl", marked([3, 3, "PER"]), ":2: the entity 3-3 (PER) is empty or lies beyond"),
    ("train.jsonl", marked({"start": 5, "end": 8, "label": "PER", "text": "met"}),
     ":2: the entity 5-8 (PER) is 'met' by its text, 'et ' by its place\n  start and end count characters"),
    ("train.jsonl", marked("Ann"), ":2: the entity 'Ann' is no span\n  entities are objects such as"),
    # The two kinds in one file; and a list that a csv file cannot hold.
    ("train.csv", "tokens,ner_tags\n['Ann'],['B-PER']\n", ":2: the tokens are \"['Ann']\", not a list"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), FILES)
def test_training_file(name: str, content: str, says: str, folder: Path, say: Say, refused: Refused) -> None:
    (folder / name).write_text(content, newline="")
    say("task: ner", f"data: {{train_file: {name}}}")
    refused(3, "check", "recipe.yaml", says=(str(folder / name), says))


@pytest.mark.parametrize("text", ["Ann  MET", "Ann\nmet", "", " "])
def test_what_tools_change_in_the_text_of_an_entity(text: str, folder: Path, say: Say, ftkit: Any) -> None:
    entity = {"start": 0, "end": 7, "label": "PER", "text": text}
    (folder / "train.jsonl").write_text(marked(entity))
    say("task: ner", "data: {train_file: train.jsonl}")
    done = ftkit("check", "recipe.yaml")
    assert done.returncode == 0, done.stderr


def test_spans_under_the_name_that_doccano_gives_them(folder: Path, say: Say, ftkit: Any) -> None:
    (folder / "train.jsonl").write_text('{"text": "Ann won", "labels": [[0, 3, "PER"]]}\n')
    say("task: ner", "data: {train_file: train.jsonl}")
    checked = ftkit("check", "recipe.yaml")
    assert checked.returncode == 0, checked.stderr
    assert "labels: PER" in checked.stdout


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        ("columns: {token: 0, tag: 7}", 3, "train.conll:1: no column 7 for the field 'tag'\n  found: 0, 1;"),
        ("columns: {token: 0, tag: -5}", 3, "train.conll:1: no column -5 for the field 'tag'"),
        ("columns: {token: 0, tag: tag}", 2, "columns: use names or numbers for all columns, not a mixture"),
        ("columns: {tag: 0}", 2, "token and tag are both read from the column"),
        ("stray_lines: ignore", 2, "data.stray_lines: 'ignore' is not allowed; allowed: error, skip"),
    ],
)
def test_data_block(data: str, code: int, says: str, folder: Path, say: Say, refused: Refused) -> None:
    (folder / "train.conll").write_text(GOOD)
    say("task: ner", f"data: {{train_file: train.conll, {data}}}")
    refused(code, "check", "recipe.yaml", says=says)


@pytest.mark.parametrize(
    ("task", "code", "says"),
    [
        ("word_pattern: '('", 2, "task.word_pattern: no regular expression: missing ), unterminated"),
        ("word_pattern: '.*'", 2, "task.word_pattern: matches the empty string: every word must have"),
        ("scheme: BIO", 2, "task.scheme: 'BIO' is not allowed; allowed: auto, plain"),
        ("labels: [LOC, LOC]", 2, "task.labels: 'LOC' stands twice"),
        ("tag_names: [O, '']", 2, "task.tag_names"),
        ("labels: [PER, LOK]", 3, "train.conll:1, word 1 (B-LOC): the entity type 'LOC' is not among "
         "the 2 that task.labels names; did you mean 'LOK'?\n  types: PER, LOK"),
    ],
)  # fmt: skip
def test_task_block(task: str, code: int, says: str, folder: Path, say: Say, refused: Refused) -> None:
    (folder / "train.conll").write_text(GOOD)
    say(f"task: {{type: ner, {task}}}", "data: {train_file: train.conll}")
    refused(code, "check", "recipe.yaml", says=says)


def test_a_number_that_has_no_name(folder: Path, say: Say, refused: Refused) -> None:
    (folder / "train.jsonl").write_text('{"tokens": ["Ann", "won"], "ner_tags": [1, 3]}\n')
    say("task: {type: ner, tag_names: [O, B-PER, I-PER]}", "data: {train_file: train.jsonl}")
    refused(3, "check", "recipe.yaml", says="train.jsonl:1, word 2 ('won'): the tag is the number 3, but "
            "task.tag_names has 3 names")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("test.conll", GOOD + "Ann\tO\nLee\tB-PERSN\n", ":4, word 2 (B-PERSN): the entity type 'PERSN' is "
         "not among the 2 of the training data; did you mean 'PERSON'?\n  types: LOC, PERSON"),
        ("test.jsonl", '{"text": "Ann won", "entities": [[0, 3, "PERSN"]]}', ":1, 'Ann': the entity type "
         "'PERSN' is not among the 2 of the training data; did you mean 'PERSON'?\n  types: LOC, PERSON"),
    ],
)  # fmt: skip
def test_test_file(name: str, content: str, says: str, folder: Path, say: Say, refused: Refused) -> None:
    (folder / "train.conll").write_text(GOOD + "Ann\tB-PERSON\n")
    (folder / name).write_text(content)
    say("task: ner", f"data: {{train_file: train.conll, test_file: {name}}}")
    refused(3, "check", "recipe.yaml", says=f"{folder / name}{says}")


def test_a_metric_of_another_task(folder: Path, say: Say, refused: Refused) -> None:
    (folder / "train.conll").write_text(GOOD)
    say("task: ner", "data: {train_file: train.conll}", "metrics: [entity_f1, accuracy]")
    error = refused(
        2, "check", "recipe.yaml", says=("recipe.yaml:7: metrics.1: accuracy scores a label", "fit: ")
    )
    fitting = error.partition("fit: ")[2].strip().split(", ")
    assert {"entity_f1", "entity_precision", "entity_recall", "per_entity"} <= set(fitting)
    assert not {"accuracy", "f1", "matthews"} & set(fitting)
    assert "a entities" not in error


def test_an_inside_tag_that_opens_a_sentence_is_noted(folder: Path, say: Say, ftkit: Ftkit) -> None:
    (folder / "train.conll").write_text(GOOD + "Lee\tI-PER\nwon\tO\nParis\tI-LOC\n")
    say("task: ner", "data: {train_file: train.conll}")
    checked = ftkit("check", "recipe.yaml", "--json")
    assert checked.returncode == 0, checked.stderr
    notes = [value for name, value in json.loads(checked.stdout).items() if name.startswith("note")]
    where = f"{folder / 'train.conll'}:4, word 1, 'Lee' I-PER"
    assert (
        f"train: 2 tags may not follow the one before them in BIO (first: {where}); "
        "they are read as the CoNLL evaluation reads them"
    ) in notes
    assert not (folder / "run").exists()


def test_skipped_lines_are_said(folder: Path, say: Say, ftkit: Ftkit) -> None:
    (folder / "train.conll").write_text(GOOD + "stray\n\n" + GOOD)
    say("task: ner", "data: {train_file: train.conll, stray_lines: skip}")
    checked = ftkit("check", "recipe.yaml", "--json")
    assert checked.returncode == 0, checked.stderr
    assert (
        "note: train.conll: 1 line does not have the 2 columns of the rest and is skipped (4)"
        in checked.stderr
    )
    assert json.loads(checked.stdout)["train"] == "2 rows"


def test_training_refuses_data_as_the_check_does(folder: Path, say: Say, refused: Refused) -> None:
    (folder / "train.conll").write_text(GOOD + "Ann\tX-PER\n")
    say("task: ner", "data: {train_file: train.conll}")
    refused(
        3, "finetune", "recipe.yaml", says="train.conll:4, word 1: the tag 'X-PER' has the unknown prefix X-"
    )


# The model ---------------------------------------------------------------------------------------


def test_a_tokenizer_without_offsets() -> None:
    from ftkit.errors import UsageError
    from ftkit.training.token_head import TokenHead

    with pytest.raises(
        UsageError, match="SimpleNamespace does not tell which characters a token stands for"
    ) as e:
        TokenHead(tags=("O", "B-PER", "I-PER")).prepare(SimpleNamespace(is_fast=False), 64)
    assert "take a model with a fast tokenizer" in str(e.value)


def test_windows_that_share_all(tiny: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    from ftkit.errors import UsageError
    from ftkit.training.token_head import TokenHead

    tokenizer = AutoTokenizer.from_pretrained(tiny("bert"))
    TokenHead(tags=("O",), stride=61).prepare(tokenizer, 64)
    with pytest.raises(UsageError, match=r"task.stride: 62 tokens are shared by windows of 62"):
        TokenHead(tags=("O",), stride=62).prepare(tokenizer, 64)


# A finished run ----------------------------------------------------------------------------------


def _finished(folder: Path, recipe: dict[str, Any], **files: str) -> Path:
    """A run of one step; its files lie beside it."""
    for name, content in files.items():
        (folder / f"{name}.conll").write_text(content)
    recipe |= {"method": "full", "training": {"max_steps": 1}, "output_dir": str(folder / "run")}
    (folder / "recipe.yaml").write_text(json.dumps(recipe, indent=1))
    command = [sys.executable, "-m", "ftkit", "finetune", "recipe.yaml"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tiny: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on named entities, from a file whose columns were given by number."""
    folder = tmp_path_factory.mktemp("ner")
    data = {"train_file": "train.conll", "test_file": "test.conll", "columns": {"token": 0, "tag": 2}}
    recipe = {"task": "ner", "model": {"name_or_path": str(tiny("bert"))}, "data": data}
    return _finished(
        folder, recipe, train="Paris N B-LOC\nfell V O\n\nAnn N B-PER\nwon V O\n", test="Rome N B-LOC\n"
    )


@pytest.fixture(scope="module")
def classifier(tiny: Callable[[str], Path], colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {f"{split}_file": str(colours / f"{split}.csv") for split in ("train", "test")}
    recipe = {"task": "classification", "model": {"name_or_path": str(tiny("bert"))}, "data": files}
    return _finished(tmp_path_factory.mktemp("classifier"), recipe)


def test_conll_of_a_task_without_words(classifier: Path, refused: Refused) -> None:
    says = "--format conll: the task classification does not tag words"
    refused(2, "predict", classifier, "--text", "red", "--format", "conll", says=says, watch=(classifier,))


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--text", "Ann won", "--text-pair", "Bob"), 2, "the task ner takes single texts\n  leave"),
        (("--text", " "), 3, "text 1: the text is empty"),
        (("tokens.jsonl",), 3, "tokens.jsonl:2: token 2 of 2 is 42"),
        (("stray.conll",), 3, "stray.conll:3: 1 line does not have the 3 columns of the rest"),
    ],
)  # fmt: skip
def test_what_cannot_be_predicted_for(
    arguments: tuple[str, ...], code: int, says: str, run: Path, tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "tokens.jsonl").write_text('{"tokens": ["Ann"]}\n{"tokens": ["Ann", 42]}\n')
    (tmp_path / "stray.conll").write_text("Ann N O\nwon V O\nstray\nBob N O\n")
    # The row before the broken one is answered.
    prints = arguments == ("tokens.jsonl",)
    refused(code, "predict", run, *arguments, says=says, prints=prints, watch=(run,))


@pytest.mark.parametrize(
    "content", ["Ann N\nwon V\n\nBob N\n", "Ann\nwon\n\nBob\n"], ids=["two columns", "one column"]
)
def test_a_file_without_tags(content: str, run: Path, tmp_path: Path, ftkit: Ftkit) -> None:
    """Tags are what is asked for: the column that the recipe gives for them need not be there."""
    (tmp_path / "new.conll").write_text(content)
    said = ftkit("predict", run, "new.conll", "--format", "conll")
    assert said.returncode == 0, said.stderr
    words = [[line.split("\t")[0] for line in row.split("\n")] for row in said.stdout.strip().split("\n\n")]
    assert words == [["Ann", "won"], ["Bob"]]


def test_tags_that_are_not_read_are_not_judged(run: Path, tmp_path: Path, ftkit: Ftkit) -> None:
    (tmp_path / "odd.conll").write_text("Ann N X-ODD\nwon V PER\n")
    said = ftkit("predict", run, "odd.conll", "--format", "conll")
    assert said.returncode == 0, said.stderr
    assert [line.split("\t")[0] for line in said.stdout.split()[::2]] == ["Ann", "won"]


def test_a_word_is_one_line_of_conll(run: Path, tmp_path: Path, ftkit: Ftkit) -> None:
    """Line ends and tabs in a token would make other lines and columns of it."""
    (tmp_path / "odd.jsonl").write_text(json.dumps({"tokens": ["A\nnn", "f\tell"]}))
    said = ftkit("predict", run, "odd.jsonl", "--format", "conll")
    if said.returncode:
        assert "odd.jsonl:1" in said.stderr
    else:
        assert [len(line.split("\t")) for line in said.stdout.strip().split("\n")] == [2, 2]
