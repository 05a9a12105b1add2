"""The documents build as a site in which every link leads somewhere."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import tf_dpfp

pytest.importorskip("mkdocs", reason="needs tf_dpfp[docs]")
pytest.importorskip("mkdocstrings_handlers.python")

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"]
        + ["--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_public_name_is_on_a_page_with_its_arguments(site):
    pages = "".join(p.read_text() for p in (site / "api").glob("*.html"))
    ids = set(re.findall(r'id="tf_dpfp\.([\w.]+)"', pages))
    assert [name for name in tf_dpfp.__all__ if name not in ids] == []
    assert "auditing.audit" in ids and "accounting.LedgerEntry" in ids
    # Sections of docstrings were understood.
    assert "Parameters:" in pages and "Args:" not in pages


def test_tutorials_are_pages_with_code_and_the_readme_is_the_first(site):
    for path in (ROOT / "examples" / "tutorials").glob("[!_]*.py"):
        page = (site / "tutorials" / f"{path.stem}.html").read_text()
        assert page.count("<pre") > 3, path.name
    assert "Add three lines to a Keras script" in (
        site / "index.html"
    ).read_text().replace("\n", " ")


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|img)[^>]+src="(https?:[^"]+)"', page.read_text()
        )
        assert fetched == [], page.name
