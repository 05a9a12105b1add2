"""Random calls of every operation that a proof has a rule for.

Their inputs are examples, numbers that are the same everywhere with as many
elements as there are examples along any axis, and small constants. What comes
out is seldom meaningful; it only must not tell how many examples there are.
"""

import functools
import inspect
import random
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from tf_dpfp.independence import rule_table

# Drawn elsewhere (loops, branches, calls), made by layers and tables, or gone
# from TensorFlow.
DRAWN_OTHERWISE = frozenset(
    """
    AnonymousHashTable BatchMatrixBandPart Case CheckNumericsV2 Concat Const
    Copy CopyHost
    DebugGradientIdentity DebugIdentityV2 DebugIdentityV3 DeepCopy EagerPyFunc
    Empty EnsureShape HashTableV2 If IgammaGradA InvGrad LookupTableFindV2
    LookupTableSizeV2 MutableHashTableV2 OptimizationBarrier OptionalFromValue
    OptionalGetValue OptionalNone PartitionedCall Placeholder
    PlaceholderWithDefault PyFunc PyFuncStateless RaggedTensorToTensor
    RngReadAndSkip Snapshot StatefulPartitionedCall StatelessCase StatelessIf
    StatelessWhile TopK VarHandleOp VarIsInitializedOp While
    """.split()
)
_DTYPES = (
    [tf.float32] * 6
    + [tf.int32] * 2
    + [tf.bool, tf.string, tf.complex64, tf.int64, tf.uint8]
)
# Ranks of tensors that operations on images, matrices and rows work on.
_RANKS = {
    "images": 4, "filter": 4, "out_backprop": 4, "orig_input": 4,
    "orig_output": 4, "original_image": 4, "grads": 4, "logits": 2,
    "predictions": 2, "matrix": 3, "y_backprop": 4, "size": 1,
    "image": 4, "boxes": 2, "box_ind": 1, "input_min": 0, "input_max": 0,
    "num_bits": 0, "input_image": 4, "output_image": 4, "transforms": 2,
    "labels": 2,
}  # fmt: skip
# Names that `tf.raw_ops` has for inputs.
_RENAMED = {
    "reduction_indices": "axis", "dim": "axis", "split_dim": "axis",
    "t": "x", "e": "y",
}  # fmt: skip
_SCALARS = frozenset(
    (
        ("AdjustContrastv2", "contrast_factor"), ("Fill", "value"),
        ("DenseBincount", "size"), ("TensorListResize", "size"),
        ("MatrixDiagV3", "padding_value"),
        ("MatrixDiagPartV3", "padding_value"),
        ("PadV2", "constant_values"), ("OneHot", "on_value"),
        ("OneHot", "off_value"), ("AdjustHue", "delta"),
        ("AdjustSaturation", "scale"),
    )
)  # fmt: skip
_RANK_4 = ("Pool", "Conv2", "LRN", "Patches", "Depth", "FusedBatch", "Dilation")
_ATTRIBUTES: dict[str, list[Any]] = {
    "padding": ["SAME", "VALID"],
    "block_size": [2],
    "rates": [[1, 1, 1, 1]],
    "ksizes": [[1, 2, 2, 1]],
    "is_training": [False],
    "num_buckets": [5],
    "pattern": ["a"],
    "rewrite": ["b"],
    "boundaries": [[-1.0, 0.5, 1.5]],
    "message": ["x"],
    "k": [1, 2],
    "num_split": [2],
    "interpolation": ["NEAREST", "BILINEAR"],
    "mode": ["REFLECT", "SYMMETRIC"],
    "key": [[1, 2]],
    "equation": ["ab,bc->ac", "ab,ab->a", "ab,ac->bc", "ab,cb->", "ab,cd->ac",
                 "aa,ab->b"],
    "keep_dims": [True, False],
    "transpose_a": [True, False],
    "adj_y": [True, False],
    "exclusive": [True, False],
    "resize_if_index_out_of_bounds": [True, False],
    "begin_mask": [0, 1, 2], "end_mask": [0, 1, 2], "shrink_axis_mask": [0, 1],
    "seq_dim": [1], "batch_dim": [0], "num": [1, 2, 3], "axis": [0, 1, -1],
    "squeeze_dims": [[], [0], [1]], "batch_dims": [0, 0, 1],
}  # fmt: skip
_MATRICES = ("Cholesky", "Qr", "Svd", "Eig", "Inverse", "Determinant", "Solve")
_RANDOM = ("Random", "Multinomial", "Truncated")
# Numbers, and functions of the batch size.
_SIZES: list[Any] = [
    lambda rows: rows, lambda rows: rows, lambda rows: rows, 1, 1, 2, 3, 4, 5,
    lambda rows: rows - 1, lambda rows: rows * 2, lambda rows: rows + 1,
]  # fmt: skip


