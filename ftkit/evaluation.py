"""Evaluate: score a finished run, on its own data or on new data."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftkit.dataset import load_records
from ftkit.errors import InputError, UsageError
from ftkit.finetuning import solve, tell
from ftkit.gates import refuse_missing_baselines
from ftkit.recipe import Recipe, load_recipe
from ftkit.recipe.loading import to_tree
from ftkit.records import Dataset, Scores, labelled
from ftkit.report.results import scores_json, write_evaluation
from ftkit.run import EVALUATIONS, MANIFEST, Run, read_manifest, refuse_other_kind, refuse_unwritable
from ftkit.scoring import choose_split, evaluate_split
from ftkit.training.processes import is_main_process, processes

log = logging.getLogger("ftkit")

_DECIDE_SCORES = ("task", "generation", "engine", "seed", "metrics")
"""Blocks of a finished run's recipe by which the same rows are answered or scored otherwise."""


@dataclass(frozen=True)
class Evaluation:
    """Scores of a run, and the folder that holds them with the predictions."""

    run: Run
    scores: Scores
    folder: Path
    metrics: Mapping[str, Any]


def evaluate(
    target: str | Path | Run | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    split: str | None = None,
    limit: int | None = None,
    all_prompts: bool = False,
    overwrite: bool = False,
) -> Evaluation:
    """Score a run with the recipe's metrics; the same as `ftkit eval`.

    A recipe whose method does not train needs no run: the first evaluation makes it.

    Args:
        target: A run or its folder, or a recipe whose `output_dir` holds its finished run.
        overrides: `key.path=value` strings, such as `data.test_file=new.csv`.
        split: `train`, `validation` or `test`; by default test, else validation.
        limit: Score at most this many rows.
        overwrite: Make the run of a recipe that only prompts anew.
        all_prompts: Score every prompt that the library has for the task; the run is made beside the
            recipe's `output_dir`, with `-all-prompts` after its name.

    Returns:
        The scores; they are also written to the run folder, under `eval/`.

    Raises:
        UsageError: There is no finished run, or it was made with another task or model.
        InputError: The split does not exist or holds no labels.
    """
    from ftkit.estimator import finished_estimator

    if isinstance(target, Run) and not all_prompts and not overwrite:
        run = target.changed(overrides)
    else:
        target = target.folder if isinstance(target, Run) else target
        if all_prompts:
            target, overrides = _with_all_prompts(target, overrides)
        if (prompted := _to_prompt(target, overrides, overwrite=overwrite)) is not None:
            return _evaluate_prompt(prompted, split=split, limit=limit, overwrite=overwrite)
        run = find_run(target, overrides)
    recipe = run.recipe
    refuse_missing_baselines(recipe.gates)
    refuse_unwritable(run.folder)
    log.info("Reading data")
    named = any(one.strip().startswith("data.") for one in overrides)
    dataset = _rows_to_score(run, split, limit, named=named)
    tell(dataset)
    chosen = choose_split(dataset, split)
    _refuse_other_shares(run, chosen, dataset, limit)
    refuse_other_kind(run, dataset[chosen])
    log.info("Loading %s", run.folder / "model")
    estimator = finished_estimator(run)
    log.info("Evaluating on %s", chosen)
    scores, predictions = evaluate_split(estimator, dataset, recipe.metrics, chosen)
    metrics = scores_json(scores, dataset[chosen], estimator.precision, estimator.generation)
    changes = run.changes()
    metrics |= {"changes": changes} if changes else {}
    folder = run.folder / EVALUATIONS / _name(metrics)
    if is_main_process():
        write_evaluation(
            folder, metrics, dataset[chosen], predictions, task=recipe.task, counts=scores.counts
        )
    processes().wait_for_everyone()
    return Evaluation(run, scores, folder, metrics)


def _name(metrics: Mapping[str, Any]) -> str:
    """The folder of an evaluation: another one for other rows, and for rows that are scored otherwise."""
    otherwise = [one for one in metrics.get("changes", ()) if one.startswith(_DECIDE_SCORES)]
    digest = hashlib.sha256("\n".join(otherwise).encode()).hexdigest()[:8]
    return f"{metrics['split']}-{metrics['sha256'][:8]}" + (f"-{digest}" if otherwise else "")


