"""A recipe that is wrong is refused with exit code 2: what, where, what is allowed, at once."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# Line by line: what the recipe says, and what is to be read about it.
MISTAKES = [
    ("task: {type: classification, multilabel: true}", "task.multilabel", "did you mean 'multi_label'?"),
    ("modle: bert", "modle", "unknown key; did you mean 'model'?"),
    ("model: {name_or_path: bert, max_length: long}", "model.max_length", "'long' is not a whole number"),
    (
        "data: {train_file: train.csv, validation_fraction: 2}",
        "data.validation_fraction",
        "2 is not under 1",
    ),
    ("method: {type: lora, rank: 8}", "method.rank", "unknown key; allowed: type, r, lora_alpha"),
    ("method: full", "method", "duplicate key (first on line 5)"),
    ("training:", "", ""),
    ("  lerning_rate: 1.0e-4", "training.lerning_rate", "did you mean 'learning_rate'?"),
    ("  num_train_epochs: many", "training.num_train_epochs", "'many' is not a number"),
    ("  per_device_train_batch_size: 0", "training.per_device_train_batch_size", "0 is not at least 1"),
    ("  lr_scheduler_type: cosin", "training.lr_scheduler_type", "did you mean 'cosine'?"),
    ("  seed: 1", "training.seed", "ftkit owns this key: say it at the top level"),
    ("  bf16: true", "training.bf16", "ftkit owns this key: say engine.precision: bf16"),
    ("  output_dir: x", "training.output_dir", "ftkit owns this key: say it at the top level"),
    ("  resume_from_checkpoint: x", "training.resume_from_checkpoint", "use ftkit finetune --resume"),
    ("  enable_jit_checkpoint: true", "training.enable_jit_checkpoint", "ftkit finetune --resume"),
    ("  hub_token: x", "training.hub_token", "no secret enters a recipe"),
    ("metrics: [acuracy]", "metrics.0", "'acuracy' is not allowed; did you mean 'accuracy'?"),
    ("gates: {accuracy: {minimum: 1}}", "gates.accuracy.minimum", "did you mean 'min'?"),
    ("engine: {precision: fp8}", "engine.precision", "'fp8' is not allowed; allowed: auto, fp32, bf16"),
    ("early_stopping: 3", "early_stopping", "3 is not a mapping; its keys: patience, threshold"),
    ("output_dir: 3", "output_dir", "3 is not a string; put it in quotes"),
    ("seed: yes", "seed", "'yes' is not a whole number"),
]


@pytest.mark.parametrize("verb", ["check", "finetune"])
def test_all_mistakes_at_once(verb: str, folder: Path, refused: Callable[..., str]) -> None:
    (folder / "recipe.yaml").write_text("\n".join(line for line, _, _ in MISTAKES) + "\n")
    error = refused(2, verb, "recipe.yaml", lines=len(MISTAKES) - 1)
    said = error.removeprefix("error: ").splitlines()
    expected = [(n, key, words) for n, (_, key, words) in enumerate(MISTAKES, 1) if key]
    for one, (line, key, words) in zip(said, expected, strict=True):
        assert one.startswith(f"{folder / 'recipe.yaml'}:{line}: {key}: "), one
        assert words in one


# Each recipe is read once, so mistakes that do not hide each other share one.
WRONG = {
    "names": [
        ("task: clasification", "recipe.yaml:1: task: 'clasification' is not allowed; did you mean 'classi"),
        ("model: bert", "recipe.yaml:2: model: 'bert' is not a mapping; its keys: name_or_path"),
        ("data: train.csv", "recipe.yaml:3: data: 'train.csv' is not a mapping; its keys: train_file"),
        ("method: lroa", "recipe.yaml:4: method: 'lroa' is not allowed; did you mean 'lora'? allowed: full"),
        ("output_dir: ''", "recipe.yaml:6: output_dir: '' is not a path"),
        ("metrics: accuracy", "recipe.yaml:7: metrics: 'accuracy' is not a list; write [accuracy]"),
        ("gates: {accuracy: 0.8}", "recipe.yaml:8: gates.accuracy: 0.8 is not a mapping; its keys: min, max"),
    ],
    "types": [
        ("task: {type: [classification]}", "task.type: ['classification'] is not allowed"),
        ("model: {name_or_path: ''}", "model.name_or_path: '' is not a path"),
        ("data: {train_file: {a: b}}", "data.train_file: {'a': 'b'} is not a string or a list"),
        ("method: {r: 8}", "recipe.yaml:4: method: needs a `type`; allowed: full, lora"),
        ("gates: {accuracy: {}}", "gates.accuracy: a gate needs min, max, or baseline"),
    ],
    "values": [
        ("task: {type: classification, labels: [0, yes]}", "task.labels.0: 0 is not a string; put it in"),
        (
            f"model: {{name_or_path: a/b, trust_remote_code: true, revision: {'v' * 40}}}",
            "needs a revision that is a full 40-char",
        ),
        ("data: {train_file: [train.csv, 3]}", "data.train_file.1: 3 is not a string"),
        ("method: [lora]", "method: ['lora'] is not a mapping or one of: full, lora"),
        ("gates: {accuracy: {min: 1, max: 0}}", "min 1.0 is above max 0.0"),
    ],
    "labels twice, data twice": [
        ("task: {type: classification, labels: [a, b, a]}", "labels: 'a' stands twice"),
        ("data: {train_file: train.csv, dataset_name: a/b}", "give dataset_name or train_file, not both"),
    ],
    "one label, no data": [
        ("task: {type: classification, labels: [a]}", "labels: at least 2 are needed"),
        ("data: {}", "data: no data: give train_file, data_dir or dataset_name"),
        (
            "model: {from_config: {model_type: gpt2}, tokenizer: a/b, trust_remote_code: true}",
            "model: trust_remote_code needs a revision that is a full 40-character commit id",
        ),
    ],
    "empty label, no path": [
        ("task: {type: classification, labels: [a, '']}", "labels: '' is empty"),
        ('data: {train_file: "a\\0b"}', "data.train_file: 'a\\x00b' is not a path"),
    ],
    "weight of no label, rows for no training": [
        (
            "task: {type: classification, labels: [red, green], class_weights: {gren: 2}}",
            "class_weights: 'gren' is no label; labels: red, green; did you mean 'green'?",
        ),
        ("data: {train_file: train.csv, test_fraction: 0.5, validation_fraction: 0.5}", "leave no training"),
    ],
    "weights of 0, a split of files": [
        (
            "task: {type: classification, labels: [red, green], class_weights: {red: 0, green: 0}}",
            "class_weights: all are 0, so nothing would be learned",
        ),
        (
            "data: {train_file: train.csv, validation_split: dev}",
            "data: validation_split is of a Hub data set (dataset_name), not of files",
        ),
        (
            "model: {from_config: {model_type: gpt2}, tokenizer: {type: bpe}, revision: main}",
            "model: revision is for the Hub, and nothing of this model comes from there",
        ),
    ],
    "checksum of nothing": [
        (
            f"model: {{from_config: {{model_type: gpt2}}, tokenizer: a/b, sha256: {'f' * 64}}}",
            "model: sha256 is of weights from a file, and from_config has none",
        ),
    ],
    "blocks that do not go together": [
        (
            "data: {train_file: train.csv, columns: {txt: text}}",
            "recipe.yaml:3: data.columns.txt: the task classification has no such field; it has: text,",
        ),
        (
            "training: {metric_for_best_model: micro_f1}",
            "recipe.yaml:5: training.metric_for_best_model: 'micro_f1' is not computed; metrics has: acc",
        ),
        ("metrics: [accuracy, accuracy]", "metrics.1: accuracy stands twice"),
        (
            "gates: {acuracy: {min: 0.8}}",
            "recipe.yaml:8: gates.acuracy: is not computed; did you mean 'accuracy'? metrics has: accuracy",
        ),
    ],
    "metric of another task": [
        ("task: {type: classification, multi_label: true}", ""),
        ("metrics: [matthews]", "metrics.0: matthews scores a label, the task predicts a label set; these"),
    ],
    "tags": [
        ("task: !!python/name:os.system", "recipe.yaml:1: task: the tag !!python/name:os.system is refused"),
        ("model: !!python/object:os.system {a: b}", "model: the tag !!python/object:os.system is refused"),
        ("data: !!python/object/apply:os.system ['touch harm']", "data: the tag !!python/object/apply:os"),
        ("method: !lora {r: 8}", "recipe.yaml:4: method: the tag !lora is refused"),
        ("output_dir: !!int many", "recipe.yaml:6: output_dir: 'many' cannot be read as !!int"),
        (f"seed: {'9' * 5000}", "recipe.yaml:7: seed: '99999"),
        ("? [a, b]", "recipe.yaml:8: a key must be a plain word"),
    ],
    "nothing to train on": [("data: {test_file: test.csv}", "data: there is nothing to train on")],
    "gates without rows to score": [
        ("data: {train_file: train.csv}", "gates: nothing will be scored: there is no labelled"),
        ("gates: {accuracy: {min: 0.8}}", ""),
    ],
    "label as text": [("data: {train_file: train.csv, columns: {text: label}}", "text and label are both")],
    "template of a head": [
        ("task: {type: classification, template: '{{ text }}!'}", "template: a model with a head reads the"),
    ],
    "no parent": [("extends: nowhere", "recipe.yaml:7: extends: nowhere: there is no such file")],
    "own parent": [("extends: recipe.yaml", "recipe.yaml:7: extends: the chain comes back to itself")],
    "two parents": [("extends: [a, b]", "recipe.yaml:7: extends: one path or recipe name is needed")],
}  # fmt: skip


@pytest.mark.parametrize("mistakes", WRONG.values(), ids=WRONG.keys())
def test_mistakes(
    mistakes: list[tuple[str, str]], say: Callable[..., None], refused: Callable[..., str]
) -> None:
    say(*(line for line, _ in mistakes))
    refused(2, "check", "recipe.yaml", says=tuple(words for _, words in mistakes), lines=len(mistakes) + 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "recipe.yaml:1: it is empty; a recipe is a mapping"),
        (b"a: b\nc: [full\nd: 1\n", "recipe.yaml:3: not YAML: while parsing a flow sequence (from line 2)"),
        (b"task:\n\ttype: a\n", "recipe.yaml:2: not YAML"),
        (b"task: a: b\n", "recipe.yaml:1: not YAML: mapping values are not allowed here"),
        (b"task: a\nseed: \0\n", "recipe.yaml:2: not YAML: the character '\\x00' is not allowed"),
        (b"task: caf\xe9\n", "recipe.yaml: the recipe is not UTF-8 text"),
    ],
)
def test_no_yaml(text: bytes, says: str, folder: Path, refused: Callable[..., str]) -> None:
    (folder / "recipe.yaml").write_bytes(text)
    refused(2, "check", "recipe.yaml", says=says, lines=2)


LAUGHS = 'a: &a ["lol", "lol"]\n' + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n"
    for last, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "recipe.yaml:2: alias *a: aliases are refused; write the value out"),
        (f"a: {'[' * 20_000}{']' * 20_000}\n", "recipe.yaml:1: nested more than 32 levels deep"),
    ],
    ids=["billion laughs", "nesting"],
)
def test_bombs_are_refused_at_once(text: str, says: str, folder: Path, refused: Callable[..., str]) -> None:
    (folder / "recipe.yaml").write_text(text)
    started = time.monotonic()
    refused(2, "check", "recipe.yaml", says=says, lines=8)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seed", "--set 'seed': expected key=value"),
        ("seed=[1", "--set: the value '[1': not YAML"),
        ("seed=!!python/name:os.system", "the tag !!python/name:os.system is refused"),
        ("seed=3\nmethod: lora", "holds a second key"),
        ("seed=a", "--set seed=a: seed: 'a' is not a whole number"),
        ("training.sead=3", "--set training.sead=3: training.sead: unknown key"),
        ("method.r=3", "--set method.r=3: method.r: unknown key; allowed: type"),
        ("output_dir=run #2", "the value 'run #2' holds a #, which begins a comment in YAML"),
        ("output_dir=# 2", "the value '# 2' holds a #, which begins a comment in YAML"),
        ("extends=recipe.yaml", "a parent is named in the recipe's file"),
    ],
)
def test_set(override: str, says: str, folder: Path, refused: Callable[..., str]) -> None:
    refused(2, "check", "recipe.yaml", "--set", override, says=says, lines=2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("check", "recip.yaml"),
            "recip.yaml: there is no such file, run folder or shipped recipe; did you mean 'recipe.yaml'?",
        ),
        (("check", "."), ".: this folder is neither a recipe nor a run"),
        (("check", "~nobody/recipe.yaml"), "there is no such file"),
        (("check",), "Missing argument 'RECIPE'"),
        (("chekc", "recipe.yaml"), "Did you mean 'check'?"),
        (("finetune", "recipe.yaml", "--limit", "0"), "--limit"),
        (("finetune", "recipe.yaml", "--resume", "--overwrite"), "give --resume or --overwrite, not both"),
    ],
)  # fmt: skip
def test_usage(arguments: tuple[str, ...], says: str, folder: Path, refused: Callable[..., str]) -> None:
    refused(2, *arguments, says=says)


def test_a_parent_is_checked_in_its_own_file(
    folder: Path, say: Callable[..., None], refused: Callable[..., str]
) -> None:
    (folder / "parent.yaml").write_text("# The parent.\nseed: many\nseed: 2\n")
    say("extends: parent.yaml")
    error = refused(2, "check", "recipe.yaml", lines=2)
    assert f"{folder}/parent.yaml:2: seed: 'many' is not a whole number" in error
    assert f"{folder}/parent.yaml:3: seed: duplicate key (first on line 2)" in error


def test_a_longer_cycle(folder: Path, say: Callable[..., None], refused: Callable[..., str]) -> None:
    (folder / "parent.yaml").write_text("extends: ./recipe.yaml\n")
    say("extends: parent.yaml")
    chain = "recipe.yaml -> parent.yaml -> recipe.yaml"
    refused(
        2, "check", "recipe.yaml", says=f"parent.yaml:1: extends: the chain comes back to itself: {chain}"
    )


def test_words_and_numbers_as_readers_write_them(
    folder: Path, say: Callable[..., None], ftkit: Callable[..., object]
) -> None:
    say(
        "training: {learning_rate: 2e-5}", "task: {type: classification, labels: [yes, no, '08', '1e5', '~']}"
    )
    shown = ftkit("show", "recipe.yaml")
    assert shown.returncode == 0, shown.stderr
    (folder / "shown.yaml").write_text(shown.stdout)
    for name in ("recipe.yaml", "shown.yaml"):
        tree = json.loads(ftkit("show", name, "--json").stdout)
        assert tree["training"] == {"learning_rate": 2e-5}
        assert tree["task"]["labels"] == ["yes", "no", "08", "1e5", "~"]
