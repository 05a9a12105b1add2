"""Mutants of the package: small changes, and the tests that mirror a file.

See `benchmarks/mutation.py`, which runs them.
"""

import ast
import dataclasses
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
# Files of the package, and the tests that mirror them, the fastest first.
TESTS: dict[str, tuple[str, ...]] = {
    "accounting/banded.py": ("accounting/banded_test.py",),
    "accounting/bands.py": ("accounting/bands_test.py",),
    "accounting/calibration.py": ("accounting/calibration_test.py",),
    "accounting/entries.py": ("accounting/entries_test.py",),
    "accounting/epsilon.py": ("accounting/epsilon_test.py",),
    "accounting/events.py": ("accounting/events_test.py",),
    "accounting/joint.py": ("accounting/joint_test.py",),
    "accounting/ledger_rows.py": ("accounting/ledger_rows_test.py",),
    "accounting/losses.py": ("accounting/epsilon_test.py",),
    "accounting/persons.py": ("accounting/persons_test.py",),
    "accounting/releases.py": ("accounting/releases_test.py",),
    "accounting/representations.py": (
        "accounting/accounting_representations_test.py",
    ),
    "accounting/samplings.py": ("accounting/samplings_test.py",),
    "accounting/searches.py": ("accounting/searches_test.py",),
    "accounting/sums.py": (
        "accounting/sums_test.py",
        "accounting/many_kinds_test.py",
    ),
    "accounting/table.py": ("accounting/table_test.py",),
    "accounting/tradeoff.py": ("accounting/tradeoff_test.py",),
    "clipping/adaptive.py": ("clipping/adaptive_test.py",),
    "clipping/clipped_sum.py": ("clipping/clipped_sum_test.py",),
    "clipping/contributions.py": ("clipping/contributions_test.py",),
    "clipping/factors.py": ("clipping/factors_test.py",),
    "clipping/groupings.py": ("clipping/groupings_test.py",),
    "clipping/representations.py": ("clipping/clip_representations_test.py",),
    "clipping/thresholds.py": ("clipping/thresholds_test.py",),
    "counting/agreement.py": (
        "counting/release_ledger_test.py",
        "training/persons_test.py",
    ),
    "counting/claims.py": (
        "counting/claims_test.py",
        "counting/release_ledger_test.py",
    ),
    "counting/ledger.py": (
        "counting/release_ledger_test.py",
        "counting/threads_test.py",
    ),
    "counting/release.py": ("counting/release_ledger_test.py",),
    "counting/restores.py": (
        "counting/restores_test.py",
        "counting/release_ledger_test.py",
        "mechanisms/loaded_test.py",
    ),
    "counting/rows.py": (
        "counting/release_ledger_test.py",
        "accounting/ledger_rows_test.py",
    ),
    "evaluation/callback.py": ("evaluation/callback_test.py",),
    "evaluation/data.py": (
        "evaluation/data_test.py",
        "evaluation/evaluate_test.py",
    ),
    "evaluation/evaluate.py": ("evaluation/evaluate_test.py",),
    "evaluation/results.py": ("evaluation/evaluate_test.py",),
    "evaluation/settings.py": ("evaluation/evaluate_test.py",),
    "evaluation/statistics.py": ("evaluation/statistics_test.py",),
    "evaluation/values.py": ("evaluation/values_test.py",),
    "keras_private/lookups.py": (
        "keras_private/keras_lookups_test.py",
        "training/out_of_range_test.py",
    ),
    "layers/dealt_rows.py": ("layers/dealt_rows_test.py",),
    "layers/frozen_affine.py": ("layers/frozen_affine_test.py",),
    "layers/label_loss.py": ("layers/label_loss_test.py",),
    "layers/per_example.py": ("layers/per_example_test.py",),
    "layers/representation.py": ("layers/representation_layer_test.py",),
    "mechanisms/correlated.py": ("training/correlated_test.py",),
    "mechanisms/dealt.py": ("mechanisms/dealt_test.py",),
    "mechanisms/fit_batches.py": (
        "mechanisms/fit_steps_test.py",
        "training/counting_test.py",
    ),
    "mechanisms/fit_steps.py": ("mechanisms/fit_steps_test.py",),
    "mechanisms/gradients.py": (
        "training/counting_test.py",
        "training/private_step_test.py",
    ),
    "mechanisms/joint.py": ("training/representations_test.py",),
    "mechanisms/ordinary_steps.py": ("mechanisms/ordinary_steps_test.py",),
    "mechanisms/representations.py": ("training/representations_test.py",),
    "mechanisms/state.py": (
        "mechanisms/state_test.py",
        "training/counting_test.py",
        "mechanisms/loaded_test.py",
    ),
    "mechanisms/train_step.py": (
        "training/private_step_test.py",
        "training/views_test.py",
    ),
    "mechanisms/updates.py": ("mechanisms/updates_test.py",),
    "noise/allocation.py": ("noise/allocation_test.py",),
    "noise/box_muller.py": ("noise/gaussian_test.py",),
    "noise/chain.py": ("noise/chain_test.py",),
    "noise/gaussian.py": ("noise/gaussian_test.py",),
    "noise/keys.py": ("noise/keys_test.py", "noise/fork_test.py"),
    "noise/passing.py": ("noise/passing_test.py",),
    "noise/secure.py": ("noise/secure_test.py",),
    "noise/seeds.py": ("noise/seeds_test.py",),
    "optimizers/adaptation.py": ("optimizers/adaptation_test.py",),
    "optimizers/banded.py": (
        "optimizers/correlation_test.py",
        "training/correlated_test.py",
    ),
    "optimizers/carrier_state.py": ("optimizers/carrier_state_test.py",),
    "optimizers/clipped_gradients.py": (
        "optimizers/private_optimizer_test.py",
    ),
    "optimizers/correlation.py": (
        "optimizers/correlation_test.py",
        "training/correlated_test.py",
    ),
    "optimizers/counted.py": (
        "optimizers/private_optimizer_test.py",
        "counting/release_ledger_test.py",
    ),
    "optimizers/expected_batch_size.py": (
        "optimizers/private_optimizer_test.py",
    ),
    "optimizers/joint_release.py": ("training/representations_test.py",),
    "optimizers/private_optimizer.py": (
        "optimizers/private_optimizer_test.py",
        "counting/release_ledger_test.py",
    ),
    "optimizers/read_only.py": (
        "optimizers/arguments_agree_test.py",
        "optimizers/private_optimizer_test.py",
    ),
    "optimizers/release.py": (
        "optimizers/release_test.py",
        "optimizers/row_release_test.py",
    ),
    "optimizers/restoring.py": ("mechanisms/loaded_test.py",),
    "optimizers/row_release.py": ("optimizers/row_release_test.py",),
    "optimizers/settings.py": (
        "optimizers/settings_test.py",
        "optimizers/private_optimizer_test.py",
        "optimizers/arguments_agree_test.py",
    ),
    "optimizers/sparse.py": ("optimizers/sparse_test.py",),
    "per_example/consecutive.py": (
        "per_example/consecutive_test.py",
        "training/persons_test.py",
    ),
    "per_example/convolutional_lstm.py": (
        "per_example/convolutional_lstm_test.py",
    ),
    "per_example/embedding.py": (
        "per_example/embedding_rule_test.py",
        "training/out_of_range_test.py",
    ),
    "per_example/recording.py": (
        "per_example/recording_test.py",
        "per_example/own_weights_test.py",
        "per_example/time_distributed_test.py",
    ),
    "per_example/time_distributed.py": (
        "per_example/time_distributed_test.py",
    ),
    "sampling/batching.py": ("sampling/batching_test.py",),
    "sampling/binomial.py": ("sampling/binomial_test.py",),
    "sampling/buckets.py": ("sampling/buckets_test.py",),
    "sampling/calibration.py": ("training/calibrating_test.py",),
    "sampling/capacities.py": ("sampling/capacities_test.py",),
    "sampling/cyclic.py": ("sampling/cyclic_test.py",),
    "sampling/dealing.py": ("sampling/dealing_test.py",),
    "sampling/labels.py": ("sampling/labels_test.py",),
    "sampling/padding.py": ("sampling/padding_test.py",),
    "sampling/person_ids.py": ("sampling/person_batches_test.py",),
    "sampling/persons.py": ("sampling/person_batches_test.py",),
    "sampling/poisson.py": (
        "sampling/person_batches_test.py",
        "sampling/poisson_test.py",
        "sampling/views_test.py",
    ),
    "sampling/registry.py": (
        "sampling/registry_test.py",
        "sampling/sources_test.py",
        "sampling/poisson_test.py",
    ),
    "sampling/source.py": ("sampling/sources_test.py",),
    "sampling/sources.py": ("sampling/sources_test.py",),
    "sampling/stratified.py": ("sampling/stratified_test.py",),
    "sampling/views.py": ("sampling/views_test.py",),
    "step/microbatch.py": ("training/private_step_test.py",),
    "step/sparse_tables.py": (
        "step/step_sparse_tables_test.py",
        "training/sparse_tables_test.py",
    ),
    "training/backups.py": ("training/backups_test.py",),
    "training/callbacks.py": ("training/callbacks_test.py",),
    "training/durable_files.py": ("training/durable_files_test.py",),
    "training/journal.py": ("training/journal_test.py",),
}

_COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Pow: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_NAMES = {
    "maximum": "minimum",
    "minimum": "maximum",
    "max": "min",
    "min": "max",
    "ceil": "floor",
    "floor": "ceil",
    "fmin": "fmax",
    "all": "any",
    "any": "all",
    "zeros_like": "ones_like",
}
# Whose first two arguments may be exchanged: no change of it is a bug.
_SYMMETRIC = frozenset(
    "add allclose array_equal equal fmax fmin gcd hypot isclose logaddexp "
    "logical_and logical_or max maximum min minimum multiply not_equal "
    "squared_difference".split()
)
# What they do is known before: what is left out is shapes, texts or warnings.
_CHECKS_ONLY = frozenset(("ensure_shape", "errstate", "warn"))


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: File of the package.
        number: Number among the mutants of the file.
        line: Line of the change.
        change: The change, in words.
    """

    file: str
    number: int
    line: int
    change: str

    @property
    def name(self) -> str:
        """Name of the mutant, for a file of results."""
        return f"{self.file}:{self.line}: {self.change}"


def mutants_of(file: str, text: str) -> list[Mutant]:
    """Makes all mutants of a file.

    Args:
        file: Name of the file.
        text: Its text.

    Returns:
        The mutants, in the order of the code.
    """
    return [
        Mutant(file, number, node.lineno, change)
        for number, (node, change, _) in enumerate(_changes(ast.parse(text)))
    ]


def text_of(mutant: Mutant, text: str) -> str:
    """Makes the file of a mutant.

    Args:
        mutant: The mutant.
        text: Its file, without the change.

    Returns:
        The file with the change.
    """
    tree = ast.parse(text)
    _, _, apply = list(_changes(tree))[mutant.number]
    apply()
    return ast.unparse(ast.fix_missing_locations(tree))


@dataclasses.dataclass(frozen=True)
class Listed:
    """One change of one file, chosen by hand.

    Attributes:
        file: File of the package.
        tests: Files of tests that must fail.
        change: `old => new`, as in the list.
    """

    file: str
    tests: tuple[str, ...]
    change: str

    @property
    def name(self) -> str:
        """Name of the mutant, for a file of results."""
        return f"{self.file}: {self.change}"

    def applied(self, text: str) -> str:
        """Makes the file of the mutant.

        Args:
            text: The file, without the change.

        Returns:
            The file with the change.

        Raises:
            ValueError: If the text to change is not there, or several times.
        """
        found = re.fullmatch("(?:([0-9]+)@ )?(.*?) =>(?: (.*))?", self.change)
        if found is None:
            raise ValueError(f"No change. Received: {self.change!r}")
        place, old, new = found.groups()
        old, new = (t.replace("\\n", "\n") for t in (old, new or ""))
        pieces = text.split(old)
        count = int(place or 1)
        if not count < len(pieces) or (place is None and len(pieces) != 2):
            raise ValueError(
                f"The text must be in the file, once or by its place. "
                f"Received: {self.name}, {len(pieces) - 1} times"
            )
        return old.join(pieces[:count]) + new + old.join(pieces[count:])


def listed(path: pathlib.Path) -> list[Listed]:
    """Reads a list of mutants.

    Args:
        path: The list.

    Returns:
        The mutants, in their order.
    """
    found: list[Listed] = []
    file, tests = "", tuple[str, ...]()
    for line in path.read_text().splitlines():
        header = re.fullmatch(r"\[(\S+\.py)\](.*)", line)
        if header:
            file, rest = header.groups()
            tests = tuple(rest.split()) or TESTS[file]
        elif line and not line.startswith("#"):
            found.append(Listed(file, tests, line))
    return found


def _changes(tree: ast.Module) -> Iterator[tuple]:
    """Lists changes: the node, the words, and the function that makes it."""
    for body in _bodies(tree):
        for index, statement in enumerate(body):
            yield from _dropped(body, index, statement)
    for node in _code(tree):
        yield from _changes_of(node)


def _bodies(tree: ast.AST) -> Iterator[list]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef)):
            continue
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            if isinstance(body, list):
                yield body


def _dropped(body: list, index: int, statement: ast.stmt) -> Iterator[tuple]:
    """Leaves a statement out that is there for what it does."""
    text = ast.unparse(statement).split("\n")[0][:60]
    is_call = isinstance(statement, ast.Expr) and isinstance(
        statement.value, ast.Call
    )
    if is_call or isinstance(statement, (ast.AugAssign, ast.Raise)):

        def drop():
            body[index] = ast.copy_location(ast.Pass(), statement)

        yield statement, f"without `{text}`", drop


# What is for readers only: no change of it is a bug.
_WORDS = (ast.Raise, ast.AnnAssign, ast.Import, ast.ImportFrom, ast.JoinedStr)


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """Walks through what runs: no messages, types or decorators."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _WORDS):
            value = node.value if isinstance(node, ast.AnnAssign) else None
            if value is not None and "TypeAlias" not in ast.unparse(node):
                yield value
                yield from _code(value)
            continue
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            for statement in node.body:
                yield statement
                yield from _code(statement)
            continue
        yield node
        yield from _code(node)


