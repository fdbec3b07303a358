"""Every shipped recipe: it loads, it says what it is, and it runs end to end without the Hub."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from standins import STANDINS

import ftkit
from ftkit.metrics.base import Headline
from ftkit.recipe import Recipe, shipped
from ftkit.recipe.loading import to_yaml
from ftkit.tagging import tag_names

FOLDER = Path(__file__).resolve().parents[2] / "recipes"
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))

# What the recipes' names call each model.
MODELS = {
    "google-bert/bert-base-uncased": "bert",
    "distilbert/distilbert-base-uncased": "distilbert",
    "FacebookAI/roberta-base": "roberta",
    "google-bert/bert-base-cased": "bert",
    "distilbert/distilbert-base-cased": "distilbert",
    "openai-community/gpt2": "gpt2",
    "openai-community/gpt2-medium": "gpt2",
    "meta-llama/Llama-3.2-1B": "llama",
    "Qwen/Qwen2.5-0.5B-Instruct": "qwen",
    "HuggingFaceTB/SmolLM2-135M": "smollm2",
    "google-t5/t5-base": "t5",
    "google/flan-t5-base": "t5",
    "facebook/bart-base": "bart",
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2",
    "a new gpt2": "scratch",
}
# The architecture to stand in for it, where that is called otherwise.
TINY = {"qwen": "qwen2", "smollm2": "llama", "scratch": "gpt2"}
DATA = {
    "stanfordnlp/sst2": "sst2",
    "fancyzhx/ag_news": "ag_news",
    "legacy-datasets/banking77": "banking77",
    "google-research-datasets/go_emotions": "go_emotions",
    "nyu-mll/glue": None,  # called by its configuration
    "nyu-mll/glue/stsb": "stsb",
    "leondz/wnut_17": "wnut17",
    "ncbi/ncbi_disease": "ncbi_disease",
    "train.conll": "conll",
    "bentrevett/multi30k": "multi30k",
    "WorkInTheDark/FairytaleQA": "fairytale_qa",
    "google-research-datasets/nq_open": "nq_open",
    "knkarthick/dialogsum": "dialogsum",
    "abisee/cnn_dailymail": "cnn_dailymail",
    "tuetschek/e2e_nlg": "e2e_nlg",
    "yahma/alpaca-cleaned": "alpaca",
    "databricks/databricks-dolly-15k": "dolly",
    "HuggingFaceH4/no_robots": "no_robots",
    "HuggingFaceTB/smol-smoltalk": "smol_smoltalk",
    "rajpurkar/squad": "squad",
    "Salesforce/wikitext": "wikitext",
    "allenai/ai2_arc": "arc_easy",
    "allenai/openbookqa": "openbookqa",
}
# What a head's outputs are called, given the labels; of a text, a place and a loss nothing is.
OUTPUTS: dict[str, Callable[[Sequence[str]], Sequence[str]] | None] = {
    "classification": tuple,
    "ner": tag_names,
    "regression": tuple,
    "text2text": None,
    "instruction": None,
    "language_modeling": None,
    "qa": None,
    "multiple_choice": None,
}


def data_of(recipe: Recipe) -> str:
    """The id of a recipe's data set, or the name of the file that the reader is to replace.

    A configuration with a stand-in of its own is told apart.
    """
    data = recipe.data
    configured = f"{data.dataset_name}/{data.dataset_config_name}"
    return configured if configured in STANDINS else data.dataset_name or Path(data.train_file).name


def architecture_of(recipe: Recipe) -> str:
    """The architecture that stands in for a recipe's model."""
    name = MODELS[recipe.model.name]
    return TINY.get(name, name)


def smaller(recipe: Recipe) -> list[str]:
    """What to `--set` so that a tiny model is through in a second."""
    if not recipe.task.writes and OUTPUTS[recipe.task.type] is not None:
        return ["model.max_length=32"]
    if recipe.model.from_config:
        shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64}
        sizes = [f"model.from_config.{key}={value}" for key, value in shape.items()]
        return [*sizes, "model.tokenizer.vocab_size=300", "model.max_length=64"]
    if recipe.task.type == "language_modeling":
        return ["model.max_length=64"]
    if not recipe.task.writes:
        return ["model.max_length=64", "task.stride=16"]
    # The tokenizers of the tiny models that write know no words, only letters.
    fewer = ["model.max_length=200", "generation.max_new_tokens=4", "generation.min_new_tokens=null"]
    return [*fewer, "generation.num_beams=2"] if recipe.generation.num_beams > 1 else fewer


def command_of(name: str) -> list[str]:
    """The words of the command in a recipe's header; a backslash goes on with the next line."""
    _, rest = (FOLDER / f"{name}.yaml").read_text().split("\n#   ", 1)
    return shlex.split(re.sub(r"\\\n#", "", rest).splitlines()[0])


def test_there_are_recipes_and_ftkit_finds_the_same() -> None:
    assert NAMES
    assert list(shipped.names()) == NAMES


def test_no_stand_in_is_left_over() -> None:
    recipes = [ftkit.load_recipe(name) for name in NAMES]
    assert {data_of(recipe) for recipe in recipes} == STANDINS.keys() == DATA.keys()
    assert {recipe.model.name for recipe in recipes} == MODELS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_its_model_and_data_have_a_stand_in(name: str) -> None:
    recipe = ftkit.load_recipe(name)
    assert recipe.model.name in MODELS, "add the model to MODELS above"
    assert data_of(recipe) in STANDINS, "add the data set to standins.py"
    assert recipe.task.type in OUTPUTS, "add the task to OUTPUTS above"


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_back_as_it_is_written(name: str) -> None:
    written = to_yaml(ftkit.load_recipe(name))
    assert to_yaml(ftkit.load_recipe(yaml.safe_load(written))) == written


