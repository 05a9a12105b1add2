"""Runs Python programs in processes of their own, without importing anew.

Importing TensorFlow takes five seconds of CPU time. Here one process of each
test process imports it, and nothing else, makes no tensor, and is forked for
every program. A program so has modules, devices, settings and random numbers
of its own, as it had with an interpreter of its own. What it must find
unimported (this package, dp_accounting, SciPy) is not imported before.

Its path is made anew: its folder, `PYTHONPATH` of its environment, and what
the interpreter has by itself.
"""

import atexit
import functools
import json
import os
import pathlib
import runpy
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Mapping, Sequence

_ROOT = pathlib.Path(__file__).resolve().parents[1]


class Process:
    """A program that runs, with what is used of `subprocess.Popen`."""

    def __init__(self, number: int):
        self.pid = number
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Returns the code that it ended with; `None` while it runs."""
        if self.returncode is None:
            self.returncode = _asked({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end.

        Args:
            timeout: Seconds, after which it is killed.

        Raises:
            subprocess.TimeoutExpired: If it takes longer.
        """
        end = time.monotonic() + (timeout or 3600)
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.02)
        return self.returncode

    def kill(self) -> None:
        """Kills it, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, 9)


def start(
    arguments: Sequence[str],
    output: str | os.PathLike,
    errors: str | os.PathLike | None = None,
    cwd: str | os.PathLike | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Starts a program.

    Args:
        arguments: `-m` and the name of a module, or `-c` and a text; then what
            the program is given.
        output: File that what it prints is appended to.
        errors: File for its errors; `None` for the same file.
        cwd: Folder that it runs in.
        env: Its environment.

    Returns:
        The process.
    """
    number = _asked(
        {
            "arguments": [str(argument) for argument in arguments],
            "output": str(output),
            "errors": str(errors or output),
            "cwd": str(cwd or os.getcwd()),
            "env": dict(os.environ if env is None else env),
        }
    )
    return Process(number)


def run(
    arguments: Sequence[str],
    folder: str | os.PathLike,
    cwd: str | os.PathLike | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
    check: bool = False,
) -> subprocess.CompletedProcess:
    """Runs a program to its end, as `subprocess.run` does.

    Args:
        arguments: See `start`.
        folder: Folder for two files of what it prints.
        cwd: Folder that it runs in.
        env: Its environment.
        timeout: Seconds, after which it is killed.
        check: Boolean, whether it must end with the code 0.

    Returns:
        What it ended with and printed, as texts.
    """
    files = [pathlib.Path(folder, f"program.{n}") for n in ("out", "err")]
    for file in files:
        file.write_text("")
    code = start(arguments, *files, cwd, env).wait(timeout)
    printed = [file.read_text() for file in files]
    assert code == 0 or not check, printed
    return subprocess.CompletedProcess(arguments, code, *printed)


@functools.cache
def _server() -> subprocess.Popen:
    server = subprocess.Popen(
        [sys.executable, "-I", str(pathlib.Path(__file__).resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.kill)
    return server


def _asked(request: dict) -> int | None:
    server = _server()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


def _serve() -> None:
    """Answers with the number of a process, or the code of its end."""
    # What is imported must not write into the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import tensorflow  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            number, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if number else None
        else:
            answer = os.fork()
            if not answer:
                answers.close()
                _run(**request)
        print(json.dumps(answer), file=answers, flush=True)


def _run(
    arguments: list[str], output: str, errors: str, cwd: str, env: dict
) -> None:
    """Becomes a program, and ends with it."""
    code = 1
    try:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        for name, file in ((output, 1), (errors, 2)):
            mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(name, mode), file)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        given = env.get("PYTHONPATH", "")
        paths = [p for p in given.split(os.pathsep) if p]
        sys.path[:0] = [cwd, *paths]
        code = _ended(*arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _ended(kind: str, program: str, *arguments: str) -> int:
    sys.argv = [kind, *arguments]
    try:
        if kind == "-m":
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            main = types.ModuleType("__main__")
            sys.modules["__main__"] = main
            exec(compile(program, "<string>", "exec"), main.__dict__)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    _serve()
