"""Runs a program in several processes that train together over loopback."""

import contextlib
import json
import os
import pathlib
import socket
import time

from tests import programs

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def run(module, folder, *arguments, workers=2, timeout=240, grace=20):
    """Runs a module once for every worker; none of them is left behind.

    Args:
        module: What to run; gets its index and then the arguments.
        folder: Where the output goes.
        *arguments: Further arguments.
        workers: Number of processes.
        timeout: Seconds for all of them.
        grace: Seconds for the others once one has died.

    Returns:
        For each, its exit code and what it wrote.
    """
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(workers)]
    logs = [pathlib.Path(folder, f"worker{i}.log") for i in range(workers)]
    processes = []
    try:
        for index, log in enumerate(logs):
            config = {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            }
            log.write_text("")
            processes.append(
                programs.start(
                    ["-m", module, str(index), *arguments],
                    log,
                    cwd=_ROOT,
                    env=os.environ | {"TF_CONFIG": json.dumps(config)},
                )
            )
        _wait(processes, timeout, grace)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [
        (process.returncode, log.read_text())
        for process, log in zip(processes, logs, strict=True)
    ]


def _wait(processes, timeout, grace):
    end = time.monotonic() + timeout
    while any(process.poll() is None for process in processes):
        if time.monotonic() > end:
            return
        if any(process.poll() not in (None, 0) for process in processes):
            end = min(end, time.monotonic() + grace)
            grace = timeout
        time.sleep(0.1)
