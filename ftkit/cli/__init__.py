"""The command line: one file per verb; each parses, calls and prints, nothing else."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Any

import typer

from ftkit.errors import INTERRUPTED, UNREAD, FtkitError, InputError, UnreadError

app = typer.Typer(
    name="ftkit",
    help="Fine-tune, prompt and measure language models; one recipe per task.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line and turn every outcome into its exit code."""
    from ftkit.cli import chat, check, compare, eval, export, finetune, list, predict, show, version  # noqa: A004, F401

    try:
        code = app(prog_name="ftkit", standalone_mode=False)
    except FtkitError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except UnreadError:
        # Python writes standard output out once more as it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(UNREAD)
    except OSError as error:
        # A full disk, a folder that cannot be written: the state of the machine, wherever it shows.
        if logging.getLogger("ftkit").isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        _say(f"error: {InputError(error.strerror or str(error), where=str(error.filename or ''))}")
        sys.exit(InputError.exit_code)
    except Exception as error:
        _usage_error(error)
        _disk_error(error)
        raise
    if code == INTERRUPTED:
        # Typer takes an interruption for an end like others.
        _say("interrupted; a fine-tuning goes on where it was with: ftkit finetune RECIPE --resume")
    sys.exit(code if isinstance(code, int) else 0)


def _usage_error(error: Exception) -> None:
    """A wrong option or argument is shown by the library that found it."""
    if isinstance(error, typer.Abort):
        sys.exit(INTERRUPTED)
    # Typer brings its own copy of click, so the base class is taken from what it exports.
    click_exception: Any = typer.BadParameter.__mro__[2]
    if isinstance(error, click_exception):
        error.show()
        sys.exit(error.exit_code)


def _disk_error(error: Exception) -> None:
    """What writes weights has an error of its own for a full disk."""
    from safetensors import SafetensorError

    if isinstance(error, SafetensorError) and "I/O error" in str(error):
        _say(f"error: {InputError(str(error), hint='make room; a fine-tuning goes on with --resume')}")
        sys.exit(InputError.exit_code)


def _say(text: str) -> None:
    colour = sys.stderr.isatty()
    print(f"\033[31m{text}\033[0m" if colour else text, file=sys.stderr)
