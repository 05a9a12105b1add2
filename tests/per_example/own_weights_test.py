"""Weights that layers own beside layers: against a loop over examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import tf_dpfp
from tf_dpfp import per_example

L = keras.layers
BATCH, TOKENS, WIDTH = 4, 5, 6


class Own(L.Layer):
    """A layer with weights of its own."""

    def weight(self, *shape):
        return self.add_weight(shape=shape, initializer="normal")


class ClassToken(Own):
    """A token in front, positions on everything, then attention: ViT."""

    tokens = 1

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.patches = L.Dense(WIDTH)
        self.mix = L.MultiHeadAttention(2, 3, dropout=0.2)
        self.norm = L.LayerNormalization()

    def build(self, shape):
        self.cls = self.weight(1, self.tokens, WIDTH)
        self.positions = self.weight(1, TOKENS + self.tokens, WIDTH)

    def front(self, x):
        return ops.broadcast_to(self.cls, (ops.shape(x)[0], self.tokens, WIDTH))

    def call(self, x):
        x = self.patches(x)
        x = ops.concatenate([self.front(x), x], axis=1) + self.positions
        x = x + self.mix(self.norm(x), self.norm(x))
        return x[:, :TOKENS]


class RepeatedToken(ClassToken):
    """The same by `repeat`: a copy of the token has no other axes."""

    def front(self, x):
        return ops.repeat(self.cls, ops.shape(x)[0], axis=0)


class Distilled(ClassToken):
    """Two tokens, and the mean of what two heads say of them: DeiT."""

    tokens = 2

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.heads = [L.Dense(WIDTH), L.Dense(WIDTH)]

    def call(self, x):
        x = super().call(x)
        one, other = self.heads[0](x[:, 0]), self.heads[1](x[:, 1])
        return x + ((one + other) / 2)[:, None]


class LayerScale(Own):
    """A vector on each of two branches: CaiT."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = L.EinsumDense("abc,cd->abd", (None, WIDTH))
        self.second = keras.Sequential([L.Dense(9, "gelu"), L.Dense(WIDTH)])
        self.drop = L.Dropout(0.2)

    def build(self, shape):
        self.one, self.two = self.weight(WIDTH), self.weight(WIDTH)

    def call(self, x):
        x = x + self.drop(self.one * self.first(x))
        return x + self.two * self.second(x)


class Stack(Own):
    """Layers with weights of their own, in one that has some, too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [LayerScale(), LayerScale()]

    def build(self, shape):
        self.scale = self.weight()

    def call(self, x):
        for block in self.blocks:
            x = block(x * self.scale)
        return x


class Latents(Own):
    """Queries that are weights, given to layers as they are: Perceiver."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.mix = L.MultiHeadAttention(2, 3)

    def build(self, shape):
        # As many as there are examples: sizes must not decide.
        self.latents = self.weight(BATCH, WIDTH)

    def call(self, x):
        shape = (ops.shape(x)[0], BATCH, WIDTH)
        return self.mix(ops.broadcast_to(self.latents, shape), x)


class Prepared(Latents):
    """A layer that is called on the weight itself, before it has a batch."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.prepare = L.Dense(WIDTH, "tanh")

    def call(self, x):
        latents = self.prepare(self.latents)[None]
        return ops.repeat(latents, ops.shape(x)[0], axis=0) + ops.mean(
            x, axis=1, keepdims=True
        )


class Temperature(Own):
    """Two towers, and their products on a learned scale: CLIP."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.towers = [L.Dense(WIDTH), L.Dense(WIDTH)]

    def build(self, shape):
        self.log_scale = self.weight()

    def call(self, x):
        one, other = (ops.normalize(tower(x)) for tower in self.towers)
        return ops.exp(self.log_scale) * one * other


