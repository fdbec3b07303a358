"""The command line in fresh processes that need not import the libraries first.

A process imports what commands import, and forks for each of them: what a command does to its process
(its environment, its log, its threads) ends with it, as it does for a user, without the seconds that
importing torch takes.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

_IMPORTS = """
torch accelerate datasets evaluate peft sklearn.metrics seqeval.metrics transformers transformers.trainer
transformers.models.auto transformers.models.bert.modeling_bert transformers.models.gpt2.modeling_gpt2
ftkit.cli ftkit.finetuning ftkit.evaluation ftkit.models.loading ftkit.training.estimator
""".split()


class Forks:
    """Runs commands in forks of one process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(
        self, arguments: tuple[str, ...], *, cwd: Path, typed: str | None, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """`ftkit ARGUMENTS` in a folder; where nothing is typed, standard input is empty."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with tempfile.TemporaryDirectory() as name:
            files = {stream: str(Path(name) / stream) for stream in ("stdin", "stdout", "stderr")}
            Path(files["stdin"]).write_text(typed or "", encoding="utf-8")
            job = {"arguments": arguments, "cwd": str(cwd), **files}
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            if not select.select([process.stdout], [], [], timeout)[0]:
                self.close()
                raise subprocess.TimeoutExpired(list(arguments), timeout)
            code = json.loads(process.stdout.readline())["code"]
            texts = [Path(files[stream]).read_text(encoding="utf-8") for stream in ("stdout", "stderr")]
        return subprocess.CompletedProcess(["ftkit", *arguments], code, *texts)

    def _start(self) -> subprocess.Popen[str]:
        # What the libraries say while they are imported is of no interest.
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def serve() -> None:
    """Fork for every line of standard input."""
    import importlib

    for name in _IMPORTS:
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _command(job)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


def _command(job: dict[str, Any]) -> None:
    """Become the command; never returns."""
    code: Any = 1
    try:
        os.chdir(job["cwd"])
        for number, (stream, flags) in enumerate(
            [
                ("stdin", os.O_RDONLY),
                ("stdout", os.O_WRONLY | os.O_CREAT),
                ("stderr", os.O_WRONLY | os.O_CREAT),
            ]
        ):
            os.dup2(os.open(job[stream], flags), number)
        sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
        sys.argv = ["ftkit", *job["arguments"]]
        from ftkit.cli import main

        main()
        code = 0
    except SystemExit as error:
        code = error.code or 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
