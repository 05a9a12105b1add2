import json

import pytest

from examples import tutorial_files

_TUTORIAL = '''"""
Title: A title
Author: Somebody
Last modified: 2026/11/29
Description: What it shows.
"""

"""
## First

Words with `code`.
"""

x = 1
y = """no cell"""

"""
Between
"""


def f():
    """A docstring."""
    return x + 1


z = f()
'''


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(_TUTORIAL)
    return path


def test_strings_at_the_top_are_markdown_and_the_rest_is_code(path):
    tutorial = tutorial_files.read(path)
    assert tutorial.header["Title"] == "A title"
    assert [cell.is_code for cell in tutorial.cells] == [
        False,
        True,
        False,
        True,
    ]
    assert tutorial.cells[0].text == "## First\n\nWords with `code`."
    assert tutorial.cells[1].text == 'x = 1\ny = """no cell"""'


def test_the_code_of_the_cells_does_what_the_script_does(path):
    cells = tutorial_files.to_notebook(tutorial_files.read(path))["cells"]
    namespace = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    assert namespace["z"] == 2 and namespace["y"] == "no cell"


def test_a_page_has_the_code_in_fences(path):
    page = tutorial_files.to_markdown(tutorial_files.read(path))
    assert page.startswith("# A title\n\nWhat it shows.\n")
    assert "```python\nx = 1\n" in page and "\nBetween\n" in page


def test_a_file_without_a_header_is_refused(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="does not begin with a header"):
        tutorial_files.read(path)


@pytest.mark.parametrize(
    "path",
    tutorial_files.paths(),
    ids=lambda path: path.stem,
)
def test_every_tutorial_is_a_notebook(path):
    tutorial = tutorial_files.read(path)
    assert set(tutorial.header) >= {
        "Title",
        "Author",
        "Date created",
        "Last modified",
        "Description",
    }
    notebook = json.loads(json.dumps(tutorial_files.to_notebook(tutorial)))
    kinds = [cell["cell_type"] for cell in notebook["cells"]]
    assert kinds[0] == "markdown" and kinds.count("code") > 2
    assert notebook["nbformat"] == 4
