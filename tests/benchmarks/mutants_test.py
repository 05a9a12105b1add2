"""Mutants: what is changed, and what is no change of the code."""

import ast

import pytest

from benchmarks import mutants


def test_a_list_names_changes_by_their_text_and_place(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(
        "# Rates.\n[noise/chain.py]\na = 1 => a = 2\n\n"
        "[x.py] a_test.py b_test.py::c\n2@ b\\n => \n[b] => [c]\n"
    )
    first, second, third = mutants.listed(path)
    assert first.tests == mutants.TESTS["noise/chain.py"]
    assert first.applied("a = 1\nb = a\n") == "a = 2\nb = a\n"
    assert second.tests == ("a_test.py", "b_test.py::c")
    assert second.applied("b\nc\nb\nb\n") == "b\nc\nb\n"
    assert third.applied("a[b]") == "a[c]"
    for text in ("a = 3", "a = 1; a = 1"):
        with pytest.raises(ValueError, match="once or by its place"):
            first.applied(text)


@pytest.mark.parametrize(
    "code",
    [
        "Release = Sums | accounting.Labels | None",
        "x = tf.ensure_shape(x, [2, None])",
        "def f(x: int | None = None) -> str | None:\n    return x",
        "x = tf.minimum(x, y)",
    ],
)
def test_what_is_no_bug_is_no_mutant(code):
    words = [m.change for m in mutants.mutants_of("a.py", code)]
    assert not [w for w in words if "exchanged" in w or "Bit" in w], words


def test_changes_are_those_of_bugs():
    code = "def f(x, y):\n    if x < y:\n        x += max(y - 1, 2)\n"
    found = mutants.mutants_of("a.py", code)
    texts = {mutants.text_of(m, code) for m in found}
    assert len(texts) == len(found) > 6
    assert all(ast.parse(text) for text in texts)
    assert any("x <= y" in text for text in texts)
    assert any("min(y - 1, 2)" in text for text in texts)
