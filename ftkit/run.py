"""The run folder: what a run leaves behind, found again and reloaded."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ftkit.errors import InputError, UsageError
from ftkit.recipe import Recipe, load_recipe
from ftkit.recipe.comparing import differences
from ftkit.recipe.loading import to_tree, to_yaml
from ftkit.records import Dataset, Prediction, Record, Scores
from ftkit.report.results import COUNTS, METRICS, PREDICTIONS, scores_json, write_evaluation, write_json
from ftkit.training.setup import Estimator, Workplace

log = logging.getLogger("ftkit")

MANIFEST = "manifest.json"
RECIPE = "recipe.yaml"
EVALUATIONS = "eval"
# All that verbs write into a run folder; what else lies there is not a run's to delete.
_WRITTEN = (
    "model", "checkpoints", METRICS, PREDICTIONS, COUNTS, "log.jsonl", "README.md", "profile.json.gz",
    EVALUATIONS, "export", RECIPE, MANIFEST,
)  # fmt: skip
_LOCK = ".ftkit.lock"
"""Held by the process that writes a run."""
_DRAFT = "recipe.yaml.tmp"
_LEFT = (_LOCK, _DRAFT, "manifest.tmp")
"""All that a run leaves that was stopped before it began, by a full disk for example."""
_PACKAGES = ("ftkit", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "scikit-learn",
             "seqeval")  # fmt: skip
# A run is made of these; a recipe that differs in another block can still evaluate it.
_MADE_OF = ("task", "model", "method")
_MAY_CHANGE = ("gates.", "data.train_file:", "data.validation_file:", "data.test_file:", "data.data_dir:")
"""Keys of a recipe by which a run can go on otherwise: rows are compared, wherever they lie."""


class Run:
    """A run folder with its recipe and manifest.

    Attributes:
        folder: Where it is.
        recipe: The complete recipe it was made with.
        manifest: Versions, data, labels, figures; empty before the run starts.
        estimator: What predicts, once that was asked for.
        metrics: The scores of the finished run, as in metrics.json.
    """

    def __init__(self, folder: Path, recipe: Recipe, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.recipe = recipe
        self.manifest = manifest
        self._commit: str | None = None
        self._replaces = False
        self._lock = FileLock(folder / _LOCK)
        self.estimator: Estimator | None = None

    # Opening ----------------------------------------------------------------------------

    @classmethod
    def open(cls, recipe: Recipe, *, overwrite: bool = False, resume: bool = False) -> Run:
        """The run that a recipe is about to make; nothing is written or removed yet.

        Raises:
            UsageError: The folder is in use, or `resume` meets a run of another recipe.
            InputError: The folder cannot be written.
        """
        folder = Path(recipe.output_dir).absolute()
        refuse_unwritable(folder)
        run = cls(folder, recipe, {})
        run._replaces = overwrite
        if not folder.exists() or all(path.name in _LEFT for path in folder.iterdir()):
            return run
        if resume:
            return run._resumed()
        is_run = _is_run(folder)
        if not overwrite:
            raise _in_use(folder, is_run=is_run)
        if not is_run:
            raise UsageError(
                "--overwrite replaces a run folder, and this folder holds something else",
                where=str(folder),
                hint="choose another with --set output_dir=DIR",
            )
        _refuse_to_remove_sources(recipe, folder)
        return run

    @classmethod
    def follow(cls, recipe: Recipe, resume: bool) -> Run:
        """The same run, for a process that does not write."""
        folder = Path(recipe.output_dir).absolute()
        known = resume and (folder / MANIFEST).is_file()
        return cls(folder, recipe, read_manifest(folder) if known else {})

    @classmethod
    def load(cls, folder: str | Path, overrides: Sequence[str] = ()) -> Run:
        """A finished run.

        Args:
            folder: The run folder.
            overrides: `key=value` strings for what evaluation may change, such as the data.

        Raises:
            UsageError: This is no run folder, it is not finished, or an override changes what
                the model is.
        """
        folder = Path(folder).absolute()
        manifest = read_manifest(folder)
        stored = load_recipe(folder / RECIPE)
        if not manifest.get("finished"):
            raise UsageError(
                "this run is not finished",
                where=str(folder),
                hint=(
                    "go on with ftkit finetune RECIPE --resume"
                    if stored.method.trains
                    else "go on with ftkit eval RECIPE"
                ),
            )
        _refuse_damaged(manifest, folder)
        recipe = load_recipe(folder / RECIPE, overrides) if overrides else stored
        refuse_other_model(stored, recipe, folder)
        return cls(folder, recipe, manifest)

    @classmethod
    def of(cls, recipe: Recipe) -> Run:
        """The finished run in a recipe's `output_dir`, to be evaluated as the recipe says now.

        Raises:
            UsageError: There is none, or it was made with another task, model or method.
        """
        folder = Path(recipe.output_dir).absolute()
        if not (folder / MANIFEST).is_file():
            raise UsageError(
                "there is no run to evaluate",
                where=str(folder),
                hint="train it first with ftkit finetune; a new head would only give a random score",
            )
        run = cls.load(folder)
        refuse_other_model(run.recipe, recipe, folder)
        return cls(folder, recipe, run.manifest)

    def changed(self, overrides: Sequence[str]) -> Run:
        """This run, to be evaluated with other settings.

        Raises:
            UsageError: An override changes what the model is.
        """
        if not overrides:
            return self
        recipe = load_recipe(to_tree(self.recipe), overrides)
        refuse_other_model(self.recipe, recipe, self.folder)
        return type(self)(self.folder, recipe, self.manifest)

    def changes(self) -> list[str]:
        """The keys in which what is evaluated now differs from what the run was made with, as sentences."""
        return differences(load_recipe(self.folder / RECIPE), self.recipe)

    def _resumed(self) -> Run:
        """This run as far as it got, if it was started with the same recipe."""
        if not _is_run(self.folder):
            raise UsageError(
                "there is no run to resume in this folder", where=str(self.folder),
                hint="choose another with --set output_dir=DIR",
            )  # fmt: skip
        self.manifest = read_manifest(self.folder)
        stored = load_recipe(self.folder / RECIPE)
        changes = [one for one in differences(stored, self.recipe) if not one.startswith(_MAY_CHANGE)]
        if changes:
            raise UsageError(
                "the recipe is not the one this run was started with:\n  " + "\n  ".join(changes),
                where=str(self.folder),
                hint="restore the recipe to go on, or start anew with --overwrite",
            )
        return self

    # What it is -------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return bool(self.manifest.get("finished"))

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.manifest["labels"])

    @property
    def learned(self) -> dict[str, Any]:
        """What the task's objective knows of the training rows."""
        return dict(self.manifest.get("learned", {}))

    @property
    def max_length(self) -> int:
        longest = self.manifest["training"].get("max_length")
        if not isinstance(longest, int):
            raise InputError(
                f"the run is damaged: {MANIFEST} has training.max_length {longest!r:.40}",
                where=str(self.folder),
            )
        return longest

    @property
    def pairs(self) -> bool:
        """Whether the run was trained on pairs of texts."""
        return bool(self.manifest["pairs"])

    @property
    def metrics(self) -> dict[str, Any]:
        path = self.folder / METRICS
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    # The base model ---------------------------------------------------------------------

    def pin(self) -> None:
        """Fix the commit of a model on the Hub: its branch may move on while the run trains, or after it.

        Raises:
            InputError: The Hub cannot be reached, or the model does not exist.
        """
        if self.recipe.model.is_on_hub:
            self._commit = self.pinned.model.locate().ready().revision

    @property
    def pinned(self) -> Recipe:
        """The recipe with its model at the run's commit, where it comes from the Hub."""
        commit = self._commit or self.manifest.get("base_model", {}).get("commit")
        model = self.recipe.model.model_copy(update={"revision": commit})
        return self.recipe.model_copy(update={"model": model}) if commit else self.recipe

    def refuse_other_base(self) -> None:
        """Refuse a base model that changed since the run was made; a whole model has no base any more.

        On the Hub a commit cannot change.

        Raises:
            InputError: The weights have another SHA-256 than those that the run was made with.
        """
        model, made_with = self.recipe.model, self.manifest.get("base_model", {}).get("sha256")
        stands_alone = self.recipe.method.trains and not self.recipe.method.adapters
        if stands_alone or model.is_on_hub or not made_with:
            return
        if (found := model.locate().sha256()) != made_with:
            raise InputError(
                f"the base model has changed since the run was made: its weights have SHA-256 {found}, "
                f"not {made_with}",
                where=model.name,
                hint="restore those weights, or train again",
            )

    def refuse_other_data(self, dataset: Dataset) -> None:
        """Refuse to go on with a run, or to take it for done, where it saw other data.

        Raises:
            UsageError: The rows differ from those it was started with.
        """
        if self.manifest.get("data") != dataset.fingerprints():
            limit = self.manifest.get("limit")
            raise UsageError(
                "the data is not what this run was started with" + (f" (--limit {limit})" if limit else ""),
                where=str(self.folder),
                hint="restore the data (or --limit) to go on, or start anew with --overwrite",
            )

    # While it runs ----------------------------------------------------------------------

    def workplace(self, *, resume: bool = False, profile: bool = False) -> Workplace:
        return Workplace(self.folder, resume, profile)

    def start(
        self, dataset: Dataset, *, learned: Mapping[str, Any], limit: int | None, resume: bool = False
    ) -> None:
        """Write the recipe and what is known before training; an older run is removed.

        Args:
            dataset: The rows that were read.
            learned: What the task's objective knows of the training rows.
            limit: The most rows of a split that were read.
            resume: Whether to go on with the run that is there.

        Raises:
            UsageError: A resumed run would see other data than it started with.
        """
        if resume and self.manifest:
            self.refuse_other_data(dataset)
            self._take_folder()
            self._write_recipe()
            return
        # What takes time or can fail comes before the first change: a folder without a manifest is no run.
        manifest = {
            "finished": False,
            "versions": _versions(),
            "hardware": _hardware(),
            "seed": self.recipe.seed,
            "limit": limit,
            "task": self.recipe.task.model_dump(),
            "labels": list(dataset.labels),
            "learned": dict(learned),
            "data": dataset.fingerprints(),
            "notes": list(dataset.notes),
            "pairs": any(records[0].text_pair is not None for records in dataset.splits.values()),
            "base_model": {
                "source": self.recipe.model.name,
                "revision": self.recipe.model.revision,
                "commit": self._commit,
                "sha256": None if self.recipe.model.from_config else self.pinned.model.locate().sha256(),
            },
        }
        self._take_folder()
        if _is_run(self.folder):
            if not self._replaces:
                # Another process has begun one there since this one looked.
                raise _in_use(self.folder, is_run=True)
            log.info("Replacing the run in %s", self.folder)
            _remove_run(self.folder)
        self.manifest = manifest
        try:
            self._write_recipe()
            self._write_manifest()
        except OSError:
            # A recipe without a manifest could be anybody's.
            (self.folder / RECIPE).unlink(missing_ok=True)
            raise

    def _write_recipe(self) -> None:
        draft = self.folder / _DRAFT
        draft.write_text(to_yaml(self.recipe), encoding="utf-8")
        draft.replace(self.folder / RECIPE)

    @contextmanager
    def held(self) -> Iterator[Run]:
        """The folder, once it is taken in here, is free again at the end."""
        try:
            yield self
        finally:
            if self._lock.is_locked:
                try:
                    # Windows removes it as it is released, and not before.
                    if os.name != "nt":
                        with suppress(OSError):
                            Path(self._lock.lock_file).unlink(missing_ok=True)
                finally:
                    self._lock.release()

    def _take_folder(self) -> None:
        """Let no other process write here until this one is done, or gone.

        Raises:
            UsageError: One does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                "another process is writing this run", where=str(self.folder),
                hint="wait until it has ended, or choose another with --set output_dir=DIR",
            ) from None  # fmt: skip
        if self.manifest and read_manifest(self.folder) != self.manifest:
            raise UsageError(
                "another process has gone on with this run in the meantime", where=str(self.folder),
                hint="give the command again",
            )  # fmt: skip

    def finish(
        self,
        figures: Mapping[str, Any],
        scores: Scores | None,
        records: Sequence[Record],
        predictions: Sequence[Prediction],
        *,
        head: Mapping[str, Any],
        precision: str,
        generation: Mapping[str, Any],
    ) -> None:
        """Write the results and drop the checkpoints; from here on the run can be used."""
        from ftkit.report.card import model_card

        self.manifest |= {"training": dict(figures), "precision": precision, "generation": dict(generation)}
        if self.recipe.method.adapters:
            write_json(self.folder / "model" / "head.json", head)
        if scores is not None:
            metrics = scores_json(scores, records, precision, generation)
            write_evaluation(
                self.folder, metrics, records, predictions, task=self.recipe.task, counts=scores.counts
            )
        (self.folder / "README.md").write_text(model_card(self), encoding="utf-8")
        self.manifest["finished"] = True
        self._write_manifest()
        # Only now: a run that is killed before it is marked would train again from its last checkpoint.
        shutil.rmtree(self.workplace().checkpoints, ignore_errors=True)

    def _write_manifest(self) -> None:
        write_json(self.folder / MANIFEST, self.manifest)


def refuse_other_kind(run: Run, records: Sequence[Record]) -> None:
    """Pairs go with runs on pairs only.

    Raises:
        UsageError: A record is of the other kind.
    """
    if not run.recipe.task.takes_pairs:
        return
    for record in records:
        if (record.text_pair is not None) != run.pairs:
            needed = "pairs of texts" if run.pairs else "single texts"
            raise UsageError(
                f"the run was trained on {needed}",
                where=record.where,
                hint="give text and text_pair (--text-pair)" if run.pairs else "leave the second text out",
            )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run folder.

    Raises:
        UsageError: This is no run folder.
    """
    try:
        manifest = dict[str, Any](json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        raise UsageError(
            "this is not a run folder (no readable manifest.json)", where=str(folder),
            hint="ftkit finetune makes one in the recipe's output_dir",
        ) from None  # fmt: skip
    return manifest


def _refuse_damaged(manifest: Mapping[str, Any], folder: Path) -> None:
    """Look at what is read of a finished run's manifest.

    Raises:
        InputError: It is missing, or something else.
    """
    kinds = {
        "labels": list,
        "data": dict,
        "training": dict,
        "pairs": bool,
        "learned": dict,
        "base_model": dict,
    }
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key, {} if key in ("learned", "base_model") else None), kind):
            found = f"{key} {manifest[key]!r:.40}" if key in manifest else f"no {key!r}"
            raise InputError(
                f"the run is damaged: {MANIFEST} has {found}", where=str(folder),
                hint="restore the file, or train again with --overwrite",
            )  # fmt: skip


