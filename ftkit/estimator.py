"""From a recipe to an estimator: the one place where model, task and method meet."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.component import discover
from ftkit.errors import UsageError
from ftkit.families.base import Family
from ftkit.installed import auto_classes
from ftkit.models.trust import read_config
from ftkit.recipe import Recipe
from ftkit.records import Record
from ftkit.training.setup import Estimator, Head, Loaded, Setup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ftkit.run import Run
    from ftkit.training.heads import Objective


def make_estimator(
    recipe: Recipe,
    labels: Sequence[str],
    *,
    learned: Mapping[str, Any],
    train: Sequence[Record] = (),
    max_length: int | None = None,
) -> Estimator:
    """An estimator that has learned nothing yet.

    Args:
        recipe: The complete recipe.
        labels: Label names in the model's order.
        learned: What the task's objective knows of the training records.
        train: Training records, from which a fresh model's tokenizer is learned.
        max_length: The longest input of a finished run; by default found when the model loads.
    """
    from ftkit.models import loading
    from ftkit.training.generation import NO_RULES

    objective = partial(_objective, recipe, labels, learned)
    model = _Model(recipe, recipe.method.head(recipe.task.head(labels, learned)), objective, train)
    stopping = recipe.early_stopping
    return recipe.method.estimator(
        Setup(
            labels=tuple(labels),
            load=model.load,
            load_finished=model.load_finished,
            load_tokenizer=partial(loading.load_saved_tokenizer, trusted=recipe.model.trust_remote_code),
            objective=lambda config: objective(family_of(recipe, config.to_dict()).name()),
            arguments=recipe.arguments,
            precision=recipe.engine.precision,
            micro_batch=recipe.engine.micro_batch == "auto",
            seed=recipe.seed,
            best_metric=recipe.best_metric,
            early_stopping=(stopping.patience, stopping.threshold) if stopping else None,
            max_length=max_length or recipe.model.max_length,
            task=recipe.task.model_dump_json(),
            generation=(NO_RULES if recipe.task.answer != "text" else {}) | recipe.generation.settings(),
            write_in_validation=recipe.best_needs_text,
            task_type=recipe.task.type,
            asked_by=recipe.task.asked_by,
            questions=partial(recipe.task.questions, labels),
            load_encoder=loading.load_encoder,
        )
    )


@dataclass(frozen=True)
class _Model:
    """A recipe's model with the head that its task asks for.

    Attributes:
        recipe: The complete recipe.
        head: The head, for a model of any family.
        objective: Makes the task's objective for a family.
        train: Training records, from which a fresh model's tokenizer is learned.
    """

    recipe: Recipe
    head: Head
    objective: Callable[[str], Objective]
    train: Sequence[Record]

    def load(self, tokenizer: Path | None = None) -> Loaded:
        """The pretrained model, or a fresh one; `tokenizer` is the file of one that was trained before."""
        from ftkit.models import fresh, loading

        source = self.recipe.model
        if source.from_config is None:
            located = source.locate().ready()
            family, head = self._of(loading.load_config(located, source).to_dict())
            loaded = loading.load(located, source, head)
        else:
            family, head = self._of(dict(source.from_config))
            texts = partial(texts_of, self.train, self.objective(family.name()))
            loaded = fresh.build(source, head, family.name(), texts, tokenizer)
        family.complete(loaded)
        return loaded

    def load_finished(self, folder: Path) -> Any:
        """The model that a run saved whole."""
        from ftkit.models import loading

        head = self._of(read_config(folder))[1]
        return loading.load_finished(folder, head, trusted=self.recipe.model.trust_remote_code)

    def _of(self, config: dict[str, Any]) -> tuple[type[Family], Head]:
        """The family of a model with this configuration, and the head with its auto class: for a language
        model, that of the family.
        """
        family = family_of(self.recipe, config)
        return family, Head(self.head.auto_class or family.language_model, self.head.config)


def _objective(recipe: Recipe, labels: Sequence[str], learned: Mapping[str, Any], family: str) -> Objective:
    """The task's objective for a model of this family."""
    smoothing = recipe.arguments.get("label_smoothing_factor", 0.0)
    return recipe.task.objective(labels, learned, family=family, label_smoothing=smoothing)


def texts_of(
    records: Sequence[Record], objective: Objective, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """All that a model reads and writes of records, for a tokenizer that is still to be trained.

    Args:
        records: With their answers.
        objective: What the model learns of them.
        tokenizer: Its chat template, where it has none, becomes that of the recipe.
    """
    from ftkit.training.writing import WritingHead

    if isinstance(objective, WritingHead):
        objective.prepare(tokenizer, 0)
        yield from (objective.render(record, tokenizer).text for record in records)
        return
    for record in records:
        yield record.text
        if record.text_pair is not None:
            yield record.text_pair


def finished_estimator(run: Run, *, apart: bool = False, precision: str = "") -> Estimator:
    """The estimator of a finished run, ready to predict.

    Args:
        run: The run.
        apart: Whether each row is read by itself, also where those of a scored split are joined.
        precision: Another one than the recipe's.

    Raises:
        InputError: The base model that its adapters or prompts need is gone, or no longer the same.
    """
    run.refuse_other_base()
    recipe = run.pinned
    if apart:
        recipe = recipe.model_copy(update={"task": recipe.task.apart()})
    if precision:
        engine = recipe.engine.model_copy(update={"precision": precision})
        recipe = recipe.model_copy(update={"engine": engine})
    estimator = make_estimator(recipe, run.labels, learned=run.learned, max_length=run.max_length)
    estimator.load(Path(run.folder) / "model")
    return estimator


def family_of(recipe: Recipe, config: dict[str, Any]) -> type[Family]:
    """The family of the recipe's model.

    Raises:
        UsageError: No family owns it, or the task or the method does not work with that family.
    """
    if family := recipe.family_of(config):
        for kind, part in (("task", recipe.task), ("method", recipe.method)):
            if part.families is not None and family.name() not in part.families:
                fit = "; ".join(f"{name} ({discover(Family)[name].examples})" for name in part.families)
                raise UsageError(
                    f"{kind} {part.type} does not work with models of the family {family.name()}",
                    where=f"model.name_or_path: {recipe.model.name}",
                    hint=f"it works with: {fit}",
                )
        if reason := recipe.task.refusal(family.name(), [metric.name() for metric in recipe.metrics]):
            raise UsageError(reason, where=f"model.name_or_path: {recipe.model.name}")
        name = recipe.task.auto_class if recipe.method.trains else None
        if name and not recipe.model.trust_remote_code:
            _refuse_no_head(name, str(config.get("model_type")), recipe)
        return family
    known = "; ".join(f"{name} ({family.examples})" for name, family in discover(Family).items())
    raise UsageError(
        f"no family takes a model of type {config.get('model_type')!r}",
        where=f"model.name_or_path: {recipe.model.name}",
        hint=f"families: {known}",
    )


def _refuse_no_head(auto_class: str, model_type: str, recipe: Recipe) -> None:
    """Refuse an architecture for which transformers does not have the head that the task needs.

    Raises:
        UsageError: This is one.
    """
    # AutoModelForTokenClassification: MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES
    words = re.findall("[A-Z][a-z]+", auto_class.removeprefix("Auto"))
    if model_type not in auto_classes("_".join([*map(str.upper, words), "MAPPING_NAMES"])):
        text = "formulation" in type(recipe.task).model_fields
        raise UsageError(
            f"transformers has no {auto_class} for models of type {model_type!r}",
            where=f"model.name_or_path: {recipe.model.name}",
            hint="take another architecture" + (", or task.formulation: text" if text else ""),
        )
