import ast
import pathlib
import shutil
import subprocess
from collections import Counter

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The main program of every py_test, so the one file of more than one target.
RUNNER = "tests/run_pytest.py"


def _glob(patterns, exclude=()):
    def matches(several):
        return {
            path.relative_to(ROOT).as_posix()
            for pattern in several
            for path in ROOT.glob(pattern)
            if path.is_file()
        }

    return sorted(matches(patterns) - matches(exclude))


@pytest.fixture(scope="module")
def targets():
    """The rules of the BUILD file, as a list of (kind, arguments).

    What it uses of Bazel's language is Python, so Python reads it.
    """
    rules = []

    def rule(kind):
        return lambda **arguments: rules.append((kind, arguments))

    kinds = ("py_library", "py_binary", "py_test")
    environment = {kind: rule(kind) for kind in kinds}
    environment |= {
        "glob": _glob,
        "package": lambda **_: None,
        "licenses": lambda _: None,
        "exports_files": lambda _: None,
    }
    exec(compile((ROOT / "BUILD").read_text(), "BUILD", "exec"), environment)
    return rules


@pytest.fixture(scope="module")
def by_name(targets):
    return {arguments["name"]: arguments for _, arguments in targets}


def _python_files():
    """Every Python file of the repository, none of an environment in it."""
    environments = {path.parent for path in ROOT.glob("*/pyvenv.cfg")}
    skipped = {"build", "dist", "node_modules"}
    for path in ROOT.rglob("*.py"):
        relative = path.relative_to(ROOT)
        top = relative.parts[0]
        if top.startswith(".") or top in skipped or top.startswith("bazel-"):
            continue
        if ROOT / top not in environments:
            yield relative.as_posix()


def _imported_modules(path):
    """Dotted names of what a file imports, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _closure(by_name, name):
    """The target and what it depends on, directly or not."""
    found, waiting = set(), [name]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            deps = by_name[name].get("deps", [])
            waiting += [label.removeprefix(":") for label in deps]
    return found


def _has_main(path):
    return any(
        isinstance(node, ast.If)
        and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in ast.parse((ROOT / path).read_text()).body
    )


def test_every_python_file_is_in_exactly_one_target(targets):
    listed = Counter(
        source for _, arguments in targets for source in arguments["srcs"]
    )
    runs = listed.pop(RUNNER)
    assert runs == sum(kind == "py_test" for kind, _ in targets)
    assert {path for path, count in listed.items() if count > 1} == set()
    assert set(listed) == set(_python_files()) - {RUNNER}


def test_listed_files_and_dependencies_exist(targets, by_name):
    for _, arguments in targets:
        for path in arguments["srcs"] + arguments.get("data", []):
            assert (ROOT / path).is_file(), (arguments["name"], path)
        for label in arguments.get("deps", []):
            assert label[0] == ":" and label[1:] in by_name, label
        assert arguments.get("main", RUNNER) in arguments["srcs"] + [RUNNER]


def test_names_are_unique(targets, by_name):
    assert len(targets) == len(by_name)


def test_no_library_is_empty(targets):
    empty = [
        arguments["name"]
        for kind, arguments in targets
        if kind == "py_library" and not arguments["srcs"]
    ]
    assert empty == []


def test_dependencies_have_no_cycle(by_name):
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for label in by_name[name].get("deps", []):
                visit(label[1:], [*path, name])
            done.add(name)

    for name in by_name:
        visit(name, [])


def test_imports_stay_within_the_dependencies(targets, by_name):
    """So the folders of tf_dpfp/ import downwards, as the list there says."""
    owner = {
        source.removesuffix(".py").removesuffix("/__init__"): arguments["name"]
        for _, arguments in targets
        for source in arguments["srcs"]
        if source != RUNNER
    }
    strays = []
    for _, arguments in targets:
        allowed = _closure(by_name, arguments["name"])
        for source in set(arguments["srcs"]) - {RUNNER}:
            for module in _imported_modules(source):
                # `a.b.name`: the module a/b/name, or a name in a/b.
                path = module.replace(".", "/")
                target = owner.get(path) or owner.get(path.rpartition("/")[0])
                if target is not None and target not in allowed:
                    strays.append(f"{source} imports {module} of :{target}")
    assert strays == []


def test_binaries_can_be_run_and_nothing_else(targets):
    for kind, arguments in targets:
        for source in arguments["srcs"]:
            if kind == "py_binary":
                assert _has_main(source), f"{source} has no main program"
            elif kind == "py_library" and not source.startswith("tests/"):
                is_main = source.endswith("/__main__.py")
                assert _has_main(source) <= is_main, f"{source} is a program"


def test_bazel_reads_the_same_targets(targets, tmp_path):
    bazel = shutil.which("bazel")
    if bazel is None:
        pytest.skip("Bazel is not installed (Debian: bazel-bootstrap)")
    query = subprocess.run(
        [
            bazel,
            "--batch",  # Leaves no server behind.
            "--nohome_rc",
            f"--output_user_root={tmp_path}",
            "query",
            "--output=label_kind",
            "//...",
        ],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert query.returncode == 0, query.stderr
    expected = {
        f"{kind} rule //:{arguments['name']}" for kind, arguments in targets
    }
    assert set(query.stdout.split("\n")) - {""} == expected
