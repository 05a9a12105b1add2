"""The documents say what is so: names, links, messages and code."""

import ast
import importlib
import importlib.util
import inspect
import pathlib
import re

import keras
import pytest

import tf_dpfp
from tests import trials
from tf_dpfp.independence import gradients
from tf_dpfp.per_example import rules

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])

_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_API_ROW = re.compile(r"^\| \[`([\w.]+)`\]\((\S+)\) \| (.+) \|$", re.MULTILINE)


def _prose(page):
    return _FENCED.sub("", page.read_text())


def _anchors(page):
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in headings
    }


def _section(page, heading):
    _, _, rest = page.read_text().partition(f"\n## {heading}\n")
    assert rest, f"{page.name} has no section '{heading}'"
    return rest.partition("\n## ")[0]


def _api_rows():
    return _API_ROW.findall((DOCS / "api.md").read_text())


def _found(name):
    """What a name of the reference stands for."""
    module, _, attribute = f"tf_dpfp.{name}".rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def test_the_reference_has_every_public_name_once_and_no_other():
    public = {getattr(tf_dpfp, name): name for name in tf_dpfp.__all__}
    for module in sorted(set(dir(tf_dpfp)) - {*tf_dpfp.__all__, "__version__"}):
        for name in getattr(tf_dpfp, module).__all__:
            # In the first row, or in another module: listed there.
            public.setdefault(_found(f"{module}.{name}"), f"{module}.{name}")
    listed = [_found(name) for name, _, _ in _api_rows()]
    assert len(set(listed)) == len(listed)
    missing = [public[thing] for thing in set(public) - set(listed)]
    assert missing == []
    assert set(listed) == set(public)


@pytest.mark.parametrize("name, link, words", _api_rows())
def test_the_reference_links_to_the_source_and_quotes_it(name, link, words):
    source = (DOCS / link).read_text()
    last = name.rpartition(".")[2]
    defined = rf"^(?:class |def )?{last}\b(?:\(|:| = )"
    assert re.search(defined, source, re.MULTILINE), f"{name} is not in {link}"
    # The first lines of its docstring.
    summary, _, _ = inspect.getdoc(_found(name)).partition("\n\n")
    assert words == summary
    assert words[0].isupper() and words.endswith("."), words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page):
    for link in _LINK.findall(_prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_custom_layers_lists_the_layers_that_have_a_rule():
    table = _section(DOCS / "custom_layers.md", "Layers with a rule")
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    listed = set(re.findall(r"`(\w+)`", " ".join(cells)))
    registered = {
        layer.__name__
        for layer in rules._RULES
        if layer is getattr(keras.layers, layer.__name__, None)
    }
    # An older Keras lacks some of them.
    assert {n for n in listed if hasattr(keras.layers, n)} == registered


def _text(node):
    """The literal text of a message: what its fields hold is left out."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) for value in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "\0"


def _messages():
    """The refusals and warnings of tf_dpfp, by file."""
    for path in sorted((ROOT / "tf_dpfp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.exc if isinstance(node, ast.Raise) else node
            if not isinstance(call, ast.Call):
                continue
            is_warning = ast.unparse(call.func) == "warnings.warn"
            if (is_warning or isinstance(node, ast.Raise)) and call.args:
                name = path.relative_to(ROOT / "tf_dpfp").as_posix()
                yield name, ast.unparse(call.func), _text(call.args[0])


def _strings_of_the_source():
    """Every string in tf_dpfp, the pieces of a literal joined."""
    for path in (ROOT / "tf_dpfp").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def _quoted_messages():
    page = (DOCS / "troubleshooting.md").read_text()
    return re.findall(r"^\| `+ ?(.+?) ?`+ \|", page, re.MULTILINE)


def test_troubleshooting_quotes_messages_that_exist():
    quoted = _quoted_messages()
    source = "\n".join(_strings_of_the_source())
    assert len(quoted) > 200
    assert [q for q in quoted if q not in source] == []


# Met by whoever changes tf_dpfp, not by whoever uses it.
_INTERNAL = (
    "The stamp was used already",
    "A privacy ledger has",
    "`record_calls` does not nest",
    "A step draws noise for at most",
    "expected a tensor among",
    "inputs of type",
    "has no attribute",
    # After a reason, which has a row.
    "Compile the model with jit_compile=False. Received",
)
_INTERNAL_FILES = (
    # A command with messages of its own, and tables that no user writes.
    "accounting/",
    "independence/proof.py",
    "independence/sizes.py",
)


def test_troubleshooting_has_every_message_that_does_not_explain_itself():
    quoted = _quoted_messages()
    missing = [
        (name, text)
        for name, function, text in _messages()
        # Reasons of the proof: the page has the frequent ones.
        if not function.endswith("Refusal")
        and not name.startswith(_INTERNAL_FILES)
        and not any(words in text for words in (*quoted, *_INTERNAL))
        # "`name` must be ... Received: name=" names the way out.
        and not re.search(r"`[\w\0]+`.*Received: ", text)
        # Made by a function, from sentences that are found where they are.
        and text.strip("\0 ")
    ]
    assert missing == []


# Pages whose blocks of `python` are run; those of other libraries are `py`.
_WITH_CODE = (
    "guide",
    "custom_layers",
    "correlated_noise",
    "sparse_tables",
    "recipes",
    "auditing",
    "tuning",
    "migration_tf_privacy",
    "migration_opacus",
)


def _chains():
    """A page's blocks run one after the other, those of KerasHub alone."""
    pages = [DOCS / f"{name}.md" for name in _WITH_CODE]
    for page in [*pages, ROOT / "CONTRIBUTING.md"]:
        text = page.read_text()
        chain, apart = [], []
        for block in _BLOCK.finditer(text):
            line = text.count("\n", 0, block.start(1))
            # Padded, so that a traceback shows the line of the page.
            code = compile("\n" * line + block.group(1), str(page), "exec")
            is_hub = "import keras_hub" in block.group(1)
            (apart if is_hub else chain).append(code)
        yield pytest.param(chain, id=page.name)
        if apart:
            missing = importlib.util.find_spec("keras_hub") is None
            yield pytest.param(
                apart,
                id=f"{page.name}-keras_hub",
                marks=pytest.mark.skipif(missing, reason="needs keras-hub"),
            )


@pytest.mark.parametrize("blocks", list(_chains()))
def test_the_code_runs(blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(gradients, "check", trials.once(gradients.check))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    namespace = {"__name__": "__main__"}
    for block in blocks:
        exec(block, namespace)
