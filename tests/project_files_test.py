"""CITATION.cff and the hooks of pre-commit say what the project does."""

import pathlib
import re

from tf_dpfp.version import __version__

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_the_citation_has_the_version_of_the_package():
    text = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", text, re.MULTILINE) == [__version__]


def test_the_changelog_begins_with_the_version_of_the_package():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(.+?)\]", text, re.MULTILINE)[0] == __version__


def test_the_hooks_fetch_nothing():
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"^ +- repo: (.+)$", text, re.MULTILINE) == ["local"]
    hooks = text.count("- id: ")
    assert text.count("language: system") == hooks > 0


def test_make_lint_runs_every_tool_of_the_hooks():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    _, _, lint = (ROOT / "Makefile").read_text().partition("\nlint:")
    lint, _, _ = lint.partition("\n\n")
    tools = re.findall(r"entry: \.venv/bin/(\w+(?: \w+)?)", hooks)
    assert len(tools) == hooks.count("- id: ")
    assert [tool for tool in tools if f"/{tool}" not in lint] == []
