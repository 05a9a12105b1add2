"""The wheel holds the whole package and works without the checkout."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from tests import programs
from tf_dpfp.version import __version__

ROOT = pathlib.Path(__file__).resolve().parent.parent
# All that a build reads; a build leaves files beside it.
SOURCES = ("LICENSE", "README.md", "pyproject.toml", "setup.cfg")

# Imports every module of the package that is first on the path.
PROGRAM = """
import importlib, importlib.metadata, json, pkgutil
import tf_dpfp

names = [
    module.name
    for module in pkgutil.walk_packages(tf_dpfp.__path__, "tf_dpfp.")
    if not module.name.endswith(".__main__")
]
for name in names:
    importlib.import_module(name)
print(json.dumps({
    "file": tf_dpfp.__file__,
    "version": tf_dpfp.__version__,
    "metadata": importlib.metadata.version("tf_dpfp"),
    "names": names,
}))
"""


def _pip(*arguments, cwd):
    subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        cwd=cwd,
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with nothing but what the wheel installs."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        shutil.copy(ROOT / name, checkout)
    shutil.copytree(
        ROOT / "tf_dpfp",
        checkout / "tf_dpfp",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    wheels = tmp_path_factory.mktemp("wheels")
    folder = tmp_path_factory.mktemp("site")
    # The environment's own setuptools: nothing is fetched.
    build = ("wheel", "--no-deps", "--no-build-isolation", "--quiet")
    _pip(*build, f"--wheel-dir={wheels}", ".", cwd=checkout)
    (wheel,) = wheels.iterdir()
    assert wheel.name == f"tf_dpfp-{__version__}-py3-none-any.whl"
    install = ("install", "--no-deps", "--no-index", "--quiet")
    _pip(*install, f"--target={folder}", str(wheel), cwd=wheels)
    return folder


def _files(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in (folder / "tf_dpfp").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }


def test_the_wheel_holds_every_file_of_the_package(site):
    assert _files(site) == _files(ROOT)
    assert "tf_dpfp/py.typed" in _files(site)


def test_the_wheel_brings_nothing_else(site):
    metadata = f"tf_dpfp-{__version__}.dist-info"
    assert {path.name for path in site.iterdir()} == {"tf_dpfp", metadata}


def test_every_module_of_the_wheel_can_be_imported(site):
    run = programs.run(
        ["-c", PROGRAM],
        site.parent,
        cwd=site.parent,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert pathlib.Path(found["file"]).is_relative_to(site)
    assert found["version"] == found["metadata"] == __version__
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in _files(ROOT)
        if path.endswith(".py") and not path.endswith("__main__.py")
    }
    assert set(found["names"]) == modules - {"tf_dpfp"}
