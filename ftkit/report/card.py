"""The model card of a run: what it is, how good it is, and how to load it without ftkit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ftkit.metrics.tables import markdown_table
from ftkit.report.results import figure, uncertainty

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from ftkit.recipe import Recipe
    from ftkit.run import Run

_TAGS = {
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForQuestionAnswering": "question-answering",
}


def model_card(run: Run) -> str:
    """README.md of a run folder."""
    recipe, manifest = run.recipe, run.manifest
    verb = "finetune" if recipe.method.trains else "eval"
    lines = [
        *_metadata(run),
        f"# {run.folder.name}",
        "",
        f"A {recipe.task.type} model: `{recipe.model.name}`, method `{recipe.method.type}`, "
        f"made with ftkit {manifest['versions'].get('ftkit', '')}.",
        "",
        *_scores(run.metrics),
        "## Data",
        "",
        f"{_source(recipe)}",
        "",
        markdown_table(
            ("split", "rows", "SHA-256"),
            [(s, str(d["rows"]), f"`{d['sha256'][:16]}`") for s, d in manifest["data"].items()],
        ),
        "",
        *([*(f"- {note}" for note in manifest["notes"]), ""] if manifest["notes"] else []),
        *([f"Labels: {', '.join(run.labels)}.", ""] if run.labels else []),
        "## Use",
        "",
        f"With ftkit: `ftkit predict {run.folder.name} {recipe.task.example_arguments(pairs=run.pairs)}`.",
        *_without_ftkit(run),
        "## Make it again",
        "",
        f"`ftkit {verb} recipe.yaml`, seed {recipe.seed}, precision {manifest['precision']}; "
        "versions and hardware are in `manifest.json`.",
        "",
    ]
    return "\n".join(lines)


def _metadata(run: Run) -> list[str]:
    """The block at the top by which the Hub finds and shows a model: huggingface.co/docs/hub/model-cards.

    Only what can be found there is named: no path of this machine.
    """
    from huggingface_hub import ModelCardData

    recipe, data = run.recipe, run.recipe.data.hub_name
    kind = _pipeline_tag(run)
    results = _results(run, kind) or None
    tags = ["ftkit", recipe.method.type] if recipe.method.adapters else ["ftkit"]
    metadata = ModelCardData(
        base_model=recipe.model.name_or_path if recipe.model.is_on_hub else None,
        datasets=[data] if data else None,
        library_name="peft" if recipe.method.adapters else "transformers",
        pipeline_tag=kind,
        tags=tags,
        model_name=run.folder.name if results else None,
        eval_results=results,
    )
    return ["---", metadata.to_yaml(), "---", ""]


def _pipeline_tag(run: Run) -> str | None:
    """The Hub's name for what the model does."""
    task = run.recipe.task
    if task.pipeline and not task.writes:
        return task.pipeline
    return _TAGS.get(run.manifest["training"].get("auto_class", ""))


def _results(run: Run, kind: str | None) -> list[EvalResult]:
    """The scores, where they are of a whole split that others can look up."""
    from huggingface_hub import EvalResult

    data, metrics = run.recipe.data, run.metrics
    if not (data.hub_name and kind and metrics) or run.manifest.get("limit"):
        return []
    split = metrics["split"]
    if split == "train" or getattr(data, f"{split}_fraction"):
        return []
    return [
        EvalResult(
            task_type=kind,
            dataset_type=data.hub_name,
            dataset_name=data.hub_name,
            dataset_config=data.dataset_config_name,
            dataset_split=getattr(data, f"{split}_split") or split,
            dataset_revision=data.revision,
            metric_type=name,
            metric_value=score["value"],
        )
        for name, score in metrics["metrics"].items()
        if score["value"] is not None
    ]


def snippet(run: Run) -> str:
    """Python that loads `model/` with transformers (and peft) alone and uses it on one text."""
    task = run.recipe.task
    return _pipeline_snippet(run) if task.pipeline and not task.writes else _model_snippet(run)