def _changes_of(node: ast.AST) -> Iterator[tuple]:
    """Lists the changes of one node."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        new = _COMPARISONS[type(node.ops[0])]
        yield _set(node, node.ops, 0, new())
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and not _is_type(node):
        kind = _OPERATORS.get(type(node.op))
        if kind is not None:
            yield _set_field(node, "op", kind())
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield _set_field(node, "op", other)
    if isinstance(node, (ast.If, ast.IfExp)):
        for value in (True, False):
            yield _set_field(node, "test", ast.Constant(value))
    if isinstance(node, ast.Call):
        yield from _changes_of_call(node)
    if isinstance(node, ast.keyword) and node.arg == "strict":
        return  # Of lengths that never differ.
    for field, value in ast.iter_fields(node):
        if isinstance(value, ast.Constant):
            for number in _other_numbers(value.value):
                yield _set_field(node, field, ast.Constant(number))
        elif isinstance(value, ast.UnaryOp) and not isinstance(
            value.operand, ast.Constant
        ):
            yield _set_field(node, field, value.operand)


def _is_type(node: ast.AST) -> bool:
    """Tells a union of types, whose operator no code reads."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.BitOr):
        return False
    words = re.findall(r"[A-Za-z_]\w*(?![\w.])", ast.unparse(node))
    return all(w[0].isupper() or w in ("int", "float", "str") for w in words)


