"""From a recipe to an estimator: the one place where model, task and method meet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkit.component import discover
from ftkit.errors import UsageError
from ftkit.families.base import Family
from ftkit.models.source import read_config
from ftkit.recipe import Recipe
from ftkit.records import Record, Writing
from ftkit.training.setup import Estimator, Head, Loaded, Setup

if TYPE_CHECKING:
    from ftkit.run import Run


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

    source = recipe.model
    located = source.locate()
    head = recipe.method.head(recipe.task.head(labels))

    def load() -> Loaded:
        if source.from_config is not None:
            return fresh()
        ready = located.ready()
        family = family_of(recipe, loading.load_config(ready, source).to_dict())
        loaded = loading.load(ready, source, with_language_model(head, family))
        family.complete(loaded)
        return loaded

    def fresh() -> Loaded:
        from ftkit.models import fresh as maker

        family = family_of(recipe, dict(located.config))
        made = with_language_model(head, family)
        loaded = maker.build(source, made, family.name(), lambda: texts_of(train))
        family.complete(loaded)
        return loaded

    def load_finished(folder: Path) -> Any:
        return loading.load_finished(
            folder, with_language_model(head, family_of(recipe, read_config(folder)))
        )

    def objective(config: Any) -> Any:
        smoothing = recipe.arguments.get("label_smoothing_factor", 0.0)
        family = family_of(recipe, config.to_dict()).name()
        return recipe.task.objective(labels, learned, family=family, label_smoothing=smoothing)

    stopping = recipe.early_stopping
    return recipe.method.estimator(
        Setup(
            labels=tuple(labels),
            load=load,
            load_finished=load_finished,
            load_tokenizer=loading.load_saved_tokenizer,
            objective=objective,
            arguments=recipe.arguments,
            precision=recipe.engine.precision,
            micro_batch=recipe.engine.micro_batch == "auto",
            seed=recipe.seed,
            best_metric=recipe.best_metric,
            early_stopping=(stopping.patience, stopping.threshold) if stopping else None,
            max_length=max_length or source.max_length,
            task=recipe.task.model_dump_json(),
            generation=recipe.generation.settings(),
            write_in_validation=recipe.best_needs_text,
            task_type=recipe.task.type,
            asked_by=recipe.task.asked_by,
            questions=lambda words, form: recipe.task.questions(labels, words, form),
            load_encoder=loading.load_encoder,
        )
    )


def texts_of(records: Sequence[Record]) -> Iterator[str]:
    """All texts of records: what is asked, said before, and answered."""
    for record in records:
        yield record.text
        if record.text_pair is not None:
            yield record.text_pair
        yield from (turn.content for turn in record.turns[:-1])
        if isinstance(record.target, Writing) and record.target.text != record.text:
            yield record.target.text


def with_language_model(head: Head, family: type[Family]) -> Head:
    """The head with its auto class: for a language model, that of the family."""
    return Head(head.auto_class or family.language_model, head.config)


def finished_estimator(run: Run) -> Estimator:
    """The estimator of a finished run, ready to predict."""
    estimator = make_estimator(run.recipe, run.labels, learned=run.learned, max_length=run.max_length)
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
        return family
    known = "; ".join(f"{name} ({family.examples})" for name, family in discover(Family).items())
    raise UsageError(
        f"no family takes a model of type {config.get('model_type')!r}",
        where=f"model.name_or_path: {recipe.model.name}",
        hint=f"families: {known}",
    )
