"""What is checked and said around a training on several replicas.

Its parts are noted here in place of being run; `tests/replicas/` trains.
"""

import contextlib
import dataclasses
import threading
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import sampling
from tf_dpfp.mechanisms import dealt
from tf_dpfp.mechanisms import state as state_lib

STRATEGY = types.SimpleNamespace(num_replicas_in_sync=2)
X, Y = np.ones((4, 3), np.float32), np.array([0, 1, 1, 0])


@dataclasses.dataclass(frozen=True)
class _Plan:
    kind: object = None


class _Mechanism:
    """Notes what it is asked to do."""

    pads = "as the mechanism pads"

    def __init__(self, events):
        self.events, self.state = events, state_lib.State()
        self.model = self.optimizer = self

    def build_dealt(self, strategy, batch):
        del strategy, batch
        self.events.append("built")

    def claims(self, pipeline):
        return f"claims of {pipeline.name}"

    def check_layers(self):
        self.events.append("layers checked")

    def plan(self, *data):
        self.events.append(data)
        return _Plan()

    def ensure_ledger_open(self, kind):
        self.events.append(kind)


@pytest.fixture
def mechanism(monkeypatch):
    events = []

    def note(name, result=None):
        def noted(*args):
            del args
            events.append(name)
            return result

        return noted

    @contextlib.contextmanager
    def announced(state, claims, pieces):
        assert state is found.state
        events.append(f"{claims} announced")
        yield
        events.append("over")

    def run(name):
        def method(*args, **kwargs):
            events.append(name)
            found.given = args, kwargs
            found.said = state.fit_deals_to, state.fit_deals_in, state.dealt_to
            found.may_end = state.data_may_end
            if found.fails:
                raise InterruptedError

        return method

    found = _Mechanism(events)
    found.fails = False
    state = found.state
    replaced = {
        "batches_of": lambda *_: tf.data.Dataset.from_tensors((X, Y)),
        "steps_per_epoch": lambda *_: 1,
        "check_workers": note("workers checked"),
        "check_examples": note("examples checked"),
        "with_check": lambda callbacks, _: callbacks,
        "fitting": lambda *_: contextlib.nullcontext(),
        "dealt": lambda _, batches, weigh, pads: (batches, weigh, pads),
        "whole_batch": lambda _, batch: batch,
        "pieces_of": lambda _, batch: ("pieces", *batch),
        "build": lambda *_: (X, Y, None),
    }
    for name, function in replaced.items():
        monkeypatch.setattr(dealt.replicas, name, function)
    monkeypatch.setattr(dealt.fit_steps, "announced", announced)
    monkeypatch.setattr(state_lib, "ordinary", lambda _, name: run(name))
    keras_parts = dealt.keras_distribution
    for name in ("without_symbolic_build", "logs_of_all"):
        monkeypatch.setattr(
            keras_parts, name, lambda *_: contextlib.nullcontext()
        )
    return found


def _fit(mechanism, x=X, **kwargs):
    arguments = {"x": x, "class_weight": None, "callbacks": None}
    arguments |= {"steps_per_epoch": None, **kwargs}
    pipeline = types.SimpleNamespace(name="it", batch_size=None, cyclic=None)
    dealt.fit(mechanism, STRATEGY, pipeline, arguments)


def test_a_fit_is_built_checked_and_announced_before_it_runs(mechanism):
    _fit(mechanism, class_weight={0: 1.0, 1: 2.0})
    assert mechanism.events == [
        "built",
        "workers checked",
        "examples checked",
        "claims of it announced",
        "fit",
        "over",
    ]
    ((_, _, pads),), arguments = mechanism.given
    assert pads == mechanism.pads
    # Weighed in the batches already; a second time would count double.
    assert arguments["class_weight"] is None
    assert arguments["shuffle"] is False and "x" not in arguments


class _Data(keras.utils.PyDataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return X, Y


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("x", "may_end"),
    [(X, False), (_Data(), True), (((X, Y) for _ in range(2)), True)],
    ids=["arrays", "PyDataset", "generator"],
)
def test_the_loop_of_fit_alone_is_given_pieces(mechanism, x, may_end, fails):
    state = mechanism.state
    state.fit_deals_to, state.fit_deals_in = 7, ("another", 1)
    mechanism.fails = fails
    with pytest.raises(InterruptedError) if fails else contextlib.nullcontext():
        _fit(mechanism, x)
    # The loop that is about to begin, in this thread.
    assert mechanism.said == (2, (threading.get_ident(), 1), 1)
    assert mechanism.may_end is may_end
    assert (state.fit_deals_to, state.fit_deals_in) == (7, ("another", 1))
    assert state.data_may_end is False


def test_one_batch_is_dealt_in_pieces(mechanism):
    arguments = {"x": X, "y": Y, "sample_weight": None, "class_weight": None}
    arguments["return_dict"] = False
    dealt.train_on_batch(mechanism, STRATEGY, arguments)
    assert mechanism.events == ["built", "train_on_batch"]
    pieces, x, y, weights = mechanism.given[0]
    assert pieces == "pieces" and x is X and y is Y and weights is None
    assert mechanism.said == (2, (threading.get_ident(), 0), 2)
    assert mechanism.state.fit_deals_to == 1
    arguments |= {"sample_weight": Y, "class_weight": {0: 1.0, 1: 2.0}}
    with pytest.raises(ValueError, match="An example has one weight"):
        dealt.train_on_batch(mechanism, STRATEGY, arguments)


@pytest.mark.parametrize("kind", [None, accounting.ViewSums(5)])
def test_the_ledger_is_opened_for_what_the_batches_join(mechanism, kind):
    batch = (tf.TensorSpec([None, 3]), tf.TensorSpec([None]))
    if kind is not None:
        of_views = tf.TensorSpec([None, kind.views])
        batch = sampling.ViewBatch(of_views, of_views, of_views)
    plan = dealt.build(mechanism, STRATEGY, batch)
    assert plan == _Plan(kind)
    assert mechanism.events[0] == "layers checked"
    assert mechanism.events[-1] == kind