def _changes_of_call(node: ast.Call) -> Iterator[tuple]:
    starred = any(isinstance(a, ast.Starred) for a in node.args)
    called = ast.unparse(node.func).rpartition(".")[2]
    if called in _CHECKS_ONLY:
        return
    if len(node.args) >= 2 and not starred and called not in _SYMMETRIC:

        def exchange():
            node.args[0], node.args[1] = node.args[1], node.args[0]

        yield node, f"arguments exchanged in `{_short(node)}`", exchange
    if isinstance(node.func, ast.Attribute) and node.func.attr in _NAMES:
        yield _set_field(node.func, "attr", _NAMES[node.func.attr], node)
    if isinstance(node.func, ast.Name) and node.func.id in _NAMES:
        yield _set_field(node.func, "id", _NAMES[node.func.id], node)
    for index, keyword in enumerate(node.keywords):
        if keyword.arg not in (None, "strict", "name"):

            def drop(index=index):
                del node.keywords[index]

            yield node, f"without `{keyword.arg}=` in `{_short(node)}`", drop


def _other_numbers(value: object) -> list:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [value * 2 if value else 1.0]
    return []


def _set(node: ast.AST, values: list, index: int, new: ast.AST) -> tuple:
    old = type(values[index]).__name__

    def apply():
        values[index] = new

    words = f"{old} -> {type(new).__name__} in `{_short(node)}`"
    return node, words, apply


def _set_field(
    node: ast.AST, field: str, new: object, shown: ast.AST | None = None
) -> tuple:
    def words(value):
        if isinstance(value, (ast.operator, ast.boolop)):
            return type(value).__name__
        return ast.unparse(value) if isinstance(value, ast.AST) else str(value)

    change = f"{words(getattr(node, field))[:40]} -> {words(new)[:40]}"
    where = _short(node if shown is None else shown)
    located = node if hasattr(node, "lineno") else new
    if not hasattr(located, "lineno"):
        located = ast.copy_location(ast.Pass(), getattr(node, field))
    return located, f"{change} in `{where}`", lambda: setattr(node, field, new)


def _short(node: ast.AST) -> str:
    return ast.unparse(node).split("\n")[0][:70]
