"""Values that tasks read from rows, and what is said of those that cannot be."""

from __future__ import annotations

from typing import Any

from ftkit.errors import InputError


def text_of(value: Any, field: str, where: str) -> str:
    """A text that a tokenizer can take.

    Raises:
        InputError: It is missing, empty or no string.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        kind = "missing (null)" if value is None else "empty"
        raise InputError(f"the {field} is {kind}", where=where, hint="remove the row or fill it in")
    if not isinstance(value, str):
        raise InputError(
            f"the {field} is {value!r:.80}, not a string",
            where=where,
            hint="write it as a string, or map the right column with data.columns",
        )
    return whole(value, field, where)


def whole(value: str, field: str, where: str) -> str:
    """A string without halves of characters, which JSON can hold but no tokenizer or file takes."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(value[error.start]):04X}"
        raise InputError(f"the {field} holds half a character (the surrogate {half})", where=where) from None
    return value
