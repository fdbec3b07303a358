"""Fine-tune: from a recipe to a finished run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ftkit.dataset import load_records
from ftkit.errors import InputError, UsageError
from ftkit.estimator import make_estimator
from ftkit.gates import refuse_missing_baselines
from ftkit.recipe import Recipe, load_recipe
from ftkit.records import Dataset, Prediction, Record, Scores, labelled
from ftkit.run import Run
from ftkit.scoring import choose_split, evaluate_split, headline_scores
from ftkit.training.processes import is_main_process, processes

log = logging.getLogger("ftkit")


def finetune(
    recipe: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    overwrite: bool = False,
    resume: bool = False,
    limit: int | None = None,
    profile: bool = False,
    gated: bool = False,
) -> Run:
    """Train what the recipe says, save it, reload it, score it.

    The same as `ftkit finetune`, except that gates are the caller's to check.

    Args:
        recipe: A path, the name of a shipped recipe, or the tree itself.
        overrides: `key.path=value` strings, as after `--set`.
        overwrite: Replace a run that is in `output_dir`.
        resume: Go on from the newest complete checkpoint in `output_dir`.
        limit: Read at most this many rows of each split.
        profile: Write a torch profiler trace of a few steps to `profile.json.gz` in the run folder.
        gated: Refuse data of which nothing can be scored, because the caller has gates to check.

    Returns:
        The finished run.

    Raises:
        UsageError: The recipe is wrong, or the run folder is in use.
        InputError: Data or model are not as the recipe needs them; the run diverged.
    """
    checked = load_recipe(recipe, overrides)
    if not checked.method.trains:
        raise UsageError(
            f"method {checked.method.type} does not train", hint="score it with ftkit eval RECIPE"
        )
    refuse_missing_baselines(checked.gates)
    main = is_main_process()
    # Only one process looks at the folder: the others would find what the first one makes.
    run = Run.open(checked, overwrite=overwrite, resume=resume) if main else Run.follow(checked, resume)
    if run.finished:
        if main:
            log.info("Reading data")
            run.refuse_other_data(load_records(checked.data, checked.task, limit=limit))
        log.info("The run in %s is already finished", run.folder)
        return run
    with run.held():
        return solve(run, resume=resume, limit=limit, split=None, profile=profile, gated=gated)[0]


def solve(
    run: Run,
    *,
    resume: bool,
    limit: int | None,
    split: str | None,
    profile: bool = False,
    gated: bool = False,
) -> tuple[Run, Scores | None]:
    """Read, fit and score: what a run is made of, whatever the method.

    Args:
        run: The run as it was opened.
        resume: Go on from its newest checkpoint.
        limit: Read at most this many rows of each split.
        split: The split to score; by default test, else validation.
        profile: Whether to write a trace of a few steps.
        gated: Whether there are gates beside the recipe's.

    Returns:
        The finished run and its scores.
    """
    recipe, main = run.recipe, is_main_process()
    log.info("Reading data")
    dataset = load_records(recipe.data, recipe.task, limit=limit, trains=recipe.method.trains)
    tell(dataset)
    if not recipe.method.trains and recipe.arguments:
        log.warning("  note: method %s does not train; the block training is not used", recipe.method.type)
    train, validation = dataset["train"], validation_of(dataset, recipe)
    if gated or recipe.gates:
        refuse_nothing_to_score(dataset, split)
    log.info("%s %s", "Making" if recipe.model.from_config else "Loading", recipe.model.name)
    learned = recipe.task.learned(train, dataset.labels)
    run.pin()
    estimator = make_estimator(run.pinned, dataset.labels, learned=learned, train=train)
    workplace = run.workplace(resume=resume, profile=profile)
    estimator.prepare(
        train,
        validation,
        score=lambda predictions: headline_scores(
            predictions, validation, recipe.validation_metrics, dataset.labels
        ),
        workplace=workplace,
    )
    if main:
        run.start(dataset, learned=learned, limit=limit, resume=resume)
    processes().wait_for_everyone()
    log.info("%s: method %s", "Training" if recipe.method.trains else "Prompting", recipe.method.type)
    figures = estimator.fit(train, workplace)
    scores, predictions = None, list[Prediction]()
    if scored := _scored_split(dataset, split):
        log.info("Evaluating on %s", scored)
        try:
            scores, predictions = evaluate_split(estimator, dataset, recipe.metrics, scored)
        except InputError as error:
            if not recipe.method.trains:
                raise
            # What was trained is not to be lost for rows that cannot be scored.
            log.warning("  note: nothing is scored: %s", error)
            scored = ""
    if main:
        head = recipe.task.head(dataset.labels, learned).config
        run.finish(
            figures, scores, dataset[scored], predictions,
            head=head, precision=estimator.precision, generation=estimator.generation,
        )  # fmt: skip
    processes().wait_for_everyone()
    return (run if main else Run.follow(recipe, resume=True)), scores


def tell(dataset: Dataset) -> None:
    """Say what was read, and what about it should be known."""
    rows = ", ".join(f"{len(records):,} {split}" for split, records in dataset.splits.items())
    log.info("  %s rows%s", rows, f", {len(dataset.labels)} labels" if dataset.labels else "")
    for note in dataset.notes:
        log.warning("  note: %s", note)


def validation_of(dataset: Dataset, recipe: Recipe) -> Sequence[Record]:
    """The records to validate on during training; empty where none have labels.

    Raises:
        UsageError: The recipe asks for validation then.
    """
    if labelled(dataset["validation"]):
        return dataset["validation"]
    if recipe.method.trains and (key := recipe.needs_validation):
        raise UsageError(
            f"{key} needs validation rows with labels, and there are none",
            hint="give data.validation_file or data.validation_fraction, or leave it out",
        )
    return ()


def refuse_nothing_to_score(dataset: Dataset, split: str | None) -> None:
    """Gates need scores.

    Raises:
        UsageError: The split that would be scored has no labels.
    """
    try:
        choose_split(dataset, split)
    except InputError as error:
        raise UsageError(f"gates: nothing will be scored: {error.what}", hint=error.hint) from None


def _scored_split(dataset: Dataset, asked: str | None) -> str:
    """The split to score the run on; empty, and said, where none has labels."""
    if asked:
        return choose_split(dataset, asked)
    try:
        split = choose_split(dataset, None)
    except InputError as error:
        log.warning("  note: %s", error.what)
        return ""
    if split == "validation":
        log.warning("  note: no labelled test split; the checkpoint was chosen on the scored split")
    return split