def _model_snippet(run: Run) -> str:
    """For a model that no pipeline runs."""
    source, auto_class = run.pinned.model, run.manifest["training"]["auto_class"]
    lines = [f"from transformers import {auto_class}, AutoTokenizer", ""]
    if run.recipe.method.adapters:
        lines = [
            "from peft import PeftModel", *lines, source.snippet(),
            f"model = {auto_class}.from_pretrained(base{source.snippet_options()})",
            'model = PeftModel.from_pretrained(model, "model").merge_and_unload()',
        ]  # fmt: skip
        if run.recipe.task.writes:
            lines[1] = f"from transformers import {auto_class}, AutoTokenizer, GenerationConfig"
            lines.append('model.generation_config = GenerationConfig.from_pretrained("model")')
    else:
        lines.append(f'model = {auto_class}.from_pretrained("model")')
    lines.append('tokenizer = AutoTokenizer.from_pretrained("model")')
    generation = run.recipe.generation.settings()
    return "\n".join([*lines, *run.recipe.task.usage(auto_class, generation, pairs=run.pairs)])


def _pipeline_snippet(run: Run) -> str:
    task = run.recipe.task
    example = '{"text": "...", "text_pair": "..."}' if run.pairs else '"..."'
    call = f"print(predict({', '.join([example, *_options(task.call_options(run.max_length))])}))"
    kind, options = repr(task.pipeline).replace("'", '"'), _options(task.pipeline_options())
    if not run.recipe.method.adapters:
        made = ", ".join([kind, 'model="model"', *options])
        return "\n".join(["from transformers import pipeline", "", f"predict = pipeline({made})", call])
    auto_class = task.head(run.labels, run.learned).auto_class
    base_options = run.pinned.model.snippet_options()
    made = ", ".join([kind, "model=model", "tokenizer=tokenizer", *options])
    return "\n".join(
        [
            "import json",
            "",
            "from peft import PeftModel",
            f"from transformers import {auto_class}, AutoTokenizer, pipeline",
            "",
            run.pinned.model.snippet(),
            'head = json.load(open("model/head.json"))',
            'head["id2label"] = {int(number): name for number, name in head["id2label"].items()}',
            f"model = {auto_class}.from_pretrained(base{base_options}, ignore_mismatched_sizes=True, **head)",
            'model = PeftModel.from_pretrained(model, "model").merge_and_unload()',
            'tokenizer = AutoTokenizer.from_pretrained("model")',
            "model.config.pad_token_id = tokenizer.pad_token_id",
            f"predict = pipeline({made})",
            call,
        ]
    )


def _without_ftkit(run: Run) -> list[str]:
    """How to load the model without ftkit; a prompted one is the base model as it is."""
    if not run.recipe.method.trains:
        return [
            "No weights were trained; the shots are in `model/prompt.json`, the template in `recipe.yaml`.",
            "",
        ]
    note = run.recipe.task.pipeline_note()
    lines = ["Without it, from this folder:", "", "```python", snippet(run), "```", ""]
    return [*lines, note, ""] if note else lines


def _options(values: Mapping[str, Any]) -> list[str]:
    """Keyword arguments as they are written in Python."""
    return [
        f"{name}={json.dumps(value) if isinstance(value, str) else value}" for name, value in values.items()
    ]


def _source(recipe: Recipe) -> str:
    """Where the rows came from."""
    data = recipe.data
    if not data.dataset_name:
        return "Local files, named in `recipe.yaml`."
    config = f", configuration `{data.dataset_config_name}`" if data.dataset_config_name else ""
    revision = f", revision `{data.revision}`" if data.revision else ""
    return f"The data set `{data.dataset_name}`{config}{revision}."


def _scores(metrics: dict[str, Any]) -> list[str]:
    if not metrics:
        return []
    sure = "deviation" if metrics["details"].get("variants") else "95 % interval"
    rows = [(name, figure(score["value"]), uncertainty(score)) for name, score in metrics["metrics"].items()]
    return [
        f"## Scores on {metrics['split']} ({metrics['rows']} rows)",
        "",
        markdown_table(("metric", "score", sure), rows),
        "",
    ]
