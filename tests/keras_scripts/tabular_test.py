"""Scripts on tables, condensed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras import ops

import tf_dpfp
from tests.keras_scripts import common

_CATEGORIES = {
    "colour": ["red", "green", "blue"],
    "size": ["s", "m", "l", "xl"],
}
_NUMBERS = ("age", "weight")


def _table(count=32, as_text=False):
    """A table of two numbers and two categories, and a label of all four."""
    rng = np.random.default_rng(0)
    x = {
        name: rng.normal(size=(count, 1)).astype("float32") for name in _NUMBERS
    }
    y = sum(values[:, 0] for values in x.values())
    for name, known in _CATEGORIES.items():
        ids = rng.integers(0, len(known), count)
        y = y + ids
        x[name] = np.array(known)[ids][:, None] if as_text else ids[:, None]
    return x, (y > 2.5).astype("float32")


def _inputs():
    numbers = {name: keras.Input((1,), name=name) for name in _NUMBERS}
    ids = {
        name: keras.Input((1,), name=name, dtype="int32")
        for name in _CATEGORIES
    }
    return numbers | ids


def _embedded(inputs, size):
    """One vector of each column."""
    return [
        layers.Dense(size)(inputs[name])
        if name in _NUMBERS
        else layers.Reshape((size,))(
            layers.Embedding(len(_CATEGORIES[name]), size)(inputs[name])
        )
        for name in inputs
    ]


@pytest.mark.parametrize("end_to_end", [False, True])
def test_structured_data_by_feature_space(end_to_end):
    """On features that the pipeline encodes, or on the columns themselves."""
    x, y = _table()
    # A hash of two columns has no rule of the proof: for the pipeline only.
    crosses = [] if end_to_end else [("colour", "size")]
    space = keras.utils.FeatureSpace(
        {
            "age": "float_normalized",
            "weight": "float_discretized",
            "colour": "integer_categorical",
            "size": "integer_categorical",
        },
        crosses=crosses,
        crossing_dim=8,
        output_mode="concat",
    )
    columns = {name: values[:, 0] for name, values in x.items()}
    space.adapt(tf.data.Dataset.from_tensor_slices(columns))
    if not end_to_end:
        x = np.asarray(space(columns), np.float32)

    def build():
        encoded = space.get_encoded_features()
        h = layers.Dense(8, activation="relu")(encoded)
        outputs = layers.Dense(1, activation="sigmoid")(h)
        inputs = space.get_inputs() if end_to_end else encoded
        return keras.Model(inputs, outputs)

    common.assert_learns_as_ordinary(
        build, x, y, loss="binary_crossentropy", learning_rate=1.0
    )


class RecommenderNet(keras.Model):
    def __init__(self, users, movies, size):
        super().__init__()
        regularizer = keras.regularizers.l2(1e-6)
        initializer = "he_normal"
        self.user_embedding, self.movie_embedding = (
            layers.Embedding(
                number,
                size,
                embeddings_initializer=initializer,
                embeddings_regularizer=regularizer,
            )
            for number in (users, movies)
        )
        self.user_bias = layers.Embedding(users, 1)
        self.movie_bias = layers.Embedding(movies, 1)

    def call(self, inputs):
        user_vector = self.user_embedding(inputs[:, 0])
        movie_vector = self.movie_embedding(inputs[:, 1])
        # `ops.tensordot(..., 2)` would add up over the users of the batch.
        dot = ops.sum(user_vector * movie_vector, axis=1, keepdims=True)
        x = dot + self.user_bias(inputs[:, 0]) + self.movie_bias(inputs[:, 1])
        return ops.nn.sigmoid(x)


def test_collaborative_filtering():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 8, (32, 2))
    y = (x.sum(axis=1) > 7).astype("float32")
    common.assert_learns_as_ordinary(
        lambda: RecommenderNet(8, 8, 4),
        x,
        y,
        loss="binary_crossentropy",
        learning_rate=1.0,
    )


class UsersMeet(RecommenderNet):
    def call(self, inputs):
        users = self.user_embedding(inputs[:, 0])
        movies = self.movie_embedding(inputs[:, 1])
        return ops.sigmoid(ops.tensordot(users, movies, 2) + users[:, :1])


@pytest.mark.usefixtures("without_trial")
def test_a_sum_over_the_users_of_a_batch_is_refused():
    x = np.random.default_rng(0).integers(0, 8, (8, 2))
    model = tf_dpfp.make_private(UsersMeet(8, 8, 4))
    model.compile(tf_dpfp.DPSGD(0.1, noise_multiplier=1.0), loss="mse")
    with pytest.raises(ValueError, match="not independent of each other"):
        model.fit(x, np.zeros((8, 1)), verbose=0)
    assert tf_dpfp.ledger(model) == []


def test_tab_transformer():
    def build():
        inputs = _inputs()
        columns = [
            ops.expand_dims(
                layers.Embedding(len(known), 8)(inputs[name])[:, 0], 1
            )
            for name, known in _CATEGORIES.items()
        ]
        x = ops.concatenate(columns, axis=1)
        x = x + layers.Embedding(len(columns), 8)(ops.arange(len(columns)))
        h = layers.MultiHeadAttention(2, 8)(x, x)
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([h, x]))
        h = layers.Dense(8, activation="gelu")(x)
        x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([h, x]))
        numbers = layers.concatenate([inputs[name] for name in _NUMBERS])
        numbers = layers.LayerNormalization(epsilon=1e-6)(numbers)
        x = layers.concatenate([layers.Flatten()(x), numbers])
        for units in (16, 8):
            x = layers.BatchNormalization()(x)
            x = layers.Dense(units, activation="selu")(x)
        outputs = layers.Dense(1, activation="sigmoid")(x)
        model = keras.Model(inputs, outputs)
        return tf_dpfp.fix(model, print_fn=lambda _: None)

    common.assert_learns_as_ordinary(
        build, *_table(), loss="binary_crossentropy", learning_rate=0.02
    )


class GatedLinearUnit(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.linear = layers.Dense(units)
        self.sigmoid = layers.Dense(units, activation="sigmoid")

    def call(self, inputs):
        return self.linear(inputs) * self.sigmoid(inputs)


class GatedResidualNetwork(layers.Layer):
    def __init__(self, units):
        super().__init__()
        self.units = units
        self.elu_dense = layers.Dense(units, activation="elu")
        self.linear_dense = layers.Dense(units)
        self.gated_linear_unit = GatedLinearUnit(units)
        self.layer_norm = layers.LayerNormalization()
        self.project = layers.Dense(units)

    def call(self, inputs):
        x = self.linear_dense(self.elu_dense(inputs))
        if inputs.shape[-1] != self.units:
            inputs = self.project(inputs)
        return self.layer_norm(inputs + self.gated_linear_unit(x))


class VariableSelection(layers.Layer):
    def __init__(self, number, units):
        super().__init__()
        self.grns = [GatedResidualNetwork(units) for _ in range(number)]
        self.grn_concat = GatedResidualNetwork(units)
        self.softmax = layers.Dense(number, activation="softmax")

    def call(self, inputs):
        v = self.grn_concat(layers.concatenate(inputs))
        v = ops.expand_dims(self.softmax(v), axis=-1)
        x = [grn(one) for grn, one in zip(self.grns, inputs, strict=True)]
        outputs = ops.squeeze(
            ops.matmul(ops.transpose(v, axes=[0, 2, 1]), ops.stack(x, axis=1)),
            axis=1,
        )
        return outputs


def test_gated_residual_and_variable_selection():
    """It learns as usual unless it is clipped: gradients are long."""

    def build():
        inputs = _inputs()
        columns = _embedded(inputs, 8)
        features = VariableSelection(len(columns), 8)(columns)
        outputs = layers.Dense(1, activation="sigmoid")(features)
        return keras.Model(inputs, outputs)

    common.assert_learns_as_ordinary(
        build, *_table(), loss="binary_crossentropy"
    )


class NeuralDecisionTree(keras.Model):
    def __init__(self, depth, features, used, classes):
        super().__init__()
        self.depth = depth
        self.num_leaves = 2**depth
        rng = np.random.default_rng(features)
        chosen = rng.choice(features, int(features * used), replace=False)
        self.used_features_mask = np.eye(features, dtype="float32")[chosen]
        self.pi = self.add_weight(
            initializer="random_normal",
            shape=[self.num_leaves, classes],
            dtype="float32",
            trainable=True,
        )
        self.decision_fn = layers.Dense(
            units=self.num_leaves, activation="sigmoid", name="decision"
        )

    def call(self, features):
        batch_size = ops.shape(features)[0]
        features = ops.matmul(features, ops.transpose(self.used_features_mask))
        decisions = ops.expand_dims(self.decision_fn(features), axis=2)
        decisions = ops.concatenate([decisions, 1 - decisions], axis=2)
        mu = ops.ones([batch_size, 1, 1])
        begin, end = 1, 2
        for level in range(self.depth):
            mu = ops.reshape(mu, [batch_size, -1, 1])
            mu = ops.tile(mu, (1, 1, 2))
            mu = mu * decisions[:, begin:end, :]
            begin = end
            end = begin + 2 ** (level + 1)
        mu = ops.reshape(mu, [batch_size, self.num_leaves])
        return ops.matmul(mu, ops.softmax(self.pi))


class NeuralDecisionForest(keras.Model):
    def __init__(self, trees, **arguments):
        super().__init__()
        self.ensemble = [NeuralDecisionTree(**arguments) for _ in range(trees)]

    def call(self, inputs):
        outputs = [tree(inputs) for tree in self.ensemble]
        return sum(outputs) / len(outputs)


# Weights of layers' own are tried in tests/per_example/own_weights_test.py.
def test_deep_neural_decision_forest(without_trial):
    def build():
        inputs = _inputs()
        features = layers.concatenate(_embedded(inputs, 4))
        features = layers.BatchNormalization()(features)
        forest = NeuralDecisionForest(
            2, depth=2, features=16, used=0.75, classes=2
        )
        model = keras.Model(inputs, forest(features))
        return tf_dpfp.fix(model, print_fn=lambda _: None)

    common.assert_learns_as_ordinary(
        build,
        *_table(),
        loss="sparse_categorical_crossentropy",
        learning_rate=3.0,
    )


class QREmbedding(layers.Layer):
    def __init__(self, number, size, buckets):
        super().__init__()
        self.buckets = buckets
        self.q_embeddings = layers.Embedding(
            buckets, size, keras.initializers.RandomNormal(stddev=1.0)
        )
        self.r_embeddings = layers.Embedding(
            number // buckets + 1,
            size,
            keras.initializers.RandomNormal(stddev=1.0),
        )

    def call(self, inputs):
        remainder = ops.mod(inputs, self.buckets)
        quotient = ops.floor_divide(inputs, self.buckets)
        return self.q_embeddings(remainder) * self.r_embeddings(quotient)


class MDEmbedding(layers.Layer):
    def __init__(self, number, blocks, size):
        super().__init__()
        self.block_of = np.arange(number) % blocks
        self.index_in_block = np.arange(number) // blocks
        self.block_embeddings = [
            layers.Embedding(
                number // blocks + 1,
                size // 2 ** (1 + i),
                keras.initializers.RandomNormal(stddev=1.0),
            )
            for i in range(blocks)
        ]
        self.projections = [layers.Dense(size) for _ in range(blocks)]

    def call(self, inputs):
        block = ops.take(self.block_of, inputs)
        index = ops.take(self.index_in_block, inputs)
        outputs = 0.0
        for i, (table, projection) in enumerate(
            zip(self.block_embeddings, self.projections, strict=True)
        ):
            inside = ops.cast(block == i, "float32")
            vector = projection(table(index * ops.cast(inside, index.dtype)))
            outputs = outputs + inside[:, None] * vector
        return outputs


def test_memory_efficient_embeddings():
    def build():
        user, movie = (
            keras.Input((), name=name, dtype="int32")
            for name in ("user", "movie")
        )
        x = layers.concatenate(
            [QREmbedding(12, 4, 4)(user), MDEmbedding(12, 2, 4)(movie)]
        )
        x = layers.Dense(8, activation="tanh")(x)
        return keras.Model(
            {"user": user, "movie": movie},
            layers.Dense(1, activation="sigmoid")(x),
        )

    rng = np.random.default_rng(0)
    x = {name: rng.integers(0, 12, 32) for name in ("user", "movie")}
    y = (x["user"] + x["movie"] > 11).astype("float32")
    common.assert_learns_as_ordinary(
        build, x, y, loss="binary_crossentropy", learning_rate=0.5
    )
