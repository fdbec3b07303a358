"""Parquet files, read in batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from ftkit.data.base import Format, Reading, Row
from ftkit.errors import InputError

_ROWS_READ = 1000


class Parquet(Format):
    """Apache Parquet."""

    type: Literal["parquet"] = "parquet"
    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)

    def rows(self, path: Path, reading: Reading) -> Iterator[Row]:
        import pyarrow
        import pyarrow.parquet

        try:
            number = 0
            file = pyarrow.parquet.ParquetFile(path)
            names = file.schema_arrow.names
            if twice := [name for name in names if names.count(name) > 1]:
                raise InputError(f"two columns are called {twice[0]!r:.80}", where=str(path))
            for batch in file.iter_batches(_ROWS_READ):
                for values in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", values
        except (pyarrow.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"cannot be read as parquet: {reason}", where=str(path)) from None
