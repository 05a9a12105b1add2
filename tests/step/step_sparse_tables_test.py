"""Which variables of a model are sparse tables, and which can't be."""

import keras
import pytest
from keras import layers

import tf_dpfp
from tf_dpfp import low_rank
from tf_dpfp.step import plan
from tf_dpfp.step import sparse_tables


def _find(names, tables, **settings):
    """Looks for tables of a model with the given layers, and a kernel first."""
    inputs = keras.Input((), dtype="int32")
    found = [table(inputs) for table in tables]
    out = layers.Dense(1)(layers.Concatenate()([*found, found[0]]))
    model = keras.Model(inputs, layers.Dense(2)(out))
    sparse = tf_dpfp.Sparse(names, **settings)
    owned = plan.owned_variables(model)
    return owned, sparse_tables.find(model, sparse, owned)


def _table(name, **kwargs):
    return layers.Embedding(4, 3, name=name, **kwargs)


def test_named_tables_are_found_at_their_places():
    tables = [_table(name) for name in ("a", "b", "c")]
    owned, found = _find(["c", "b"], tables, contribution_clip=0.25)
    assert [owned[at].layer.name for at in found.positions] == ["c", "b"]
    assert found.contribution_clip == 0.25
    assert found.names == ("c", "b")
    assert sparse_tables.find(None, None, owned) is None


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"embeddings_regularizer": "l2"}, "has a regularizer"),
        ({"embeddings_constraint": "max_norm"}, "has a constraint"),
        ({"trainable": False}, "the name of 0 trainable"),
        ({"lora_rank": 2}, "trained by LoRA"),
        ({"twice": True}, "the name of 2 trainable"),
        ({"marked": True}, "is reparametrised"),
    ],
)
def test_a_table_whose_every_row_moves_is_refused(kwargs, match, monkeypatch):
    kwargs = dict(kwargs)
    if kwargs.pop("marked", False):
        monkeypatch.setattr(low_rank, "mark_of", lambda _: "a mark")
    tables = [_table("a")]
    if kwargs.pop("twice", False):
        outer = keras.Sequential([keras.Input((), dtype="int32"), _table("b")])
        tables.append(outer)
    with pytest.raises(ValueError, match=match):
        _find("b", [*tables, _table("b", **kwargs)])
