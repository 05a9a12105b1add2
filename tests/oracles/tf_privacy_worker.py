"""Trains the problems with TF-Privacy: `python -m ... weights.npz`.

Needs TF_USE_LEGACY_KERAS=1.
"""

import sys

from tests.oracles import problems


def _import():
    # TF-Privacy's own switch: its top module asks for parts of TensorFlow
    # that are gone; what is used here does not.
    sys.skip_tf_privacy_import = True
    try:
        import tensorflow as tf

        tf.keras.optimizers.legacy.SGD  # noqa: B018
        from tensorflow_privacy.privacy.fast_gradient_clipping import (
            layer_registry,
        )
        from tensorflow_privacy.privacy.keras_models import dp_keras_model
        from tensorflow_privacy.privacy.optimizers import dp_optimizer_keras
    except (ImportError, AttributeError) as error:
        print(
            "TF-Privacy on Keras 2 (tensorflow-privacy==0.9.0 and tf_keras, "
            f"Python 3.11) can't be imported: {error}",
            file=sys.stderr,
        )
        sys.exit(problems.NOT_INSTALLED)
    return tf, layer_registry, dp_keras_model, dp_optimizer_keras


def main(path: str) -> None:
    tf, layer_registry, dp_keras_model, dp_optimizer_keras = _import()

    def train(name, model, optimizer, reduction):
        model.set_weights(
            problems.weights(name, [v.shape for v in model.trainable_weights])
        )
        model.compile(
            optimizer=optimizer,
            loss=tf.keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction=reduction
            ),
        )
        x, y = problems.data(name)
        model.fit(x, y, batch_size=problems.BATCH, shuffle=False, verbose=0)
        return model.get_weights()

    def by_optimizer(name, optimizer, **arguments):
        return train(
            name,
            problems.MODELS[name](tf.keras),
            optimizer(
                l2_norm_clip=problems.CLIP,
                noise_multiplier=0.0,
                learning_rate=problems.LEARNING_RATE,
                **arguments,
            ),
            tf.keras.losses.Reduction.NONE,
        )

    def by_model(name):
        model = dp_keras_model.DPSequential(
            layers=problems.MODELS[name](tf.keras).layers,
            l2_norm_clip=problems.CLIP,
            noise_multiplier=0.0,
            use_xla=False,
            layer_registry=layer_registry.make_default_layer_registry(),
        )
        return train(
            name,
            model,
            tf.keras.optimizers.SGD(problems.LEARNING_RATE),
            tf.keras.losses.Reduction.SUM_OVER_BATCH_SIZE,
        )

    optimizers = dp_optimizer_keras
    problems.save(
        path,
        {
            "cnn by optimizer": by_optimizer(
                "cnn", optimizers.DPKerasSGDOptimizer, momentum=0.9
            ),
            "mlp by optimizer": by_optimizer(
                "mlp", optimizers.DPKerasAdagradOptimizer
            ),
            "mlp by model": by_model("mlp"),
            "text by model": by_model("text"),
            "cnn by model": by_model("cnn"),
        },
    )


if __name__ == "__main__":
    main(sys.argv[1])
