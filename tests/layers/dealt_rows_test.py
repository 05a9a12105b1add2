"""Rows on several replicas: who deals them, their noise, their number."""

import threading

import pytest
import tensorflow as tf

from tests.replicas import common
from tf_dpfp.distribute import replicas
from tf_dpfp.layers import dealt_rows


def test_pieces_are_those_of_one_thread_while_it_deals(monkeypatch):
    dealt_rows.check_dealt("rows")
    monkeypatch.setattr(replicas, "count", lambda: 2)

    def is_refused():
        with pytest.raises(ValueError, match="'rows' trains on one replica"):
            dealt_rows.check_dealt("rows")
        seen.append(True)

    seen = []
    is_refused()
    with pytest.raises(KeyError):
        with dealt_rows.dealt():
            dealt_rows.check_dealt("rows")
            with dealt_rows.dealt():
                pass
            dealt_rows.check_dealt("rows")
            thread = threading.Thread(target=is_refused)
            thread.start()
            thread.join()
            raise KeyError
    is_refused()
    assert len(seen) == 3


def test_replicas_have_numbers_of_their_own_and_count_all_rows():
    assert (dealt_rows.number(), dealt_rows.total(5)) == (0, 5)
    strategy = common.strategy(2)

    @tf.function
    def run():
        def one():
            number = dealt_rows.number()
            return number, dealt_rows.total(3 + number)

        return strategy.run(one)

    numbers, totals = map(strategy.experimental_local_results, run())
    assert sorted(map(int, numbers)) == [0, 1]
    assert [int(t) for t in totals] == [7, 7]
