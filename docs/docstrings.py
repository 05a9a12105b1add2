"""Docstrings on the pages of the API: sessions of Python become code."""

import re

import griffe

# From the first prompt to the next blank line.
_SESSION = re.compile(r"^( *)>>> .*(?:\n(?! *$).+)*", re.MULTILINE)


def fenced(docstring: str) -> str:
    """Puts fences around sessions of Python, which Markdown would quote."""
    return _SESSION.sub(
        lambda match: f"{match[1]}```python\n{match[0]}\n{match[1]}```",
        docstring,
    )


class FencedDoctests(griffe.Extension):
    """Changes docstrings as they are read."""

    def on_object(self, *, obj, **_):
        """Puts fences into the docstring of an object that has one."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
