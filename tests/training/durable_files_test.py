"""A kill at any time leaves the old file whole, or the new one."""

import os

import pytest

from tf_dpfp.training import durable_files


@pytest.fixture
def calls(monkeypatch):
    """Calls that reach the disk, with the names of their files."""
    found = []
    names = {}

    def watch(name):
        ordinary = getattr(os, name)

        def call(first, *args, **kwargs):
            result = ordinary(first, *args, **kwargs)
            shown = names.get(first, os.path.basename(str(first)))
            if name == "open":
                names[result] = shown
            else:
                found.append((name, shown))
            return result

        monkeypatch.setattr(os, name, call)

    for name in ("open", "fsync", "replace"):
        watch(name)
    return found


def test_a_file_is_written_beside_forced_and_renamed(tmp_path, calls):
    path = tmp_path / "file"
    path.write_text("old")
    seen = []

    def write(beside):
        # In the same folder, or the rename would be no rename.
        assert beside.parent == tmp_path and beside != path
        beside.write_text("new")
        seen.append(path.read_text())

    durable_files.replace(path, write)
    assert seen == ["old"] and path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]
    # Renamed before it is on the disk, it may be empty after a crash; and the
    # name is in the folder, which is forced last.
    assert calls == [
        ("fsync", ".writing.file"),
        ("replace", ".writing.file"),
        ("fsync", tmp_path.name),
    ]


def test_writing_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(beside):
        beside.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        durable_files.replace(path, write)
    assert path.read_text() == "old"

    def look(beside):
        assert not beside.exists()
        beside.write_text("new")

    # What was left beside is no part of the next one.
    durable_files.replace(path, look)
    assert path.read_text() == "new"


def test_lines_are_on_the_disk_when_the_call_returns(
    tmp_path, calls, monkeypatch
):
    path = tmp_path / "file"
    watched, forced = os.fsync, []

    def fsync(descriptor):
        # Whatever is still in a buffer of Python is forced by nobody.
        forced.append(path.read_text())
        watched(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    durable_files.append(path, "one")
    assert "one" in forced[0]
    # Of a new file the name, too.
    assert [name for name, _ in calls] == ["fsync", "fsync"]
    assert calls[1] == ("fsync", tmp_path.name)
    # A line that was cut off does not swallow the next one.
    with path.open("a") as file:
        file.write("cut")
    calls.clear()
    durable_files.append(path, "two")
    assert [name for name, _ in calls] == ["fsync"]
    lines = path.read_text().split("\n")
    assert [line for line in lines if line] == ["one", "cut", "two"]


def test_removing_and_making_are_for_good(tmp_path, calls):
    path = tmp_path / "file"
    durable_files.remove(path)
    path.touch()
    calls.clear()
    durable_files.remove(path)
    assert not path.exists()
    assert calls == [("fsync", tmp_path.name)]
    calls.clear()
    durable_files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert calls == [("fsync", "a")]
    calls.clear()
    durable_files.make_folder(tmp_path / "a")
    assert not calls
