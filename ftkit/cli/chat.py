"""`ftkit chat`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ftkit.cli import app, console, options

if TYPE_CHECKING:
    from ftkit.chatting import Chat

_LEAVE = ("/exit", "/quit")


@app.command()
def chat(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or the recipe that made one.")],
    once: Annotated[str | None, typer.Option(help="Answer this one message and stop.")] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Talk with a run that follows instructions; piped input is a message a line."""
    console.start(quiet=quiet, verbose=verbose)
    from ftkit.chatting import Chat
    from ftkit.errors import UsageError
    from ftkit.evaluation import find_run
    from ftkit.prediction import decoded

    if once is not None and not once.strip():
        raise UsageError("--once: the message is empty", hint='for example --once "Where is my parcel?"')
    conversation = Chat(find_run(run), system)
    if once is not None:
        _answer(conversation, once)
    elif sys.stdin.isatty():
        _talk(conversation)
    else:
        for number, line in enumerate(sys.stdin.buffer, 1):
            if message := decoded(line, number).strip():
                _answer(conversation, message)


def _talk(conversation: Chat) -> None:
    """Ask for messages until the user leaves."""
    console.hint("A message a line; /exit or Ctrl-D ends the conversation.")
    while True:
        try:
            message = input("> ").strip()
        except EOFError:
            return
        if message in _LEAVE:
            return
        if message:
            _answer(conversation, message)


def _answer(conversation: Chat, message: str) -> None:
    """Print an answer as it is written."""
    conversation.say(message, lambda piece: console.emit(piece, end=""))
    console.emit("")