def _rows_to_score(run: Run, split: str | None, limit: int | None, *, named: bool) -> Dataset:
    """The split that is asked for, else test, and validation only where test has no labels: what else the
    recipe names may be large, or gone. Where nothing can be scored, all splits, to say which there are.

    Raises:
        InputError: The data were `named` for this evaluation, and test has no labels: scores of other rows
            would pass for those of these.
    """
    data, task = run.recipe.data, run.recipe.task
    for wanted in [split] if split else ["test", "validation"]:
        dataset = load_records(data, task, labels=run.labels, limit=limit, wanted=[wanted])
        if labelled(dataset[wanted]):
            return dataset
        if dataset[wanted] and not split:
            if named:
                choose_split(dataset, wanted)
            log.warning("  note: the %s rows have no labels: nothing is scored on them", wanted)
    return load_records(data, task, labels=run.labels, limit=limit)


def _refuse_other_shares(run: Run, split: str, dataset: Dataset, limit: int | None) -> None:
    """A share of other training rows, or another share of them, holds rows that the run has learned.

    Raises:
        UsageError: What was held out when the run was made is not what would be scored.
    """
    data, task = run.recipe.data, run.recipe.task
    if not getattr(data, f"{split}_fraction", None):
        return
    if limit != (before := run.manifest.get("limit")):
        dataset = load_records(data, task, labels=run.labels, limit=before, wanted=[split])
    if dataset.fingerprints()[split] != run.manifest["data"].get(split):
        raise UsageError(
            f"the {split} split is a share of the training rows, and not the one that was held out when the "
            "run was made: rows that it has learned would be scored",
            where=str(run.folder),
            hint=f"restore the data block and its files, or name rows with --set data.{split}_file=FILE",
        )


def _with_all_prompts(
    target: str | Path | Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], Sequence[str]]:
    """The recipe of a prompt as one of all prompts.

    Raises:
        UsageError: Its method does not prompt.
    """
    is_run = not isinstance(target, Mapping) and (Path(target) / MANIFEST).is_file()
    source = Path(target) / "recipe.yaml" if is_run and not isinstance(target, Mapping) else target
    recipe = load_recipe(source, overrides)
    if recipe.method.trains:
        raise UsageError(f"--all-prompts is for method prompt, not for {recipe.method.type}")
    tree = to_tree(recipe)
    kept = {key: value for key, value in tree["method"].items() if key not in ("template", "description")}
    tree["method"] = {**kept, "prompt": "all"}
    tree["output_dir"] += "-all-prompts"
    if not tree["training"]:
        del tree["training"]
    return tree, ()


def _to_prompt(
    target: str | Path | Mapping[str, Any], overrides: Sequence[str], *, overwrite: bool
) -> Recipe | None:
    """The recipe of a method that is evaluated without training, where no run of it is there yet.

    Raises:
        UsageError: A run that was trained would have to be made anew.
    """
    is_run = not isinstance(target, Mapping) and (Path(target) / MANIFEST).is_file()
    recipe = None if is_run else load_recipe(target, overrides)
    if overwrite and (recipe is None or recipe.method.trains):
        raise UsageError(
            "--overwrite is for the recipe of a method that does not train",
            hint="train anew with ftkit finetune RECIPE --overwrite",
        )
    if recipe is None or overwrite:
        return recipe
    manifest = Path(recipe.output_dir) / MANIFEST
    finished = manifest.is_file() and read_manifest(manifest.parent).get("finished")
    return None if recipe.method.trains or finished else recipe


def _evaluate_prompt(recipe: Recipe, *, split: str | None, limit: int | None, overwrite: bool) -> Evaluation:
    """Make the run and score it in one go: nothing needs training first. One that was killed goes on."""
    refuse_missing_baselines(recipe.gates)
    begun = not overwrite and (Path(recipe.output_dir) / MANIFEST).is_file()
    run = (
        Run.open(recipe, resume=begun, overwrite=overwrite)
        if is_main_process()
        else Run.follow(recipe, resume=False)
    )
    with run.held():
        run, scores = solve(run, resume=begun, limit=limit, split=split)
    if scores is None:
        raise InputError("there is no labelled test or validation split to score")
    return Evaluation(run, scores, run.folder, run.metrics)


def find_run(target: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Run:
    """The run that a run folder or a recipe stands for."""
    if not isinstance(target, Mapping) and (Path(target) / MANIFEST).is_file():
        return Run.load(target, overrides)
    return Run.of(load_recipe(target, overrides))