class Unlucky(Exception):
    """A call that can't be made."""


class Call:
    """A random call of one operation.

    Args:
        draw: The random choices.
        tensors: Tensors to choose from, some of which are examples.
        lists: Lists of tensors to choose from.
    """

    def __init__(self, draw: random.Random, tensors, lists):
        self.draw = draw
        self.tensors = list(tensors)
        self.lists = list(lists)

    @functools.cached_property
    def rows(self):
        """The batch size."""
        return tf.shape(self.tensors[0])[0]

    def size(self):
        """Chooses a size, often the batch size."""
        # No operation is made for a size that is not chosen.
        chosen = self.draw.choice(_SIZES)
        return chosen(self.rows) if callable(chosen) else chosen

    def uniform(self, dtype, rank=None):
        """Makes a tensor of one number, or one that counts upwards."""
        if rank is None:
            rank = self.draw.choice([0, 1, 1, 2, 2, 2, 3, 3, 4])
        sizes = [self.size() for _ in range(rank)]
        alike = [t for t in self.tensors if t.shape.rank == rank and rank]
        if alike and self.draw.random() < 0.6:
            sizes = tf.unstack(tf.shape(self.draw.choice(alike)), num=rank)
            if self.draw.random() < 0.5:
                sizes[self.draw.randrange(rank)] = self.size()
        dims = tf.stack(sizes) if sizes else tf.constant([], tf.int32)
        if dtype == tf.string:
            return tf.fill(dims, "a")
        if self.draw.random() < 0.15 and dtype in (tf.float32, tf.int32):
            counted = tf.range(tf.reduce_prod(dims))
            return tf.cast(tf.reshape(counted, dims), dtype)
        number = self.draw.choice([0, 1, 1, 2])
        return tf.fill(dims, tf.cast(number, dtype))

    def tensor(self, dtype, rank=None):
        """Chooses a tensor of a type."""
        if dtype == tf.variant:
            if not self.lists:
                raise Unlucky
            return self.draw.choice(self.lists)
        if dtype == tf.resource:
            raise Unlucky
        found = [
            t
            for t in self.tensors
            if t.dtype == dtype and rank in (None, t.shape.rank)
        ]
        if found and self.draw.random() < 0.5:
            return self.draw.choice(found[-6:])
        wide = [t for t in self.tensors[:2] if dtype == tf.float32]
        if wide and rank and rank > 1 and self.draw.random() < 0.5:
            t = self.draw.choice(wide)
            while t.shape.rank < rank:
                t = tf.expand_dims(t, self.draw.randrange(1, t.shape.rank + 1))
            if t.shape.rank == rank:
                return t
        return self.uniform(dtype, rank)

    def numbers(self, operation, name, others):
        """Makes whole numbers that say what an operation does."""
        draw = self.draw
        rank = next((t.shape.rank for t in others if t.shape.rank), 1)
        if (operation, name) == ("ReverseV2", "axis"):
            return tf.constant([draw.randrange(rank)])
        if name in ("axis", "dim", "dimension", "concat_dim", "split_dim"):
            return tf.constant(draw.randrange(rank))
        if name == "reduction_indices":
            count = draw.randrange(1, rank + 1)
            return tf.constant(draw.sample(range(rank), count))
        if name in ("perm", "x"):
            return tf.constant(draw.sample(range(rank), rank))
        if operation in ("SpaceToBatchND", "BatchToSpaceND"):
            if name in ("paddings", "crops"):
                return tf.constant([[0, draw.choice([0, 1])]])
        if name in ("paddings", "crops"):
            widths = [[0, draw.choice([0, 0, 1])] for _ in range(rank)]
            return tf.constant(widths)
        if name in ("ksize", "strides") and operation == "MaxPoolV2":
            return tf.constant([1, 2, 2, 1])
        if (operation, name) in _SCALARS:
            return tf.convert_to_tensor(self.size())
        if name == "block_shape":
            return tf.constant([draw.choice([1, 2])])
        if name in ("begin", "strides", "end") and draw.random() < 0.7:
            plain = {"begin": 0, "strides": 1}.get(name)
            sizes = [self.size() for _ in range(rank)]
            if plain is not None and draw.random() < 0.6:
                sizes = [plain] * rank
            return tf.stack(sizes)
        if name in _OF_ONE:
            return tf.convert_to_tensor(self.size())
        if name in _OF_SHAPES:
            count = 2 if name == "size" else draw.choice([rank, rank, 1, 2])
            return tf.stack([self.size() for _ in range(count)])
        if name in ("input_sizes", "filter_sizes", "orig_input_shape"):
            count = 5 if "3D" in operation else 4
            return tf.stack([self.size() for _ in range(count)])
        if name in ("crop_size", "image_size"):
            count = 2 if name == "crop_size" else 4
            return tf.stack([self.size() for _ in range(count)])
        if name == "num_bits":
            return tf.constant(8)
        if name == "size_splits":
            return tf.stack([self.size(), self.draw.choice([-1, 1])])
        if name == "seed":
            return tf.constant([1, 2])
        if name == "element_shape":
            return tf.constant(-1)
        return None


