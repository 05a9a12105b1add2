"""Private forward propagation: clipped representations plus noise."""

from typing import Any

import keras
import tensorflow as tf

from tf_dpfp import accounting
from tf_dpfp import arguments
from tf_dpfp import counting
from tf_dpfp import noise as noise_lib
from tf_dpfp import per_example
from tf_dpfp import sampling as sampling_lib
from tf_dpfp.layers import calling
from tf_dpfp.layers import dealt_rows
from tf_dpfp.layers import declared_labels
from tf_dpfp.layers import person_rows

# Beyond these, float32 has no numbers for the bound or its noise.
_CLIP: dict[str, Any] = {"least": 1e-10, "most": 1e30}
_NOISE: dict[str, Any] = {
    "least": 0.0,
    "most": 1e7,
    "hint": "representations.calibrate_representation finds one for epsilon.",
}
# A compiled step, or the ledger, would not notice a change.
_READ_ONLY = ("clip_norm", "noise_multiplier", "labels", "end_to_end", "seed")


@keras.saving.register_keras_serializable(package="tf_dpfp")
class DPRepresentationClip(keras.layers.Layer):
    """Clips each example's representation and adds Gaussian noise to it.

    The layers above this one see the examples through its noise only, and may
    be trained by any optimizer, without clipping and without further noise:
    that is post-processing. The layers below must be frozen: the gradient stops
    here, since a gradient that went on would depend on the examples in clear.
    Or DP-SGD trains them: make the model private and compile it with a private
    optimizer, which then noises the gradients of the layers below, and no
    others. Representations and gradients are counted as one joint release.

    The layer counts its releases: every call with `training=True`. By itself
    it claims nothing about how batches are drawn;
    `tf_dpfp.make_private(model)`, with the batches of
    `tf_dpfp.representations.stratified_batches`, makes epsilon smaller. See
    `tf_dpfp.privacy_statement(model, delta)`.

    The guarantee is for replacing one example by another of the same label:
    the noise does not cover the labels. With `poisson_batches(users=...)` it is
    for replacing all examples of a person, whose rows are clipped jointly.

    Example:

    ```python
    encoder.trainable = False
    h = tf_dpfp.DPRepresentationClip(
        clip_norm=1.0, noise_multiplier=2.0, labels="public"
    )(encoder(inputs))
    model = keras.Model(inputs, keras.layers.Dense(10)(h))
    model.compile(optimizer="adam", loss=loss)
    ```

    Args:
        clip_norm: Bound C on the L2 norm of one example's representation,
            over all axes but the first; of a person's, over all rows, too.
        noise_multiplier: Standard deviation of the noise on every coordinate,
            over `clip_norm`. 0 adds no noise; epsilon is then infinite.
        labels: `"public"` declares that anyone may know the labels of all
            examples, and whose they are if persons are drawn; the result of
            `tf_dpfp.representations.randomize_labels`, that the model is
            trained on it. `None` declares nothing: epsilon is infinite, unless
            the batches of `stratified_batches` say it.
        end_to_end: `True` lets the gradient through, to train the layers
            below. Nothing is proved then: epsilon is infinite.
        seed: Integer that makes the noise reproducible, only for reproducing
            a run: who knows it can subtract the noise. `None` draws the
            noise's key from the operating system.
        **kwargs: Arguments of `keras.layers.Layer`.

    The settings can't be changed later: clipping, noise and ledger read them.

    Input shape:
        `(batch, ...)`, of floating point. Positions that a mask leaves out are
        set to zero and get noise like the rest: their number is data. The mask
        ends here, too.

    Output shape:
        Same shape as the input.

    Raises:
        ValueError: If an argument is out of its range.

    Reference:
        Du and Mi, 2021, "DP-FP: Differentially Private Forward Propagation for
        Large Models". What they train below the noise, this layer freezes.
    """

    def __init__(
        self,
        clip_norm: float,
        noise_multiplier: float,
        labels: Any = None,
        end_to_end: bool = False,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._labels = declared_labels.entry(labels)
        self._labels_public = declared_labels.are_public(labels)
        self._end_to_end = arguments.boolean("end_to_end", end_to_end)
        # Clipping, noise and the ledger read the same frozen object.
        self._release = counting.GaussianRelease(
            clip_norm=arguments.number("clip_norm", clip_norm, **_CLIP),
            noise_multiplier=arguments.number(
                "noise_multiplier", noise_multiplier, **_NOISE
            ),
            seed=arguments.seed(seed),
            kind=self._kind(self._labels_public, self._labels),
        )
        self.supports_masking = True
        # Two layers of one seed must not draw the same noise; two of one name
        # as well are refused where a model holds both.
        seed = None
        if self.seed is not None:
            seed = noise_lib.mixed_seed(self.seed, f"layer {self.name}")
        self._noise_source = noise_lib.NoiseSource(seed)
        self._layer_seeds = noise_lib.LayerSeeds(seed)
        self._ledger: counting.Ledger | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _READ_ONLY:
            raise AttributeError(
                f"`{name}` of layer '{self.name}' can't be changed: the noise "
                "and the privacy ledger are both read from the settings that "
                "the layer was made with. Make a new layer. Received: "
                f"{name}={value!r}"
            )
        super().__setattr__(name, value)

    @property
    def release(self) -> counting.GaussianRelease:
        """Release of a call: clip norm, noise and kind."""
        return self._release

    @property
    def clip_norm(self) -> float:
        """Bound C on the L2 norm of one example's representation."""
        return self._release.clip_norm

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the noise over `clip_norm`."""
        return self._release.noise_multiplier

    @property
    def seed(self) -> int | None:
        """Seed of the noise, or `None` for the operating system's."""
        return self._release.seed

    @property
    def end_to_end(self) -> bool:
        """True if the gradient goes on, and nothing is proved."""
        return self._end_to_end

    @property
    def labels(self) -> Any:
        """Declaration of the labels, as in the config."""
        return declared_labels.config(self._labels, self._labels_public)

    def build(self, input_shape):  # noqa: ARG002
        """Creates the ledger, a weight that is not trained."""
        if self._ledger is not None:
            return  # Another table would be empty.
        # Out of a graph that is being traced: the ledger is read from Python.
        with tf.init_scope():
            self._noise_source.build()
            self._layer_seeds.build()
            table = self.add_weight(
                shape=counting.TABLE_SHAPE,
                initializer="zeros",
                dtype="float64",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
                name="privacy_ledger",
            )
        self._ledger = counting.Ledger(table)
        self._ledger.call_before(self._renew_keys)
        if self._labels is not None:
            self._built_ledger.add(self._labels)

    def save_own_variables(self, store):
        """Saves the ledger, twice: it is read where Keras skips the layer."""
        super().save_own_variables(store)
        if self._ledger is not None:
            store[counting.MARKER] = accounting.encode_rows(self.ledger_entries)

    def load_own_variables(self, store):
        """Restores the ledger, which never loses a step."""
        super().load_own_variables(
            {k: store[k] for k in store.keys() if k != counting.MARKER}
        )

    def _kind(self, public: bool, labels) -> accounting.Release:
        if self._end_to_end:
            return accounting.EndToEnd()
        if labels is not None:
            return accounting.Representations("randomized")
        if public:
            return accounting.Representations("public")
        return accounting.Representations("undeclared")

    def call(self, inputs, training=None, mask=None):
        """Clips, and in training stops gradients, adds noise and counts."""
        inputs = keras.ops.convert_to_tensor(inputs)
        self._check(inputs)
        running = calling.current_trial()
        if running is not None:
            return running.stand_in(inputs, self.compute_dtype, bool(training))
        step = calling.current_joint_step()
        if training and (step is None or step.noise):
            dealt_rows.check_dealt(self.name)
        if not self._end_to_end and step is None:
            inputs = tf.stop_gradient(inputs)
        # In half precision a norm, or noise beside a number, is rounded away.
        if inputs.dtype.size < 4:
            inputs = tf.cast(inputs, tf.float32)
        if mask is not None:
            inputs = _without_masked(inputs, mask)
        own, clipped = person_rows.clipped(inputs, self._release.clip_norm)
        size = clipped.shape[0] or tf.shape(clipped)[0]
        if training and step is None:
            self._count(size)
        noise = None
        is_noised = training and (step is None or step.noise)
        if self._release.noise_multiplier and is_noised:
            clipped = tf.cast(clipped, tf.float32)  # No digits beyond noise's.
            noise = self._noise(clipped)
        released = clipped if noise is None else clipped + noise
        # A tensor of its own, whatever was there to add and to cast.
        output = tf.identity(tf.cast(released, self.compute_dtype))
        if training or step is not None:
            keys = self._noise_source.handles()
            calling.note(calling.Release(own, noise, output, size, keys))
        return output

    def _check(self, inputs: tf.Tensor) -> None:
        if not inputs.dtype.is_floating or not inputs.shape.rank:
            raise ValueError(
                f"Layer '{self.name}' takes floating point of shape (batch, "
                f"...). Received: {inputs.dtype.name} of shape {inputs.shape}."
            )
        if per_example.is_folded():
            raise ValueError(
                f"Layer '{self.name}' is inside of a TimeDistributed, where "
                "an example has several rows. Put it behind, on one for each."
            )

    def _count(self, size: tf.Tensor | int) -> None:
        """Counts before the noise: a step that fails half-way is counted."""
        ledger = self._built_ledger
        drawn_size = ledger.claimed_batch_size()
        size = dealt_rows.total(size)
        if drawn_size and not tf.is_tensor(size) and size != drawn_size:
            raise ValueError(
                f"Layer '{self.name}' was called with {size} rows and the "
                f"sampler draws {drawn_size}: one row for each example, "
                "in one call. Keep the batch in the first axis, whole."
            )
        release = person_rows.release_of(self._release)
        ledger.count_step(release, ledger.stamp(release), size)

    def _renew_keys(self, *_: Any) -> None:
        """Takes other keys after a fork: a compiled call only reads them."""
        self._noise_source.renew_after_fork()
        self._layer_seeds.renew_after_fork()

    def _noise(self, clipped: tf.Tensor) -> tf.Tensor:
        key = self._noise_source.next_step(self._built_ledger.total_steps())
        return noise_lib.gaussian_noise_like(
            clipped,
            self._release.standard_deviation,
            noise_lib.NoiseSource.key_of(key, 0, dealt_rows.number()),
        )

    def pass_seeds(self) -> noise_lib.PassSeeds:
        """Returns secret seeds for the random layers of a forward pass."""
        return self._layer_seeds.of_pass()

    @property
    def ledger(self) -> counting.Ledger:
        """The ledger that counts the calls; of a built layer."""
        return self._built_ledger

    @property
    def _built_ledger(self) -> counting.Ledger:
        if self._ledger is None:
            raise ValueError(
                f"Layer '{self.name}' is not built, and has no privacy ledger "
                "yet. Call the model on a batch, or build it, first."
            )
        return self._ledger

    @property
    def ledger_entries(self) -> list[accounting.LedgerEntry]:
        """Everything that was released so far, for the accountant."""
        return [] if self._ledger is None else self._ledger.entries()

    @property
    def next_entry(self) -> accounting.LedgerEntry:
        """Entry that the next call adds to the ledger."""
        return self._built_ledger.next_entry(self._release)

    def claims(
        self, info: "sampling_lib.SamplingInfo | None", draws: int = 1
    ) -> dict[counting.Ledger, counting.Claim]:
        """Returns the claim of calls on the batches of a sampler.

        Args:
            info: Record of `stratified_batches`; `None` for anything else.
            draws: Number of draws that such other batches are made of.

        Returns:
            The claim, by ledger; announce it (`counting.announced`).
        """
        self._renew_keys()
        if info is None and self._ledger is None:
            return {}  # It claims nothing from the start.
        if info is None:
            claim = counting.Claim(self._release, draws=draws)
            return {self._built_ledger: claim}
        self.count_labels(info)
        released = self._release.of_kind(self.kind_of(info))
        how = info.sampling, info.seeded, info.draws, info.capacity
        claim = counting.Claim(released, *how)
        return {self._built_ledger: claim}

    def kind_of(
        self, info: "sampling_lib.SamplingInfo | None"
    ) -> accounting.Release:
        """Returns the kind of release, by the declaration of the labels.

        Args:
            info: Record of `stratified_batches`, which declares the labels;
                `None` for anything else.
        """
        if info is None:
            return self._release.kind
        return self._kind(True, info.labels)

    def count_labels(self, info: "sampling_lib.SamplingInfo") -> None:
        """Adds the cost of randomised labels to the ledger, once.

        Args:
            info: Record of `stratified_batches`.
        """
        if info.labels is not None:
            self._built_ledger.add(info.labels)

    def absorb_ledger(self, entries: list, elsewhere: bool = False) -> None:
        """Takes over a ledger of the same model; see `Ledger.absorb`."""
        self._built_ledger.absorb(entries, elsewhere)

    def compute_output_shape(self, input_shape):
        """Returns the shape of the input."""
        return input_shape

    def compute_mask(self, inputs, previous_mask=None):  # noqa: ARG002
        """Returns `None`: the positions that an example has are data."""
        return None

    @classmethod
    def from_config(cls, config):
        """Makes a layer from its config, those of earlier versions too."""
        config = dict(config)
        if config.pop("noise_at_inference", False):
            raise ValueError(
                "`noise_at_inference` is no longer there: such calls released "
                "what no ledger counted. Leave it out of the config; noise is "
                "added in training alone. Received: noise_at_inference=True"
            )
        return super().from_config(config)

    def get_config(self):
        """Returns the arguments."""
        return {
            **super().get_config(),
            "clip_norm": self.clip_norm,
            "noise_multiplier": self.noise_multiplier,
            "labels": self.labels,
            "end_to_end": self.end_to_end,
            "seed": self.seed,
        }


def _without_masked(inputs: tf.Tensor, mask) -> tf.Tensor:
    mask = tf.cast(mask, tf.bool)
    missing = inputs.shape.rank - mask.shape.rank
    mask = tf.reshape(mask, tf.concat([tf.shape(mask), [1] * missing], axis=0))
    return tf.where(mask, inputs, tf.zeros_like(inputs))
