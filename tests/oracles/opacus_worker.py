"""Trains the problems with Opacus, in PyTorch: `python -m ... weights.npz`."""

import sys

import numpy as np

from tests.oracles import problems


def _import():
    try:
        import opacus
        import torch
        from opacus import optimizers
    except ImportError as error:
        print(
            f"Opacus can't be imported in {sys.executable}: {error}. Name an "
            "interpreter that has it: TF_DPFP_OPACUS_PYTHON=...",
            file=sys.stderr,
        )
        sys.exit(problems.NOT_INSTALLED)
    return opacus, optimizers, torch


def _to_torch(value: np.ndarray) -> np.ndarray:
    """A kernel, inputs first, or images, channels last, as PyTorch's."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    return value.T


def _to_keras(value: np.ndarray) -> np.ndarray:
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T


def main(path: str) -> None:
    opacus, optimizers, torch = _import()
    nn = torch.nn

    class Mean(nn.Module):
        def __init__(self, *dims):
            super().__init__()
            self._dims = dims

        def forward(self, x):
            return x.mean(dim=self._dims)

    def build(name, bias):
        if name == "mlp":
            return nn.Sequential(
                nn.Linear(6, 8, bias=bias),
                nn.Tanh(),
                nn.Linear(8, 3, bias=bias),
            )
        if name == "cnn":
            return nn.Sequential(
                nn.Conv2d(2, 4, 3, stride=2),
                nn.ReLU(),
                # As Keras pads an even kernel: at the end.
                nn.ZeroPad2d((0, 1, 0, 1)),
                nn.Conv2d(4, 5, 2),
                nn.Tanh(),
                Mean(2, 3),
                nn.Linear(5, 3),
            )
        return nn.Sequential(nn.Embedding(10, 4), Mean(1), nn.Linear(4, 3))

    def is_table(name, index):
        return name == "text" and index == 0

    def set_weights(name, model):
        parameters = list(model.parameters())
        shapes = [
            tuple(p.shape)
            if is_table(name, index)
            else _to_keras(p.detach().numpy()).shape
            for index, p in enumerate(parameters)
        ]
        values = problems.weights(name, shapes)
        for index, (parameter, value) in enumerate(
            zip(parameters, values, strict=True)
        ):
            if not is_table(name, index):
                value = _to_torch(value)
            parameter.data = torch.from_numpy(value.copy())

    def train(name, per_layer=False):
        model = build(name, bias=not per_layer)
        set_weights(name, model)
        model = opacus.GradSampleModule(model)
        count = len(list(model.parameters()))
        optimizer = optimizers.DPOptimizer
        clip = problems.CLIP
        if per_layer:
            # Of every parameter; without biases that is every layer.
            optimizer = optimizers.DPPerLayerOptimizer
            clip = [problems.CLIP / count**0.5] * count
        optimizer = optimizer(
            torch.optim.SGD(model.parameters(), lr=problems.LEARNING_RATE),
            noise_multiplier=0.0,
            max_grad_norm=clip,
            expected_batch_size=problems.BATCH,
        )
        x, y = problems.data(name)
        if x.ndim == 4:
            x = x.transpose(0, 3, 1, 2)
        x = torch.from_numpy(x.copy())
        y = torch.from_numpy(y.astype("int64"))
        for start in range(0, len(y), problems.BATCH):
            rows = slice(start, start + problems.BATCH)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
        weights = [p.detach().numpy() for p in model.parameters()]
        return [
            weight if is_table(name, index) else _to_keras(weight)
            for index, weight in enumerate(weights)
        ]

    results = {name: train(name) for name in problems.MODELS}
    results["mlp per layer"] = train("mlp", per_layer=True)
    problems.save(path, results)


if __name__ == "__main__":
    main(sys.argv[1])