_OF_ONE = frozenset(
    """
    num_elements index k depth num_rows num_cols num_segments start limit delta
    num_lower num_upper minval maxval max_num_elements num_samples shift
    """.split()
)
_OF_SHAPES = frozenset(
    "shape dims size multiples output_shape s0 s1 fft_length".split()
)


def names() -> list[str]:
    """Lists the operations that can be drawn."""
    return [n for n in rule_table.operations() if n not in DRAWN_OTHERWISE]


def call(draw: random.Random, tensors, lists, name: str) -> list[tf.Tensor]:
    """Calls an operation on random inputs.

    Args:
        draw: The random choices.
        tensors: Tensors to choose from; the first are examples.
        lists: Lists of tensors to choose from.
        name: Type of the operation.

    Returns:
        Its outputs. Of random numbers, ones in their shape.

    Raises:
        Unlucky: If no inputs are found; TensorFlow may raise, too.
    """
    maker = Call(draw, tensors, lists)
    definition = op_def_registry.get(name)
    types, arguments = _attributes(maker, definition, name)
    if name == "Bitcast" or (name == "Cast" and draw.random() < 0.5):
        arguments["type" if name == "Bitcast" else "DstT"] = tf.int32
    given: list[tf.Tensor] = []
    for argument in definition.input_arg:
        arguments[argument.name] = _input(maker, argument, types, given, name)
        given += tf.nest.flatten(arguments[argument.name])
    known = inspect.signature(getattr(tf.raw_ops, name)).parameters
    used = {a.name for a in definition.input_arg}
    of_inputs = {a.type_attr for a in definition.input_arg} | {
        a.number_attr for a in definition.input_arg
    } | {a.type_list_attr for a in definition.input_arg}  # fmt: skip
    for key in of_inputs:
        if key not in used:
            arguments.pop(key, None)
    arguments = {
        k if k in known else _RENAMED.get(k, k): v for k, v in arguments.items()
    }
    outputs = getattr(tf.raw_ops, name)(**arguments)
    found = tf.nest.flatten(outputs)
    found = [t for t in found if isinstance(t, tf.Tensor)]
    if any(word in name for word in _RANDOM):
        found = [tf.ones_like(t) for t in found]
    return found


def _attributes(maker: Call, definition, name: str):
    """Draws types, and settings that have no default or matter."""
    types: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    rank = 5 if "3D" in name and "FFT" not in name else 4
    for attribute in definition.attr:
        key = attribute.name
        if attribute.type == "type":
            allowed = attribute.allowed_values.list.type
            dtype = maker.draw.choice(
                [
                    t
                    for t in _DTYPES
                    if not allowed or t in map(tf.as_dtype, allowed)
                ]
                or [tf.as_dtype(t) for t in allowed]
            )
            default = attribute.HasField("default_value")
            if default and maker.draw.random() < 0.7:
                dtype = tf.as_dtype(attribute.default_value.type)
            types[key] = arguments[key] = dtype
        elif key in ("ksize", "strides") and attribute.type == "list(int)":
            inner = [maker.draw.choice([1, 2, 3])] * (rank - 2)
            arguments[key] = [1, *inner, 1]
        elif key in _ATTRIBUTES:
            if not attribute.HasField("default_value") or (
                maker.draw.random() < 0.5
            ):
                arguments[key] = maker.draw.choice(_ATTRIBUTES[key])
                if attribute.type == "list(int)" and rank == 5:
                    raise Unlucky
        elif key == "dilations":
            continue
    if name == "IdentityN":
        arguments.pop("T", None)
    if name == "MirrorPad" or name == "MirrorPadGrad":
        arguments["mode"] = maker.draw.choice(["REFLECT", "SYMMETRIC"])
    if name == "Unpack":
        arguments["num"] = maker.draw.choice([1, 2, 3, 4])
    if name == "TensorListReserve" or name == "EmptyTensorList":
        types["element_dtype"] = arguments["element_dtype"] = tf.float32
    if name.startswith("TensorList") and "element_dtype" in arguments:
        types["element_dtype"] = arguments["element_dtype"] = tf.float32
    return types, arguments