def _is_run(folder: Path) -> bool:
    """Whether ftkit made this folder; other tools, too, write a manifest.json."""
    try:
        versions = read_manifest(folder).get("versions")
    except UsageError:
        return False
    return isinstance(versions, dict) and "ftkit" in versions and (folder / RECIPE).is_file()


def _in_use(folder: Path, *, is_run: bool) -> UsageError:
    other = "choose another with --set output_dir=DIR"
    return UsageError(
        "the run folder is not empty",
        where=str(folder),
        hint=f"go on with --resume, replace it with --overwrite, or {other}" if is_run else other,
    )


def _remove_run(folder: Path) -> None:
    """Remove what an earlier run wrote, what tells it last; the folder may hold more, which stays."""
    for path in (folder / name for name in _WRITTEN):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _refuse_to_remove_sources(recipe: Recipe, folder: Path) -> None:
    """A run that would be replaced may be what the recipe starts from.

    Raises:
        UsageError: It is.
    """
    folder = Path(os.path.realpath(folder))
    gone = [folder / name for name in _WRITTEN]
    blocks = (recipe.model, recipe.data, recipe.method)
    used = [getattr(block, key) for block in blocks for key in block.path_keys]
    used += [gate.baseline for gate in recipe.gates.values()]
    for value in used:
        for one in value if isinstance(value, list) else [value]:
            path = Path(os.path.realpath(one)) if isinstance(one, str) and one else None
            if path and (path == folder or any(path.is_relative_to(part) for part in gone)):
                raise UsageError(
                    f"--overwrite would remove what the recipe starts from: {path}",
                    where=str(folder),
                    hint="choose another folder with --set output_dir=DIR",
                )