@pytest.mark.parametrize("name", NAMES)
def test_its_name_says_what_it_is(name: str) -> None:
    recipe = ftkit.load_recipe(name)
    data = DATA[data_of(recipe)] or recipe.data.dataset_config_name
    stem = f"{MODELS[recipe.model.name]}_{recipe.method.type}_{data}"
    assert name == f"{recipe.task.type}/{stem}"
    assert yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["output_dir"] == f"runs/{stem}"


@pytest.mark.parametrize("name", NAMES)
def test_its_header_is_a_sentence_and_its_command(name: str) -> None:
    first, second, *_ = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert re.fullmatch(r"# [A-Z].{20,105}\.", first)
    assert first == f"# {shipped.summary(name)}"
    verb = "finetune" if ftkit.load_recipe(name).method.trains else "eval"
    assert second.startswith(f"#   ftkit {verb} ")
    assert command_of(name)[:3] == ["ftkit", verb, name]


@pytest.mark.parametrize("name", NAMES)
def test_its_command_reads_the_readers_own_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ftkit.load_recipe(name)
    _, _, _, *options = command_of(name)
    overrides = options[1::2]
    assert options[::2] == ["--set"] * len(overrides)
    data = STANDINS[data_of(recipe)]
    named = {override.partition("=")[0].removeprefix("data.") for override in overrides}
    assert named == data.reads.keys() - {"dataset_name"}, "a set on the Hub needs nothing said"

    # They count from the working directory, not from the recipe.
    data.write(tmp_path / "my")
    monkeypatch.chdir(tmp_path)
    source = ftkit.load_recipe(name, overrides).data
    for key in named:
        assert Path(getattr(source, key)) == tmp_path / "my" / data.reads[key]


def assert_scored(recipe: Recipe, metrics: dict[str, Any], split: str, rows: int) -> None:
    """The recipe's headline scores of so many rows of a split."""
    assert (metrics["split"], metrics["rows"]) == (split, rows)
    headlines = [metric.name() for metric in recipe.metrics if isinstance(metric, Headline)]
    assert list(metrics["metrics"]) == headlines
    assert all(math.isfinite(score["value"]) for score in metrics["metrics"].values())


PROMPTED = [name for name in NAMES if "_prompt_" in name]
TRAINED = [name for name in NAMES if name not in PROMPTED]
CHAT = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize("name", PROMPTED)
def test_it_prompts_end_to_end(
    name: str, whole: Callable[[str], Path], standin: Callable[[str], Path], tmp_path: Path
) -> None:
    shipped_recipe = ftkit.load_recipe(name)
    data = STANDINS[data_of(shipped_recipe)]
    model = tmp_path / "base"
    shutil.copytree(whole(architecture_of(shipped_recipe)), model)
    if not (model / "chat_template.jinja").is_file():
        (model / "chat_template.jinja").write_text(CHAT)
    # The second text of the entities is longer than the tiny model's positions in letters.
    limit = 1 if shipped_recipe.task.type == "ner" else 12
    evaluation = ftkit.evaluate(
        name,
        [
            f"model.name_or_path={model}",
            "model.max_length=250" if shipped_recipe.method.answer != "cloze" else "model.max_length=64",
            "generation.max_new_tokens=4",
            *(["method.description=List them."] if shipped_recipe.task.type == "ner" else []),
            *data.settings(standin(data_of(shipped_recipe))),
            f"output_dir={tmp_path / 'run'}",
        ],
        limit=limit,
    )
    assert_scored(shipped_recipe, evaluation.metrics, data.scored, min(data.sizes[data.scored], limit))


@pytest.mark.parametrize("name", TRAINED)
def test_it_runs_end_to_end(
    name: str, tiny: Callable[[str], Path], standin: Callable[[str], Path], tmp_path: Path
) -> None:
    shipped_recipe = ftkit.load_recipe(name)
    data = STANDINS[data_of(shipped_recipe)]
    architecture = architecture_of(shipped_recipe)
    folder = standin(data_of(shipped_recipe))
    fresh = shipped_recipe.model.from_config is not None
    run = ftkit.finetune(
        name,
        [
            *([] if fresh else [f"model.name_or_path={tiny(architecture)}"]),
            *smaller(shipped_recipe),
            *data.settings(folder),
            "training.max_steps=2",
            "training.per_device_train_batch_size=4",
            f"output_dir={tmp_path / 'run'}",
        ],
    )

    assert run.finished
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["labels"] == list(data.labels)
    assert {split: part["rows"] for split, part in manifest["data"].items()} == data.sizes
    assert manifest["notes"] == [note.format(folder=folder) for note in data.notes]

    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert_scored(shipped_recipe, metrics, data.scored, data.sizes[data.scored])

    adapters = shipped_recipe.method.adapters
    model = tmp_path / "run" / "model"
    assert (model / "adapter_config.json").is_file() == adapters
    config = {} if adapters else json.loads((model / "config.json").read_text())
    if not adapters:
        assert config["model_type"] == architecture
    outputs = OUTPUTS[shipped_recipe.task.type]
    if outputs is not None and not shipped_recipe.task.writes:
        # The names of its outputs go along with the model: in its configuration, or beside the adapters.
        head = json.loads((model / "head.json").read_text()) if adapters else config
        assert head["id2label"] == {str(n): name for n, name in enumerate(outputs(data.labels))}
        assert head.get("problem_type") == data.problem_type
