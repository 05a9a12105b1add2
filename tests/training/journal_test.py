"""What a journal says after a kill, and after a crash of the machine."""

import dataclasses
import os
import threading

import pytest

from tf_dpfp import accounting
from tf_dpfp.training import durable_files
from tf_dpfp.training import journal as journal_lib

_KNOWN = accounting.LedgerEntry(accounting.PoissonSampling(0.25), 1.0, 7)
_STEP = dataclasses.replace(_KNOWN, steps=1)
_OTHER = accounting.LedgerEntry(accounting.UnknownSampling(), 1.0, 2)


def _counts(folder):
    """What a new process finds: steps of both kinds."""
    counts = {True: 0, False: 0}
    for entry in journal_lib.Journal(folder).entries():
        same = entry.sampling == _KNOWN.sampling
        assert same or entry.sampling == _OTHER.sampling
        assert entry.noise_multiplier == 1.0
        counts[same] += entry.steps
    return counts[True], counts[False]


@pytest.fixture
def journal(tmp_path):
    made = journal_lib.Journal(tmp_path / "ledger")
    made.reserve(lambda: [_KNOWN], [_STEP], 5)
    yield made
    made.close(ended=False)


@pytest.fixture
def crashed(monkeypatch):
    """Starts the machine anew."""
    return lambda: monkeypatch.setattr(journal_lib, "_boot", lambda: "another")


def test_no_journal_is_no_step(tmp_path):
    assert journal_lib.Journal(tmp_path / "ledger").entries() == []


def test_a_kill_counts_the_steps_that_began(journal, tmp_path):
    assert _counts(tmp_path / "ledger") == (7, 0)
    assert journal.begin(2) and journal.begin(1)
    assert _counts(tmp_path / "ledger") == (10, 0)


def test_more_than_was_reserved_is_refused_and_not_noted(journal, tmp_path):
    assert journal.begin(5)
    assert not journal.begin(1)
    assert _counts(tmp_path / "ledger") == (12, 0)


@pytest.mark.parametrize("boot", ["another", ""])
def test_a_crash_counts_what_was_reserved(journal, tmp_path, monkeypatch, boot):
    journal.begin(2)
    # Without a name of its start, no machine can be told from another.
    monkeypatch.setattr(journal_lib, "_boot", lambda: boot)
    assert _counts(tmp_path / "ledger") == (12, 0)


def test_a_machine_that_names_no_start_counts_what_was_reserved(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(journal_lib, "_BOOT", tmp_path / "none")
    journal = journal_lib.Journal(tmp_path / "ledger")
    journal.reserve(lambda: [_KNOWN], [_STEP], 5)
    journal.begin(2)
    journal.close(ended=False)
    assert _counts(tmp_path / "ledger") == (12, 0)


@pytest.mark.parametrize("left", [None, b"", b"torn"])
def test_a_lost_count_is_what_was_reserved(journal, tmp_path, left):
    journal.begin(2)
    path = tmp_path / "ledger" / "steps"
    path.unlink()
    if left is not None:
        path.write_bytes(left)
    assert _counts(tmp_path / "ledger") == (12, 0)


def test_a_kill_within_a_reservation_leaves_the_one_before(
    journal, tmp_path, monkeypatch
):
    journal.begin(2)
    journal.note(_OTHER)

    def killed(*_):
        raise KeyboardInterrupt

    for name in ("write_text", "replace"):
        with monkeypatch.context() as patch:
            if name == "replace":
                patch.setattr(os, "replace", killed)
            else:
                patch.setattr(durable_files, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                journal.reserve(
                    lambda: [dataclasses.replace(_KNOWN, steps=9), _OTHER],
                    [_STEP],
                    5,
                )
        assert _counts(tmp_path / "ledger") == (9, 2)
        # The same number is taken by the next try of a new process.
        journal.close(ended=False)
        journal = journal_lib.Journal(tmp_path / "ledger")
        assert sum(e.steps for e in journal.entries()) == 11


def test_a_new_reservation_holds_what_ran(journal, tmp_path):
    journal.begin(2)
    journal.note(_OTHER)
    ledger = [dataclasses.replace(_KNOWN, steps=9), _OTHER]
    journal.reserve(lambda: ledger, [_STEP], 3)
    assert _counts(tmp_path / "ledger") == (9, 2)
    journal.begin(3)
    assert _counts(tmp_path / "ledger") == (12, 2)


def test_steps_that_were_not_reserved_are_on_the_disk(
    journal, tmp_path, crashed
):
    journal.begin(1)
    journal.note(_OTHER)
    journal.note(_STEP)
    assert _counts(tmp_path / "ledger") == (9, 2)
    # A line that a kill has cut off: its step did not begin.
    with (tmp_path / "ledger" / "others").open("a") as file:
        file.write('{"number": 1, "ro')
    journal.note(_OTHER)
    assert _counts(tmp_path / "ledger") == (9, 4)
    crashed()
    assert _counts(tmp_path / "ledger") == (13, 4)


def test_notes_of_a_reservation_before_are_not_counted_twice(journal, tmp_path):
    journal.note(_OTHER)
    others = tmp_path / "ledger" / "others"
    before = others.read_bytes()
    journal.reserve(lambda: [_KNOWN, _OTHER], [_STEP], 5)
    # A kill after the new record was there, before the notes were gone.
    others.write_bytes(before)
    assert _counts(tmp_path / "ledger") == (7, 2)


def test_a_step_that_still_runs_in_another_thread_stays_noted(
    journal, tmp_path
):
    noted, counted = threading.Event(), threading.Event()

    def step():
        journal.note(_OTHER)
        noted.set()
        counted.wait()

    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    noted.wait()
    # The ledger does not have it yet, whatever is reserved meanwhile.
    found = []
    for _ in range(2):
        journal.reserve(lambda: [_KNOWN], [_STEP], 5)
        found.append(_counts(tmp_path / "ledger"))
    counted.set()
    thread.join()
    assert found == [(7, 2)] * 2
    journal.reserve(lambda: [_KNOWN, _OTHER], [_STEP], 5)
    assert _counts(tmp_path / "ledger") == (7, 2)


def test_the_end_of_a_training_deletes_it(journal, tmp_path):
    journal.begin(2)
    journal.note(_OTHER)
    journal.close(ended=False)
    assert _counts(tmp_path / "ledger") == (9, 2)
    journal.close(ended=True)
    assert not (tmp_path / "ledger").exists()


def test_what_is_no_journal_is_refused(journal, tmp_path):
    for text in ("{", "[]", '{"ledger": []}'):
        (tmp_path / "ledger" / "journal.json").write_text(text)
        with pytest.raises(ValueError, match="can't be read"):
            journal_lib.Journal(tmp_path / "ledger").entries()
