"""Mutants of the code that guards privacy, and the tests that notice them.

Each mutant has one small change of the syntax tree: another comparison, sign
or number, a statement left out, two arguments exchanged. The test files that
mirror the changed file run against a copy of the package that has it. A mutant
that they don't notice survives: it is equivalent, or a test is missing.

    python -m benchmarks.mutation --mutants=150 --seed=0 --output=mutants.jsonl
    python -m benchmarks.mutation --files=noise/gaussian.py --mutants=20
    python -m benchmarks.mutation --list=benchmarks/privacy_mutants.txt

A list holds mutants that were chosen by hand, since they change privacy: under
the name of a file, and of tests if they are others than below, one change in
each line.

    [accounting/searches.py] accounting/searches_test.py
    of_run - hats => of_run + hats
    2@ rate = 1.0 => rate = 0.5

`2@` is the second place of the text; without a number there must be one only.
`\n` is the end of a line.

TensorFlow is imported once. Every mutant is tested in a process that is forked
from there, within a limit of CPU time. A file of results is resumed. Not on
Windows, which does not fork.
"""

import ast
import collections
import json
import os
import pathlib
import random
import resource
import shutil
import sys
import tempfile
from collections.abc import Sequence

from absl import app
from absl import flags

from benchmarks import mutants as mutants_lib

_MUTANTS = flags.DEFINE_integer("mutants", 150, "Number of mutants.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the choice.")
_FILES = flags.DEFINE_list("files", None, "Files of tf_dpfp; default: all.")
_OUTPUT = flags.DEFINE_string("output", None, "File to write and resume.")
_LINES = flags.DEFINE_list("lines", None, "Only mutants of these lines.")
_LIST = flags.DEFINE_string("list", None, "File of mutants chosen by hand.")
_SLACK = flags.DEFINE_integer("slack", 20, "CPU seconds beside thrice as long.")


def run_tests(tree: pathlib.Path, tests: Sequence[str], limit: int) -> str:
    """Runs test files on a copy of the project, in a process of its own.

    Args:
        tree: Folder of the copy.
        tests: Test files, relative to the folder of tests.
        limit: CPU seconds.

    Returns:
        "survived", "killed", "timeout", or "failed" if pytest did not run.
    """
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            is_limit = os.WTERMSIG(status) in (24, 9)
            return "timeout" if is_limit else "killed"
        code = os.WEXITSTATUS(status)
        # An import that fails is noticed, too.
        return {0: "survived", 1: "killed", 2: "killed"}.get(code, "failed")
    try:
        import pytest

        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os.environ["PYTHONPATH"] = str(tree)
        for name in [m for m in sys.modules if m.startswith("tf_dpfp")]:
            del sys.modules[name]
        files = [f"tests/{test}" for test in tests]
        options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly"]
        code = int(pytest.main([*options, *files]))
    except BaseException:  # noqa: BLE001
        code = 2
    os._exit(code)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _copied(folder: pathlib.Path) -> pathlib.Path:
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("tf_dpfp", "tests", "benchmarks", "examples", "docs"):
        shutil.copytree(mutants_lib.ROOT / name, folder / name, ignore=ignored)
    for path in mutants_lib.ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    return folder


def chosen(
    files: Sequence[str], count: int, seed: int, lines: Sequence[str] | None
) -> list[mutants_lib.Mutant]:
    """Chooses mutants: as many of each file as of any other, if it has them.

    Args:
        files: Files of the package.
        count: Number of mutants.
        seed: Seed of the choice.
        lines: Lines of code to choose from; `None`: all.

    Returns:
        The mutants, file by file.
    """
    generator = random.Random(seed)
    by_file = {}
    for file in files:
        found = mutants_lib.mutants_of(
            file, (mutants_lib.ROOT / "tf_dpfp" / file).read_text()
        )
        if lines:
            found = [m for m in found if str(m.line) in lines]
        generator.shuffle(found)
        by_file[file] = found
    picked: list[mutants_lib.Mutant] = []
    while len(picked) < count and any(by_file.values()):
        for file in files:
            if by_file[file] and len(picked) < count:
                picked.append(by_file[file].pop())
    return sorted(picked, key=lambda m: (files.index(m.file), m.number))


def _imported() -> None:
    """Imports what takes long, once; no tensor is made before a fork."""
    import dp_accounting  # noqa: F401
    import hypothesis  # noqa: F401
    import keras  # noqa: F401
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import tensorflow as tf  # noqa: F401


def main(_: Sequence[str]) -> None:
    """Tests mutants and prints killed and all, by file."""
    files = _FILES.value or list(mutants_lib.TESTS)
    mutants: Sequence[mutants_lib.Mutant | mutants_lib.Listed]
    if _LIST.value:
        mutants = mutants_lib.listed(pathlib.Path(_LIST.value))
        if _FILES.value:
            mutants = [m for m in mutants if m.file in files]
    else:
        mutants = chosen(files, _MUTANTS.value, _SEED.value, _LINES.value)
    output = pathlib.Path(_OUTPUT.value) if _OUTPUT.value else None
    known = {}
    if output is not None and output.exists():
        records = map(json.loads, output.read_text().splitlines())
        known = {record["mutant"]: record["result"] for record in records}
    _imported()
    results: dict[str, collections.Counter] = {}
    limits: dict[tuple[str, ...], int] = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = _copied(pathlib.Path(folder))
        for mutant in mutants:
            result = known.get(mutant.name)
            if result is None:
                result = _tested(tree, mutant, limits)
                print(f"{result:9} {mutant.name}", flush=True)
                if output is not None:
                    with output.open("a") as written:
                        record = {"mutant": mutant.name, "result": result}
                        written.write(json.dumps(record) + "\n")
            results.setdefault(mutant.file, collections.Counter())[result] += 1
    for file, counts in results.items():
        print(f"| `{file}` | {counts['killed']} / {sum(counts.values())} |")


def _tested(
    tree: pathlib.Path,
    mutant: mutants_lib.Mutant | mutants_lib.Listed,
    limits: dict[tuple[str, ...], int],
) -> str:
    path = tree / "tf_dpfp" / mutant.file
    ordinary = path.read_text()
    try:
        if isinstance(mutant, mutants_lib.Listed):
            tests, changed = mutant.tests, mutant.applied(ordinary)
        else:
            tests, changed = (
                mutants_lib.TESTS[mutant.file],
                mutants_lib.text_of(mutant, ordinary),
            )
    except ValueError:
        return "gone"  # The code has changed since it was listed.
    ast.parse(changed)
    if tests not in limits:
        before = _cpu_seconds()
        result = run_tests(tree, tests, 3600)
        if result != "survived":
            raise RuntimeError(
                f"Tests fail without a mutant. Received: {tests}"
            )
        seconds = _cpu_seconds() - before
        print(f"{mutant.file}: {seconds:.0f} s of CPU", flush=True)
        limits[tests] = int(3 * seconds) + _SLACK.value
    path.write_text(changed)
    try:
        return run_tests(tree, tests, limits[tests])
    finally:
        path.write_text(ordinary)


if __name__ == "__main__":
    app.run(main)