def _input(maker: Call, argument, types, given, name: str):
    """Draws one input, or several of one type."""
    draw, key = maker.draw, argument.name
    if argument.type_attr:
        dtype = types.get(argument.type_attr, tf.float32)
    elif argument.type_list_attr:
        return [maker.tensor(tf.float32), maker.tensor(tf.int32)]
    else:
        dtype = tf.as_dtype(argument.type)
    if dtype == tf.resource:
        return _variable(maker)
    rank = _rank(maker, key, name, given)
    if argument.number_attr:
        first = maker.tensor(dtype, rank)
        second = maker.tensor(dtype, first.shape.rank)
        return [first, second]
    whole = dtype in (tf.int32, tf.int64)
    unknown = key not in ("x", "size") or name in (
        "InvertPermutation", "ResizeBilinear", "ResizeArea", "ResizeBicubic",
        "ResizeNearestNeighbor", "ScaleAndTranslate", "Slice",
    )  # fmt: skip
    if whole and unknown:
        numbers = maker.numbers(name, key, given)
        if numbers is not None:
            return tf.cast(numbers, dtype)
    if key == "alg":
        return tf.constant(1)
    if key in ("counter", "key") and dtype == tf.uint64:
        return tf.zeros([2 if key == "counter" else 1], tf.uint64)
    if key in ("scale", "translation") and name.startswith("ScaleAnd"):
        return tf.constant([1.0, 1.0])
    # Many operations take several tensors of one shape.
    first = given[0] if given else None
    if first is not None and first.shape.rank and draw.random() < 0.3:
        if rank in (None, first.shape.rank) and dtype != tf.variant:
            number = "a" if dtype == tf.string else tf.cast(1, dtype)
            return tf.fill(tf.shape(first), number)
    return maker.tensor(dtype, rank)


def _rank(maker: Call, key: str, name: str, given) -> int | None:
    if (name, key) in _SCALARS:
        return 0
    if "3D" in name and "FFT" not in name:
        return 5
    if (name, key) == ("Dilation2D", "filter"):
        return 3
    if name.startswith("SparseSoftmax") and key == "labels":
        return 1
    if name in ("SpaceToBatchND", "BatchToSpaceND"):
        return 3
    if name == "ListDiff" or (name.startswith("BiasAdd") and key == "bias"):
        return 1
    if name.startswith("TensorListScatter") and key == "indices":
        return 1
    if name == "MatrixSetDiag" and key == "diagonal":
        return given[0].shape.rank - 1
    if "FusedBatch" in name and key not in ("x", "y_backprop"):
        return 1
    if key in _RANKS and "Random" not in name and name != "ResourceGather":
        return _RANKS[key]
    if any(word in name for word in _RANK_4):
        return 4
    if any(word in name for word in _MATRICES):
        return maker.draw.choice([2, 3])
    if name in ("MatMul", "SparseMatMul", "Einsum", "DenseBincount"):
        return 2
    if key in ("seq_lengths", "targets", "lam", "minval", "maxval"):
        return {"minval": 0, "maxval": 0}.get(key, 1)
    if given and given[0].shape.rank is not None and maker.draw.random() < 0.6:
        return given[0].shape.rank
    return None


_VARIABLES: list[tf.Variable] = []


def _variable(maker: Call):
    del maker
    if not _VARIABLES:
        with tf.init_scope():
            _VARIABLES.append(tf.Variable(tf.reshape(tf.range(12.0), [4, 3])))
    return _VARIABLES[0].handle