def refuse_other_model(stored: Recipe, asked: Recipe, folder: Path) -> None:
    """A finished run cannot be evaluated as if it were another one."""
    free = {f"task.{key}" for key in stored.task.read_late}
    changes = [one for one in differences(stored, asked, _MADE_OF) if one.partition(":")[0] not in free]
    if changes:
        raise UsageError(
            "the run was made with another task, model or method:\n  " + "\n  ".join(changes),
            where=str(folder),
            hint="give this recipe an output_dir of its own, or replace the run with --overwrite",
        )


def refuse_unwritable(folder: Path) -> None:
    """Say before training, not after it, that results cannot be written."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("output_dir is a file, not a folder", where=str(folder))
    existing = folder
    while not existing.exists():
        existing = existing.parent
    try:
        # Permission bits do not tell for root or on a read-only disk; a real folder does.
        with tempfile.TemporaryDirectory(prefix=".ftkit-", dir=existing):
            pass
    except OSError as error:
        raise InputError(
            f"the run folder cannot be written: {error.strerror}",
            where=str(existing),
            hint="choose another output_dir",
        ) from None


def _versions() -> dict[str, str]:
    # A run is known by ftkit's version, so it has one even where ftkit is run without being installed.
    found = {"python": platform.python_version(), "ftkit": "unknown"}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    cpu = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpus": gpus}
