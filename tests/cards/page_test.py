"""docs/card.md shows the card that its code makes."""

import pathlib
import re

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "card.md"
# Of the day on which the page was written.
_OF_THE_DAY = re.compile(
    r"^\| (?:python|[a-z_-]+|source of .*) \| \S+ \|\n", re.M
)


def _rounded(text):
    """The last digits of a PLD's epsilon hang on the processor."""
    return re.sub(r"\d+\.\d{9,}", lambda m: f"{float(m[0]):.8g}", text)


def _blocks(kind):
    text = PAGE.read_text()
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S)


def test_the_page_shows_what_its_code_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in _blocks("python"):
        exec(block, namespace)
    card = namespace["card"]
    printed = capsys.readouterr().out
    assert card.to_markdown() in printed
    assert "has no privacy card" in printed
    (shown,) = _blocks("markdown")
    code = shown.index("## Data and code")
    assert shown[:code] in card.to_markdown()
    assert len(_OF_THE_DAY.findall(shown[code:])) >= 8
    (front,) = _blocks("yaml")
    model_card = card.to_model_card(license="apache-2.0")
    assert _rounded(model_card).startswith(_rounded(front))
