"""Text encoders, cut into what is frozen and what is trained; and heads."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from examples.trainers import finetune_config
from examples.trainers import finetune_starts
from examples.trainers import minilm
from examples.trainers import prefixes
from examples.trainers import text_datasets

# Of the BERT-type encoders of KerasHub.
_BLOCK = "transformer_layer_{}"
_FROZEN_LEVELS = "frozen_levels"


def load_encoder(
    config: finetune_config.Config,
) -> tuple[keras.Model, keras.layers.Layer]:
    """The backbone, without dropout, and the preprocessor of its tokens."""
    import keras_hub

    preset = config.preset
    if preset == finetune_config.MINILM:
        preset = str(minilm.folder())
        backbone_class = keras_hub.models.BertBackbone
        preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
            keras_hub.models.BertTokenizer.from_preset(preset),
            sequence_length=config.sequence_length,
        )
    else:
        backbone_class = keras_hub.models.Backbone
        preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
            preset, sequence_length=config.sequence_length
        )
    presets = [
        str(folder / "backbone")
        for folder in finetune_starts.folders(config.start)
    ]
    # The noise of private training regularises enough.
    encoders = [
        backbone_class.from_preset(name, dropout=0.0)
        for name in presets or [preset]
    ]
    encoders[0].set_weights(
        finetune_starts.means(e.get_weights() for e in encoders)
    )
    return encoders[0], preprocessor


def tokens_of(preprocessor, texts: np.ndarray) -> dict[str, np.ndarray]:
    """What an encoder takes of texts."""
    return {
        name: ops.convert_to_numpy(value)
        for name, value in preprocessor(list(texts)).items()
    }


def sentence_encoder(
    backbone: keras.Model, config: finetune_config.Config
) -> keras.Model:
    """The encoder from tokens to sentence vectors."""
    count = _blocks(backbone)
    between = _outputs_of_blocks(backbone, count - config.levels, count - 1)
    vectors = _sentence(
        [*between, _sequence(backbone)], backbone.input["padding_mask"]
    )
    if config.method == "dpfp":
        # Then the clip norm is known without a look at the data.
        vectors = keras.layers.UnitNormalization(dtype="float32")(vectors)
    return keras.Model(backbone.input, vectors)


def split_encoder(
    backbone: keras.Model, config: finetune_config.Config
) -> tuple[keras.Model | None, keras.Model]:
    """Cuts an encoder into what stays frozen and what is trained.

    Args:
        backbone: The encoder.
        config: The settings.

    Returns:
        The lower part, from tokens to what the upper part takes (`None` if
        there is none), and the upper part, from there to sentence vectors.

    Raises:
        ValueError: If the encoder does not have so many blocks or levels.
    """
    count = _blocks(backbone)
    for name, most in (("blocks", count), ("levels", count or 1)):
        if (getattr(config, name) or 1) > most:
            raise ValueError(
                f"--{name} must be at most {most}, for '{config.preset}' has "
                f"{count} blocks. Received: {getattr(config, name)}."
            )
    whole = sentence_encoder(backbone, config)
    if config.method in finetune_config.ON_VECTORS:
        sentence = keras.Input(whole.output.shape[1:], name="sentence")
        same = keras.layers.Identity()(sentence)
        return whole, keras.Model(sentence, same)
    trained = config.blocks
    if trained is None:
        if config.method != "prefix":
            return None, whole
        trained = count
    mask = backbone.input["padding_mask"]
    blocks = [
        backbone.get_layer(_BLOCK.format(number))
        for number in range(count - trained, count)
    ]
    below, *_ = keras.tree.flatten(blocks[0].input)
    states = {"hidden": below, "padding_mask": mask}
    frozen = _outputs_of_blocks(
        backbone, count - config.levels, count - trained - 1
    )
    if frozen:
        states[_FROZEN_LEVELS] = _sentence(frozen, mask)
    lower = keras.Model(backbone.input, states)
    inputs = {
        name: keras.Input(state.shape[1:], dtype=state.dtype, name=name)
        for name, state in states.items()
    }
    levels = _levels(config, blocks, inputs["hidden"], inputs["padding_mask"])
    vectors = _sentence(levels[-config.levels :], inputs["padding_mask"])
    if frozen:
        vectors = ops.concatenate([inputs[_FROZEN_LEVELS], vectors], axis=-1)
    return lower, keras.Model(inputs, vectors)


def _levels(
    config: finetune_config.Config,
    blocks: Sequence[keras.layers.Layer],
    hidden: keras.KerasTensor,
    mask: keras.KerasTensor,
) -> list[keras.KerasTensor]:
    """States of the tokens below the first block and above each."""
    if config.method != "prefix":
        levels = [hidden]
        for block in blocks:
            levels.append(block(levels[-1], padding_mask=mask))
        return levels
    prefix = prefixes.Prefix(config.prefix_length, name="prefix")
    levels, mask = [prefix(hidden)], prefix.padded(mask)
    for block in blocks:
        levels.append(block(levels[-1], padding_mask=mask))
    return [level[:, config.prefix_length :] for level in levels]


def choose_weights(
    config: finetune_config.Config,
    backbone: keras.Model,
    lower: keras.Model | None,
) -> None:
    """Freezes, or adds to, the encoder as the method says."""
    if config.method in ("lora", "ffa_lora"):
        # Freezes what it adds to, and whatever else there is.
        backbone.enable_lora(config.rank)
        if config.method == "ffa_lora":
            for variable in backbone.trainable_variables:
                if variable.name == "lora_kernel_a":
                    variable.trainable = False
    elif config.method == "prefix":
        backbone.trainable = False
    elif config.method == "bias":
        for variable in backbone.trainable_variables:
            if len(variable.shape) > 1 and "bias" not in variable.path:
                variable.trainable = False
    if config.freeze_embeddings:
        for layer in backbone.layers:
            if "embedding" in layer.name:
                layer.trainable = False
    if lower is not None:
        lower.trainable = False


def make_head(
    config: finetune_config.Config, features: int, classes: int, vectors_of
) -> keras.layers.Layer:
    """The last layer.

    Args:
        config: The settings.
        features: The length of what it takes.
        classes: How many logits it makes.
        vectors_of: Maps sentences to what it takes.

    Returns:
        The layer, where it is not new with its weights.
    """
    if config.method == "dpfp":
        return _head_above_noise(classes)
    head = keras.layers.Dense(classes, name="logits", dtype="float32")
    if config.start is None:
        return head
    if config.start == finetune_config.PROMPTS:
        praise = vectors_of(text_datasets.PRAISE).mean(axis=0)
        blame = vectors_of(text_datasets.BLAME).mean(axis=0)
        # The logits differ by 1 and by -1 at the two means.
        direction = 2.0 * (praise - blame) / np.sum(np.square(praise - blame))
        offset = -direction @ (praise + blame) / 2.0
        kernel = np.stack([-direction / 2.0, direction / 2.0], axis=1)
        bias = np.array([-offset / 2.0, offset / 2.0])
    else:
        kernel, bias = finetune_starts.means(
            finetune_starts.saved_head(folder, features)
            for folder in finetune_starts.folders(config.start)
        )
    head.build((None, features))
    head.set_weights([kernel, bias])
    return head


def _head_above_noise(classes: int) -> keras.layers.Layer:
    """What is above the encoder where its vectors are noised."""
    # Above the noise, a layer may look at the whole batch. The logits of so
    # noisy vectors are smaller than any offset: that of the vectors is taken
    # off first, and there is none behind.
    return keras.Sequential(
        [
            keras.layers.BatchNormalization(
                momentum=0.95, center=False, scale=False, dtype="float32"
            ),
            keras.layers.Dense(
                classes,
                use_bias=False,
                kernel_initializer="zeros",
                name="logits",
                dtype="float32",
            ),
        ],
        name="head",
    )


def head_weights(head: keras.layers.Layer) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias from vectors to logits."""
    if isinstance(head, keras.layers.Dense):
        return tuple(head.get_weights())
    norm, dense = head.layers
    (kernel,) = dense.get_weights()
    mean, variance = norm.get_weights()
    kernel /= np.sqrt(variance + norm.epsilon)[:, None]
    return kernel, -mean @ kernel


def prefix_of(upper: keras.Model) -> np.ndarray | None:
    """The vectors in front of the tokens, if there are any."""
    for layer in upper.layers:
        if isinstance(layer, prefixes.Prefix):
            return layer.vectors.numpy()
    return None


def _blocks(backbone: keras.Model) -> int:
    return getattr(backbone, "num_layers", 0)


def _sequence(backbone: keras.Model):
    output = backbone.output
    return output["sequence_output"] if isinstance(output, dict) else output


def _sentence(levels: Sequence, mask):
    """Vectors of sentences: the means of levels, side by side."""
    means = [minilm.mean_over_tokens(level, mask) for level in levels]
    return means[0] if len(means) == 1 else ops.concatenate(means, axis=-1)


def _outputs_of_blocks(backbone: keras.Model, first: int, last: int) -> list:
    """What blocks `first` to `last` - 1 make."""
    return [
        backbone.get_layer(_BLOCK.format(number)).output
        for number in range(first, last)
    ]