class ConvNeXt(Own):
    """A scale of channels after convolutions."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.depthwise = L.DepthwiseConv1D(3, padding="same")
        self.norm = L.LayerNormalization()
        self.wide, self.narrow = L.Dense(8, "gelu"), L.Dense(WIDTH)

    def build(self, shape):
        self.gamma = self.weight(WIDTH)

    def call(self, x):
        h = self.narrow(self.wide(self.norm(self.depthwise(x))))
        return x + self.gamma * h


class RelativeBias(Own):
    """A table of its own, looked up by a weight that is not trained: Swin."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.query, self.key = L.Dense(WIDTH), L.Dense(WIDTH)

    def build(self, shape):
        self.table = self.weight(2 * TOKENS - 1)
        places = np.arange(TOKENS)[:, None] - np.arange(TOKENS) + TOKENS - 1
        self.places = self.add_weight(
            shape=(TOKENS, TOKENS),
            dtype="int32",
            trainable=False,
            initializer=keras.initializers.Constant(places),
        )

    def call(self, x):
        scores = ops.einsum("bid,bjd->bij", self.query(x), self.key(x))
        bias = ops.take(self.table, self.places, axis=0)
        return ops.matmul(ops.softmax(scores + bias), x)


class MaskToken(Own):
    """A token in the place of some inputs, several results."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.code, self.spare = L.Dense(WIDTH), L.Dense(WIDTH)

    def build(self, shape):
        self.token = self.weight(WIDTH)

    def call(self, x):
        x = ops.where(x[..., :1] > 0, x, self.token)
        coded = self.code(x)
        both = self.spare(coded) + x, coded * self.token
        return both[0] + both[1]


class Whole(keras.Model):
    """A model that owns a weight itself."""

    def __init__(self):
        super().__init__()
        self.code, self.head = L.Dense(WIDTH, "tanh"), L.Dense(3)

    def build(self, shape):
        self.prompt = self.add_weight(shape=(1, 2, WIDTH))
        self.code.build(shape)
        self.head.build((None, WIDTH))

    def call(self, x):
        shape = (ops.shape(x)[0], 2, WIDTH)
        prompt = ops.broadcast_to(self.prompt, shape)
        x = self.code(ops.concatenate([prompt, x], axis=1))
        return self.head(ops.mean(x, axis=1))


def _slow(make):
    return pytest.param(make, marks=pytest.mark.slow)


LAYERS = [
    _slow(ClassToken),
    RepeatedToken,
    _slow(Distilled),
    _slow(LayerScale),
    Stack,
    Latents,
    _slow(Temperature),
    _slow(ConvNeXt),
    RelativeBias,
    MaskToken,
    Prepared,
    Whole,
]


def _model(make):
    if make is Whole:
        model = Whole()
        model.build((None, TOKENS, WIDTH))
    else:
        inputs = keras.Input((TOKENS, WIDTH))
        pooled = ops.mean(make()(inputs), axis=1)
        model = keras.Model(inputs, L.Dense(3)(pooled))
    for layer in model._flatten_layers():
        if isinstance(layer, L.Dropout):
            layer.rate = 0.0  # For the loop, which would draw others.
    return model


def _compiled(make, clip=1.0, **arguments):
    keras.utils.set_random_seed(0)
    model = _model(make)
    tf_dpfp.make_private(model)
    model.compile(
        tf_dpfp.DPSGD(
            0.1,
            l2_norm_clip=clip,
            noise_multiplier=0.0,
            clipping="flat",
            expected_batch_size=BATCH,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **arguments,
    )
    return model


def _data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(BATCH, TOKENS, WIDTH)).astype("float32")
    return x, rng.integers(0, 3, BATCH)


def _clipped(model, x, y, clip):
    """The sum of clipped gradients, by a loop over examples."""
    total = [0.0] * len(model.trainable_variables)
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model.loss(y[i : i + 1], model(x[i : i + 1])))
        found = [
            tf.convert_to_tensor(g)
            for g in tape.gradient(
                loss, [v.value for v in model.trainable_variables]
            )
        ]
        factor = tf.minimum(1.0, clip / tf.linalg.global_norm(found))
        total = [t + factor * g for t, g in zip(total, found, strict=True)]
    return total


# What a trial sees is implied by the loop: that it lets such models through is
# shown by some.
TRIED = RepeatedToken, RelativeBias, Whole


@pytest.mark.parametrize("make", LAYERS)
def test_a_step_is_proved_and_exact(make, request):
    if make not in TRIED:
        request.getfixturevalue("without_trial")
    x, y = _data()
    clip = 0.2
    model = _compiled(make, clip)
    units = per_example.find_units(model)
    own = [u for u in units if isinstance(u.rule, per_example.OwnWeightsRule)]
    assert own
    others = [u for u in units if isinstance(u.rule, per_example.GenericRule)]
    assert not others
    found = tf_dpfp.loops.clipped_gradients(model, x, y).sums
    expected = _clipped(model, x, y, clip)
    for a, b, v in zip(found, expected, model.trainable_variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5, err_msg=v.path)


def _calling(function):
    """Makes a layer with a dense one, a scale, and this own code."""

    class Calling(Own):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(WIDTH)

        def build(self, shape):
            self.dense.build(shape)
            self.scale = self.weight(WIDTH)

        def call(self, x):
            return function(self, x)

    return Calling


def _mixed_before(layer, x):
    return layer.dense(x - ops.mean(x, axis=0)) * layer.scale


def _mixed_weights(layer, x):
    scale = layer.scale * ops.mean(layer.dense(x))
    return layer.dense(x) * scale


def _by_row(layer, x):
    rows = ops.cast(ops.arange(ops.shape(x)[0]), x.dtype)
    return layer.dense(x) + rows[:, None, None] * layer.scale


def _by_size(layer, x):
    size = ops.cast(ops.shape(x)[0], x.dtype)
    return layer.dense(x) * layer.scale / size


@pytest.mark.parametrize(
    "function", [_mixed_before, _mixed_weights, _by_row, _by_size]
)
def test_own_code_that_mixes_examples_is_refused(function):
    model = _compiled(_calling(function))
    with pytest.raises(ValueError, match="other examples|independent|add up"):
        tf_dpfp.loops.clipped_gradients(model, *_data())


def _merged(layer, x):
    rows = layer.dense(ops.reshape(x, (-1, WIDTH)))
    return ops.reshape(rows, (-1, TOKENS, WIDTH)) * layer.scale


def _time_first(layer, x):
    x = ops.transpose(x * layer.scale, (1, 0, 2))
    return ops.transpose(layer.dense(x), (1, 0, 2))


def _by_batch_of_one(layer, x):
    x = layer.dense(x) * layer.scale
    return x if x.shape[0] == 1 else layer.dense(x)


@pytest.mark.parametrize("function", [_merged, _time_first, _by_batch_of_one])
@pytest.mark.parametrize("is_fit", [False, True])
def test_own_code_that_takes_no_batch_of_one_is_told_the_way_out(
    function, is_fit
):
    model, (x, y) = _compiled(_calling(function)), _data()
    with pytest.raises(ValueError, match="not run on one example.*Generic"):
        if is_fit:
            model.fit(x, y, verbose=0)
        else:
            tf_dpfp.loops.clipped_gradients(model, x, y)


class Adding(LayerScale):
    def call(self, x):
        self.add_loss(ops.sum(self.one**2))
        return super().call(x)


class Seeded(LayerScale):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed = keras.random.SeedGenerator(1)

    def call(self, x):
        return super().call(x + keras.random.normal((WIDTH,), seed=self.seed))


class Regularized(LayerScale):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first.activity_regularizer = keras.regularizers.L2(0.1)


@pytest.mark.parametrize("make", [Adding, Seeded, Regularized])
def test_losses_and_random_numbers_take_the_generic_rule(make):
    layer = make()
    layer(np.zeros((2, TOKENS, WIDTH), "float32"))
    (unit,) = per_example.find_units(layer)
    assert isinstance(unit.rule, per_example.GenericRule)


def test_a_loss_that_is_added_out_of_sight_is_refused():
    class Hidden(LayerScale):
        def call(self, x):
            getattr(self, "add_" + "loss")(ops.sum(self.one**2))
            return super().call(x)

    model = _compiled(Hidden)
    with pytest.raises(ValueError, match="adds a loss"):
        tf_dpfp.loops.clipped_gradients(model, *_data())
