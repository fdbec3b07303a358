"""The `data` block of a recipe: where the rows of each split come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from ftkit.component import Block, discover
from ftkit.data.base import Format, Reading, Row
from ftkit.data.hub import HubDataset
from ftkit.errors import InputError
from ftkit.records import SPLITS

Fraction = Annotated[float, Field(gt=0, lt=1)]
Files = str | list[str] | None
# The formats that there are, so that a new one needs no entry here.
if TYPE_CHECKING:
    FormatName: TypeAlias = str
else:
    FormatName = Literal[tuple(discover(Format))]

_SMALL_BYTES = 16 * 2**20
_HUB_KEYS = ("dataset_config_name", "revision", "train_split", "validation_split", "test_split")
_FOLDER_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


class DataSource(Block):
    """Where the rows come from: files, a folder, or a data set on the Hub."""

    path_keys: ClassVar[tuple[str, ...]] = ("train_file", "validation_file", "test_file", "data_dir")

    train_file: Files = None
    """File to train on: csv, tsv, json, jsonl, parquet, conll or txt; a list of them, or a folder."""
    validation_file: Files = None
    """File to choose checkpoints and settings on."""
    test_file: Files = None
    """File to report scores on."""
    data_dir: str | None = None
    """Folder with files named train.*, validation.* (or valid, val, dev) and test.*."""

    dataset_name: str | None = None
    """Id on the Hugging Face Hub, or a local folder in Hub layout."""
    dataset_config_name: str | None = None
    """Which configuration of the Hub data set."""
    revision: str | None = None
    """Branch, tag or commit of the Hub data set."""
    train_split: str = "train"
    """Name of the Hub split to train on."""
    validation_split: str | None = None
    """Name of the Hub split to validate on; by default `validation` where it exists."""
    test_split: str | None = None
    """Name of the Hub split to test on; by default `test` where it exists."""

    validation_fraction: Fraction | None = None
    """Share of the training rows to validate on, stratified by label."""
    test_fraction: Fraction | None = None
    """Share of the training rows to test on, stratified by label."""
    split_seed: int = 42
    """Seed of the fractions; apart from `seed`, so that every seed sees the same split."""

    streaming: bool = False
    """Keep the rows in a temporary file, not in memory, and read a Hub set as it is downloaded: for
    data larger than memory. The results are the same."""

    columns: dict[str, str | int] = {}
    """Column of each field, such as `{text: sentence, label: intent}`; by number (from 0, or
    from the end with -1) in a CoNLL file, and in a csv or tsv file without a header line."""
    id_column: str = "id"
    """Column with the name of a row, which its prediction gets; where there is none, it gets none."""
    delimiter: str | None = None
    """What stands between the values of csv files, such as `;` or `"\\t"`; by default a comma."""
    format: FormatName | None = None
    """Format of the files, where the suffix does not tell it; `lines` takes each line as a text."""
    encoding: str = "utf-8"
    """Encoding of text files."""
    stray_lines: Literal["error", "skip"] = "error"
    """What to do with lines of a CoNLL file that lack a column; skipped ones are counted."""

    @field_validator("delimiter")
    @classmethod
    def _one_mark(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or value in '"\r\n'):
            raise ValueError("one character is needed, which is no quotation mark and ends no line")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        files = [key for key in self.path_keys if getattr(self, key)]
        if self.dataset_name and files:
            raise ValueError(f"give dataset_name or {files[0]}, not both")
        if self.data_dir and len(files) > 1:
            raise ValueError(f"give data_dir or {files[0]}, not both")
        if not self.dataset_name and not files:
            raise ValueError("no data: give train_file, data_dir or dataset_name")
        # Compared with the defaults: the recipe of a run names them all.
        idle = [
            key for key in _HUB_KEYS if getattr(self, key) not in ("", type(self).model_fields[key].default)
        ]
        if idle and not self.dataset_name:
            raise ValueError(f"{idle[0]} is of a Hub data set (dataset_name), not of files")
        for split in ("validation", "test"):
            if getattr(self, f"{split}_fraction") and (
                getattr(self, f"{split}_file") or getattr(self, f"{split}_split")
            ):
                raise ValueError(f"give {split}_fraction or a {split} split of its own, not both")
        if (self.validation_fraction or 0) + (self.test_fraction or 0) >= 1:
            raise ValueError("validation_fraction and test_fraction leave no training rows")
        kinds = {isinstance(column, int) for column in self.columns.values()}
        if len(kinds) > 1:
            raise ValueError("columns: use names or numbers for all columns, not a mixture")
        return self

    @property
    def header(self) -> bool:
        """Whether the first line of a delimited file names its columns."""
        return not any(isinstance(column, int) for column in self.columns.values())

    def split_names(self, among: Sequence[str] = SPLITS) -> tuple[str, ...]:
        """The splits this source holds by itself (those cut off by a fraction not counted).

        Args:
            among: Those to look for.

        Raises:
            InputError: A file of one of them is missing.
        """
        if self.dataset_name:
            return tuple(split for split in among if self._hub_split(split))
        return tuple(split for split in among if self.files(split))

    def is_small(self, split: str) -> bool:
        """Whether the files of a split are here, and so small that reading them takes hardly any time."""
        try:
            files = [] if self.dataset_name else self.files(split)
        except InputError:
            return False
        return bool(files) and sum(file.stat().st_size for file in files) <= _SMALL_BYTES

    def rows(self, split: str) -> Iterator[Row]:
        """Yield the rows of a split with their places.

        Raises:
            InputError: A file is missing, empty, broken, or the Hub cannot be reached.
        """
        if self.dataset_name:
            name = self._hub_split(split)
            yield from self._hub.rows(name) if name else ()
            return
        reading = Reading(self.encoding, self.header, self.stray_lines, self.delimiter)
        for path in self.files(split):
            yield from self._format_of(path).rows(path, reading)

    def for_file(self, path: Path) -> DataSource:
        """The same columns and encoding, with one file as the test split."""
        source = DataSource(
            test_file=str(path),
            columns=self.columns,
            format=self._format_given(path),
            encoding=self.encoding,
            stray_lines=self.stray_lines,
            delimiter=self.delimiter,
            id_column=self.id_column,
        )
        return source if source._format_of(path).numbered else source.named()

    def named(self) -> DataSource:
        """The same for rows whose columns have names: numbers mean nothing there."""
        return self if self.header else self.model_copy(update={"columns": {}})

    def class_names(self, column: str) -> tuple[str, ...]:
        """Class names that the Hub data set declares for a column; empty where none."""
        return self._hub.class_names(self.train_split, column) if self.dataset_name else ()

    def files(self, split: str) -> list[Path]:
        """The files of a split, a folder replaced by the data files in it.

        Raises:
            InputError: A named file does not exist, or a folder holds no data file.
        """
        if self.data_dir:
            return self._files_in_data_dir(split)
        given = getattr(self, f"{split}_file")
        paths = [given] if isinstance(given, str) else given or []
        return [file for path in paths for file in self._expand(Path(path), f"data.{split}_file")]

    def _files_in_data_dir(self, split: str) -> list[Path]:
        assert self.data_dir is not None
        folder = Path(self.data_dir)
        files = self._expand(folder, "data.data_dir")
        stems = _FOLDER_NAMES[split]
        found = [file for file in files if file.stem.split("-")[0].lower() in stems]
        if split == "train" and not found:
            raise InputError(
                "the folder has no file named train.*",
                where=str(folder),
                hint=f"it holds: {', '.join(file.name for file in files)}",
            )
        return found

    def _expand(self, path: Path, key: str) -> list[Path]:
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise InputError("no such file or folder", where=str(path), hint=_nearby(path, key))
        known = [suffix for kind in discover(Format).values() for suffix in kind.suffixes]
        files = sorted(file for file in path.iterdir() if self.format or file.suffix.lower() in known)
        files = [file for file in files if file.is_file() and not file.name.startswith(".")]
        if not files:
            raise InputError(f"no data file ({', '.join(known)}) in this folder", where=str(path))
        return files

    def _format_given(self, path: Path) -> Any:
        """The recipe's format, unless the file's own suffix tells another than its files have."""
        if self.format is None or self.dataset_name:
            return self.format
        known = [suffix for kind in discover(Format).values() for suffix in kind.suffixes]
        given = [getattr(self, f"{split}_file") or () for split in SPLITS]
        files = [Path(file) for files in given for file in ([files] if isinstance(files, str) else files)]
        with suppress(InputError, OSError):
            # As they stand in folders; files that are gone have their suffix still.
            files += [file for split in SPLITS for file in self.files(split)]
        own = {file.suffix.lower() for file in files}
        suffix = path.suffix.lower()
        by_lines = self.format == "lines" and suffix == ".txt"
        return None if suffix in known and suffix not in own and not by_lines else self.format

    def _format_of(self, path: Path) -> Format:
        kinds: Mapping[str, type[Format]] = discover(Format)
        for kind in kinds.values():
            if self.format == kind.name() or (not self.format and path.suffix.lower() in kind.suffixes):
                return kind(type=kind.name())
        raise InputError(
            f"unknown kind of file {path.suffix or path.name!r}",
            where=str(path),
            hint=f"set data.format to one of: {', '.join(kinds)}",
        )

    @property
    def hub_name(self) -> str | None:
        """The id of the data set on the Hub; `None` where the rows are on this machine."""
        return None if self.dataset_name and Path(self.dataset_name).is_dir() else self.dataset_name

    @cached_property
    def _hub(self) -> HubDataset:
        assert self.dataset_name is not None
        return HubDataset(
            self.dataset_name, self.dataset_config_name, self.revision, streaming=self.streaming
        )

    def _hub_split(self, split: str) -> str | None:
        if split == "train":
            return self.train_split
        given: str | None = getattr(self, f"{split}_split")
        if given or getattr(self, f"{split}_fraction"):
            return given
        return split if split in self._hub_splits else None

    @cached_property
    def _hub_splits(self) -> list[str]:
        return self._hub.split_names()


def _nearby(path: Path, key: str) -> str:
    """What stands where the missing file was looked for."""
    if not path.parent.is_dir():
        return f"{key}: the folder {path.parent} does not exist either"
    names = sorted(file.name for file in path.parent.iterdir() if not file.name.startswith("."))
    names = [name for name in names if name != path.name]  # a link that leads nowhere
    # By their stems: the suffixes are always alike.
    if close := get_close_matches(path.stem, [Path(name).stem for name in names], n=1):
        nearest = next(name for name in names if Path(name).stem == close[0])
        return f"{key}: did you mean {nearest!r}?"
    return f"{key}: beside it there is {', '.join(names[:8]) or 'nothing'}"
