"""Pages of the site that are no files of docs/, and links that lead to them.

MkDocs calls `on_files` and `on_page_markdown`. Documents link to each other
and to files of the repository as they lie there, so that they can be read
there; what a link leads to is found from these paths.
"""

from __future__ import annotations

import pathlib
import posixpath
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The console script of MkDocs does not look there.
sys.path.insert(0, str(ROOT))

from examples import tutorial_files  # noqa: E402

# Files of the repository that are pages, and their names on the site.
_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"(\[[^\]]*\])\(([^)\s]+)\)")
_API_ROW = re.compile(r"^\| \[`([\w.]+)`\]\((\S+)\) \| (.+) \|$", re.MULTILINE)
_OPTIMIZER = r"^{name} = private_optimizer_class\(keras\.optimizers\.(\w+)\)$"
_OPTIMIZER_TEXT = """\
## `tf_dpfp.{name}` {{ #tf_dpfp.{name} }}

{words} Takes the arguments of `keras.optimizers.{base}` except
`gradient_accumulation_steps`, and those of
[`PrivateOptimizer`](#tf_dpfp.optimizers.private_optimizer.PrivateOptimizer).
"""


def _sections() -> list[tuple[str, str, str]]:
    """Lists the sections of docs/api.md: heading, page and text."""
    text = (ROOT / "docs" / "api.md").read_text()
    found = []
    for section in text.split("\n## ")[1:]:
        heading, _, body = section.partition("\n")
        name = re.sub(r"[^a-z]+", "_", heading.lower()).strip("_")
        found.append((heading, f"api/{name}.md", body))
    return found


def _api_pages() -> dict[str, str]:
    """Writes a page for each section of docs/api.md, from docstrings."""
    pages = {}
    for heading, page, body in _sections():
        entries = [_entry(*row) for row in _API_ROW.findall(body)]
        if any("PrivateOptimizer" in entry for entry in entries):
            entries.append(
                "::: tf_dpfp.optimizers.private_optimizer.PrivateOptimizer\n"
            )
        pages[page] = "\n".join([f"# {heading}\n", *entries])
    return pages


def _entry(name: str, link: str, words: str) -> str:
    source = (ROOT / "docs" / link).read_text()
    made = re.search(_OPTIMIZER.format(name=name), source, re.MULTILINE)
    if made:  # By a call, so that its docstring is not in the source.
        return _OPTIMIZER_TEXT.format(name=name, words=words, base=made[1])
    return f"::: tf_dpfp.{name}\n"


def _generated() -> dict[str, tuple[str, str]]:
    """Returns pages that are no files of docs/: origin and text of each."""
    found = {
        page: (origin, (ROOT / origin).read_text())
        for origin, page in _PAGES.items()
    }
    for path in tutorial_files.paths():
        origin = path.relative_to(ROOT).as_posix()
        text = tutorial_files.to_markdown(tutorial_files.read(path))
        found[f"tutorials/{path.stem}.md"] = origin, text
    return found


def _targets() -> dict[str, str]:
    """Maps files of the repository to pages of the site."""
    pages = {origin: page for page, (origin, _) in _generated().items()}
    pages |= {
        path.relative_to(ROOT).as_posix(): path.relative_to(
            ROOT / "docs"
        ).as_posix()
        for pattern in ("*.md", "*.png")
        for path in (ROOT / "docs").rglob(pattern)
    }
    pages |= {f"docs/{page}": page for _, page, _ in _sections()}
    return pages


def _relinked(text: str, origin: str, page: str) -> str:
    """Turns links between files of the repository into links of the site.

    Args:
        text: Markdown.
        origin: Path of the file that it is from.
        page: Page that it becomes.

    Returns:
        The text. Links to files that are no pages become their paths, as code:
        the site does not know where the repository is published.
    """
    targets = _targets()

    def replace(match: re.Match[str]) -> str:
        words, link = match.groups()
        path, mark, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link) or not path:
            return match[0]
        folder = posixpath.dirname(origin)
        file = posixpath.normpath(posixpath.join(folder, path))
        if not (ROOT / file).exists() and file not in targets:
            return match[0]  # MkDocs says that it leads nowhere.
        if file not in targets:
            return f"{words[1:-1]} (`{file}`)"
        target = posixpath.relpath(targets[file], posixpath.dirname(page))
        return f"{words}({target}{mark}{anchor})"

    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(
        part if part.startswith("```") else _LINK.sub(replace, part)
        for part in parts
    )


def _with_api_links(text: str) -> str:
    """Links the rows of docs/api.md to the pages of the API."""
    pages = {
        row: page
        for _, page, body in _sections()
        for row, _, _ in _API_ROW.findall(body)
    }
    return _API_ROW.sub(
        lambda m: f"| [`{m[1]}`]({pages[m[1]]}#tf_dpfp.{m[1]}) | {m[3]} |", text
    )


def on_config(config):
    """Fills in the parts of the navigation that are generated."""
    filled = {
        "Tutorials": [
            f"tutorials/{path.stem}.md" for path in tutorial_files.paths()
        ],
        "API": ["api.md", *_api_pages()],
    }
    for entry in config.nav:
        for name in filled.keys() & (
            entry.keys() if isinstance(entry, dict) else ()
        ):
            entry[name] = filled[name]
    return config


def on_files(files, config):
    """Adds the pages that are no files of docs/."""
    from mkdocs.structure.files import File

    pages = {page: text for page, (_, text) in _generated().items()}
    for page, text in (pages | _api_pages()).items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Makes the links of a page those of the site."""
    del config, files
    name = page.file.src_uri
    if name.startswith("api/"):
        return markdown
    if name == "api.md":
        markdown = _with_api_links(markdown)
    generated = _generated()
    origin = generated[name][0] if name in generated else f"docs/{name}"
    return _relinked(markdown, origin, name)
