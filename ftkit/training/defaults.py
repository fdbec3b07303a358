"""How training is set up where the recipe does not say: the recipe's arguments over ftkit's defaults."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from ftkit.errors import InputError, UsageError
from ftkit.training.processes import processes
from ftkit.training.profiling import Profile
from ftkit.training.progress import LogFile, Progress
from ftkit.training.setup import Setup, Workplace

EVAL_BATCH = 64


def training_arguments(
    setup: Setup, precision: str, workplace: Workplace, *, validated: bool
) -> TrainingArguments:
    """The recipe's arguments over ftkit's defaults.

    Args:
        setup: Holds the recipe's.
        precision: `fp32`, `bf16` or `fp16`.
        workplace: Where checkpoints go.
        validated: Whether there are rows to choose a checkpoint on.

    Raises:
        UsageError: transformers refuses them.
        InputError: A package that they need is missing.
    """
    metric, greater = setup.best_metric
    chosen: dict[str, Any] = {
        "logging_strategy": "steps",
        "logging_steps": 0.05,
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "report_to": "none",
        "per_device_eval_batch_size": EVAL_BATCH,
        # Nothing in these models changes its buffers, and a process that runs out of memory before
        # they are sent would leave the others waiting.
        "ddp_broadcast_buffers": False,
    }
    if validated:
        chosen |= {
            "eval_strategy": "epoch",
            "load_best_model_at_end": True,
            "metric_for_best_model": metric,
            "greater_is_better": greater,
        }
    given = setup.arguments
    chosen |= _moments(given) if validated else {}
    chosen |= {**_strategies(given, validated=validated), **given}
    if validated and "no" in (chosen["save_strategy"], chosen["eval_strategy"]):
        chosen["load_best_model_at_end"] = given.get("load_best_model_at_end", False)
    if (backend := os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()) != "no":
        # Known here, as what is compiled cannot be computed in some of our ways.
        chosen = {"torch_compile_backend": backend} | chosen
    with refusals():
        arguments = TrainingArguments(
            output_dir=str(workplace.checkpoints),
            seed=setup.seed,
            data_seed=setup.seed,
            use_cpu=not torch.accelerator.is_available(),
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            logging_nan_inf_filter=False,
            remove_unused_columns=False,
            restore_callback_states_from_checkpoint=True,
            disable_tqdm=True,
            **chosen,
        )
    # What `accelerate launch` or its configuration says of it would hold in half of the places.
    arguments.mixed_precision = "no" if precision == "fp32" else precision
    if arguments.fsdp and processes().num_processes == 1:
        raise UsageError(
            "training.fsdp shards a model over several processes, and this is the only one",
            hint="use `accelerate launch --multi_gpu --num_processes N -m ftkit finetune RECIPE`",
        )
    # Several GPUs in one process would be DataParallel; accelerate launch uses them well.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _strategies(given: Mapping[str, Any], *, validated: bool) -> dict[str, str]:
    """Who says after how many steps says that it is by steps; unless there is nothing to do then, or it could
    not go with what is said to happen once an epoch.
    """
    found = {"logging": "steps"} if "logging_steps" in given else {}
    for verb, other in (("eval", "save"), ("save", "eval")):
        if f"{verb}_steps" in given and (validated or verb == "save"):
            found |= {} if given.get(f"{other}_strategy") == "epoch" else {verb: "steps"}
    return {f"{verb}_strategy": how for verb, how in found.items()}


def _moments(given: Mapping[str, Any]) -> dict[str, Any]:
    """The best weights can be kept where they are saved as often as they are validated: what is said of the
    one alone holds for the other.
    """
    said = {**_strategies(given, validated=True), **given}
    found: dict[str, Any] = {}
    for one, other in (("save", "eval"), ("eval", "save")):
        if f"{one}_strategy" not in said and said.get(f"{other}_strategy") in ("steps", "epoch"):
            names = [name for name in ("strategy", "steps") if f"{other}_{name}" in said]
            found |= {f"{one}_{name}": said[f"{other}_{name}"] for name in names}
    return found


def training_callbacks(setup: Setup, workplace: Workplace, *, validated: bool) -> list[TrainerCallback]:
    """Progress, log file and what the recipe asks for."""
    callbacks: list[TrainerCallback] = [LogFile(workplace.log), Progress()]
    if workplace.profile:
        callbacks.append(Profile(workplace.folder / "profile.json.gz"))
    if setup.early_stopping and validated:
        patience, threshold = setup.early_stopping
        callbacks.append(EarlyStoppingCallback(patience, threshold))
    return callbacks


def pass_overhead(model: nn.Module) -> int:
    """What one more forward and backward pass costs in tokens.

    Little on a CPU, where it is mostly the gradient of the embeddings, if they are trained; much on an
    accelerator, which many rows fill.
    """
    if torch.accelerator.is_available():
        return 4096
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    return 400 if any(module.weight.requires_grad for module in embeddings) else 128


def refuse_checkpointing(model: Any, arguments: TrainingArguments) -> None:
    """Refuse activation checkpointing of a model that has none.

    Raises:
        UsageError: It is asked for, and this is one.
    """
    if arguments.activation_checkpointing and not model.supports_gradient_checkpointing:
        raise UsageError(
            "training.activation_checkpointing: transformers has none for this architecture",
            where=f"model_type: {model.config.model_type}",
            hint="leave it out; shorter inputs (model.max_length) and smaller batches take less memory",
        )


@contextmanager
def refusals() -> Iterator[None]:
    """What transformers refuses, as an error that names the block.

    Raises:
        UsageError: The arguments are wrong, or not together.
        InputError: A package is missing.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        raise UsageError(f"training: {error}") from None
    except ImportError as error:
        raise InputError(f"training: {error}") from None
    except RuntimeError as error:
        if "installed" not in str(error):
            raise
        raise InputError(f"training: {error}") from None


@contextmanager
def writing_nothing(arguments: TrainingArguments) -> Iterator[None]:
    """A Trainer makes its output folder at once; a run's own is not touched before it starts."""
    folder = arguments.output_dir
    with TemporaryDirectory(prefix="ftkit-") as elsewhere:
        arguments.output_dir = elsewhere
        try:
            yield
        finally:
            arguments.output_dir = folder
