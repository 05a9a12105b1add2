"""Files of rows: what is appended is read again."""

from benchmarks import json_lines


def test_a_missing_file_has_no_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert json_lines.read(str(path)) == []
    assert json_lines.read(None) == []
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert json_lines.read(str(path)) == [{"a": 1}, {"a": 2}]


def test_rows_are_printed_and_appended(tmp_path, capsys):
    path = str(tmp_path / "rows.jsonl")
    json_lines.append(path, {"a": 1})
    json_lines.append(path, {"a": None})
    json_lines.append(None, {"a": 3})
    assert json_lines.read(path) == [{"a": 1}, {"a": None}]
    assert capsys.readouterr().out.splitlines()[-1] == '{"a": 3}'
