"""The `training` block: the names and types of the installed `TrainingArguments`.

They are read from its source with `ast`, because importing it imports torch, and a recipe is
checked without that.
"""

from __future__ import annotations

import ast
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, create_model

from ftkit.component import Block
from ftkit.installed import statements_of

OWNED: dict[str, str] = {
    "output_dir": "say it at the top level of the recipe",
    "seed": "say it at the top level of the recipe",
    "data_seed": "ftkit orders the data by the recipe's seed",
    "bf16": "say engine.precision: bf16",
    "fp16": "say engine.precision: fp16",
    "bf16_full_eval": "evaluation uses engine.precision, like training",
    "fp16_full_eval": "evaluation uses engine.precision, like training",
    "use_cpu": "accelerate chooses the device; `accelerate launch --cpu` forces the CPU",
    "do_train": "the command decides: ftkit finetune",
    "do_eval": "the command decides: ftkit eval",
    "do_predict": "the command decides: ftkit predict",
    "remove_unused_columns": "say which columns are read in data.columns",
    "label_names": "say the labels in task.labels",
    "resume_from_checkpoint": "use ftkit finetune --resume",
    "enable_jit_checkpoint": "a stopped run goes on from its last checkpoint: ftkit finetune --resume",
    "auto_find_batch_size": "it would change the optimizer batch; set per_device_train_batch_size",
    "hub_token": "no secret enters a recipe; use `hf auth login` or the variable HF_TOKEN",
    "push_to_hub": "upload the finished run's model/ folder with `hf upload`",
    "hub_private_repo": "upload the finished run's model/ folder with `hf upload`",
    "hub_model_id": "upload the finished run's model/ folder with `hf upload`",
    "hub_strategy": "upload the finished run's model/ folder with `hf upload`",
    "hub_always_push": "upload the finished run's model/ folder with `hf upload`",
    "hub_revision": "upload the finished run's model/ folder with `hf upload`",
    "logging_nan_inf_filter": "ftkit stops at the first loss that is not finite",
    "average_tokens_across_devices": "the loss is always averaged over all devices",
    "train_sampling_strategy": "ftkit orders the data, and keeps padding low by itself",
    "length_column_name": "ftkit orders the data, and keeps padding low by itself",
    "accelerator_config": "ftkit orders the data; distribution is set by `accelerate launch`",
    "prediction_loss_only": "say the metrics in metrics",
    "include_for_metrics": "say the metrics in metrics",
    "batch_eval_metrics": "say the metrics in metrics",
    "eval_do_concat_batches": "predictions are decoded batch by batch",
    "eval_use_gather_object": "predictions are decoded batch by batch",
    "eval_accumulation_steps": "predictions are decoded batch by batch",
    "save_only_model": "a checkpoint is always complete, so that a run can be resumed",
    "restore_callback_states_from_checkpoint": "always on, so that a run is resumed exactly",
    "ignore_data_skip": "always off, so that a run is resumed exactly",
    "disable_tqdm": "use --quiet",
    "log_level": "use --verbose or --quiet",
    "log_level_replica": "use --verbose or --quiet",
    "local_rank": "set by `accelerate launch`",
}
"""Names of `TrainingArguments` that ftkit owns, and where each is said instead."""

_BOUNDS: dict[str, dict[str, Any]] = {
    "learning_rate": {"gt": 0},
    "num_train_epochs": {"gt": 0},
    "per_device_train_batch_size": {"ge": 1},
    "per_device_eval_batch_size": {"ge": 1},
    "gradient_accumulation_steps": {"ge": 1},
    "weight_decay": {"ge": 0},
    "warmup_steps": {"ge": 0},
    "max_grad_norm": {"ge": 0},
    "label_smoothing_factor": {"ge": 0, "lt": 1},
    "adam_beta1": {"ge": 0, "lt": 1},
    "adam_beta2": {"ge": 0, "lt": 1},
    "adam_epsilon": {"ge": 0},
    "logging_steps": {"gt": 0},
    "eval_steps": {"gt": 0},
    "save_steps": {"gt": 0},
    "save_total_limit": {"ge": 1},
}

_PLAIN: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "list[str]": list[str],
    "Literal[False]": bool,
}


def training_block() -> type[Block]:
    """The pydantic model of the `training` block: every name optional, none invented."""
    return _training_block()


@cache
def _training_block() -> type[Block]:
    enums = _enums("trainer_utils.py") | _enums("training_args.py")
    fields: dict[str, Any] = {
        name: (_type(name, annotation, enums), None)
        for name, annotation in _annotations().items()
        if name not in OWNED
    }
    return create_model(
        "Training",
        __base__=Block,
        __doc__="Arguments of transformers' `TrainingArguments`, by their own names.",
        **fields,
    )


def _type(name: str, annotation: str, enums: dict[str, tuple[str, ...]]) -> Any:
    """The Python type of an annotation such as `SchedulerType | str`.

    A string beside an enum stands for one of its members, so the enum alone decides.
    """
    parts = [part.strip() for part in annotation.split("|")]
    members = [value for part in parts for value in enums.get(part, ())]
    kinds: list[Any] = [Literal[tuple(members)]] if members else []
    for part in parts:
        if part.startswith("dict"):
            kinds.append(dict[str, Any])
        elif part in _PLAIN and not (members and part == "str"):
            kinds.append(_PLAIN[part])
    # Annotated as a string for the sake of its command line; `fsdp: true` is how it is documented.
    if name == "fsdp":
        kinds.append(bool)
    kind: Any = kinds[0] if kinds else dict[str, Any]
    for other in kinds[1:]:
        kind = kind | other
    return Annotated[kind | None, Field(**_BOUNDS[name])] if name in _BOUNDS else kind | None


@cache
def _annotations() -> dict[str, str]:
    """Field name to annotation text of the installed `TrainingArguments`."""
    (body,) = [node.body for node in _classes("training_args.py") if node.name == "TrainingArguments"]
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _enums(file: str) -> dict[str, tuple[str, ...]]:
    """The string members of every enum that a source file defines."""
    found = {}
    for node in _classes(file):
        if any(ast.unparse(base).endswith("Enum") for base in node.bases):
            found[node.name] = tuple(
                item.value.value
                for item in node.body
                if isinstance(item, ast.Assign)
                and isinstance(item.value, ast.Constant)
                and isinstance(item.value.value, str)
            )
    return {name: members for name, members in found.items() if members}


def _classes(file: str) -> list[ast.ClassDef]:
    return [node for node in statements_of(file) if isinstance(node, ast.ClassDef)]
