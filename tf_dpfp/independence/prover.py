"""The proof: a walk over a graph, from what is released to the examples."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence

import tensorflow as tf

from tf_dpfp.independence import bounds as bounds_lib
from tf_dpfp.independence import findings
from tf_dpfp.independence import flow
from tf_dpfp.independence import functions
from tf_dpfp.independence import given as given_lib
from tf_dpfp.independence import inferred
from tf_dpfp.independence import joins
from tf_dpfp.independence import layouts
from tf_dpfp.independence import preconditions
from tf_dpfp.independence import registry
from tf_dpfp.independence import rule_table
from tf_dpfp.independence import state_rules
from tf_dpfp.independence import values as values_lib
from tf_dpfp.independence import without_rules
from tf_dpfp.independence.findings import Category
from tf_dpfp.independence.findings import Finding
from tf_dpfp.independence.sizes import MaybeSize
from tf_dpfp.independence.sizes import Size
from tf_dpfp.independence.sizes import Sizes
from tf_dpfp.independence.values import Kind
from tf_dpfp.independence.values import Value


class Walk:
    """Interprets operations; see `registry.Walk` for what rules use.

    Args:
        batch: The batch size: a symbol, or a number.
        layers: Names of the model's layers, for messages.
        least_rows: Smallest batch size that is spoken of.
        given: Tensors that are taken for known.
        follows_data: True to tell what no data flow into: what is free of
            data, the batch size left aside.
    """

    def __init__(
        self,
        batch: Size,
        layers: Collection[str] = (),
        least_rows: int = 1,
        given: given_lib.Given | None = None,
        follows_data: bool = False,
    ):
        self.batch = batch
        self.least_rows = least_rows
        self.given = given or given_lib.Given()
        self.flow = flow.Flow() if follows_data else None
        self.loops = 0
        self.counting = False
        self.kept: frozenset[int] = frozenset()
        self.released: frozenset[int] = frozenset()
        self.operations = 0
        self.findings: dict[tuple[Category, str], Finding] = {}
        self.random: dict[int, tf.Operation] = {}
        self.layers = layers
        self._values: dict[int, Value] = {}
        self._judges = True
        self._inference = inferred.Inference()
        self._bodies: dict[str, tf.Graph] = {}
        self._constants: dict[int, list[Value]] = {}
        # Tensors are known by their identity, and so must live on.
        self._kept: list[tf.Tensor] = []
        # Sizes of axes of examples, which did not wrap around.
        self._axes: set[MaybeSize] = set()

    def assume(self, tensor: tf.Tensor, value: Value) -> None:
        """Sets what is known of a tensor."""
        self._values[id(tensor)] = value
        self._kept.append(tensor)
        if value.is_examples:
            self._axes.update(value.shape)

    def assume_unless_known(self, tensor: tf.Tensor, value: Value) -> None:
        """Sets what is known of a tensor, if nothing is known yet."""
        if id(tensor) not in self._values:
            self.assume(tensor, value)

    def value(self, tensor: tf.Tensor) -> Value:
        """Returns what is known of a tensor, interpreting what leads to it."""
        stack = [tensor]
        known = self._values
        while stack:
            top = stack[-1]
            if id(top) in known:
                stack.pop()
                continue
            needed = self.given.needs(top)
            missing = [
                i
                for i in (top.op.inputs if needed is None else needed)
                if id(i) not in known
            ]
            if missing:
                stack.extend(missing)
                continue
            if needed is None:
                self._interpret(top.op)
            else:
                known[id(top)] = self.given.value(top, known, self.batch)
            stack.pop()
        return known[id(tensor)]

    def _interpret(self, op: tf.Operation) -> None:
        # Constants are the same in every round of a loop, and in every call.
        found = self._constants.get(id(op))
        if found is None:
            values = [self._values[id(i)] for i in op.inputs]
            found = self._outputs(op, values)
            if not values and op.type == "Const":
                self._constants[id(op)] = found
        for output, value in zip(op.outputs, found, strict=True):
            self.assume(output, value)
        if self.flow is not None:
            self.flow.note(op, self._values)

    def _outputs(self, op: tf.Operation, values: list[Value]) -> list[Value]:
        self.operations += 1
        try:
            found = self._apply(op, values)
            if op.type in inferred.CLAIMS:
                found = preconditions.without_claims(op, found)
            return [
                bounds_lib.held_by(layouts.checked(v, self.batch), t.dtype)
                for v, t in zip(found, op.outputs, strict=True)
            ]
        except findings.Refusal as refusal:
            reason, way_out = refusal.reason, refusal.way_out
            is_definite = refusal.is_definite and all(
                v.knows_sizes for v in values
            )
        except findings.RULE_ERRORS as error:
            reason = f"Its rule failed ({type(error).__name__}: {error})."
            way_out, is_definite = findings.NO_RULE, False
        return [
            self.refused(op, o, reason, way_out, is_definite)
            for o in op.outputs
        ]

    def _apply(self, op: tf.Operation, values: list[Value]) -> list[Value]:
        rule = rule_table.find(op.type)
        if rule is None or not rule.takes_mixed:
            is_one = False
            for value in values:
                if value.kind is Kind.MIXED and value.finding is not None:
                    return self._after_mixed(op, values, value.finding)
                is_one = is_one or value.kind is Kind.SINGLE
            if is_one and (rule is None or not rule.takes_single):
                return without_rules.of_one(op, values, self)
        if rule is None:
            return without_rules.of_free(op, values, self)
        results = self._by_rule(rule, op, values)
        if not any(map(layouts.hangs_with_rows, results)):
            return results
        # Rows of one number are per example, and stay so where the number
        # changes along other axes.
        promoted = [layouts.as_examples(v) for v in values]
        if promoted == values:
            return results
        try:
            again = self._by_rule(rule, op, promoted)
        except (findings.Refusal, *findings.RULE_ERRORS):
            return results
        return again

    def _by_rule(
        self, rule: registry.Rule, op: tf.Operation, values: list[Value]
    ) -> list[Value]:
        hangs = preconditions.check(rule, values)
        preconditions.check_sizes(op, rule, values, self._axes)
        found = rule.apply(op, values, self)
        results = found if isinstance(found, list) else [found]
        return preconditions.finish(rule, values, results, hangs)

    def _after_mixed(
        self, op: tf.Operation, values: Sequence[Value], finding: Finding
    ) -> list[Value]:
        """Describes what is computed from something that is not proved."""
        clipped = bounds_lib.clipped(op, values)
        if clipped is not None:
            return [clipped]
        return [values_lib.mixed(finding, self.static(o)) for o in op.outputs]

    def no_data_in(self, tensor: tf.Tensor) -> bool:
        """Returns true if no data flow into a tensor that was interpreted."""
        if self.flow is None:
            return self._values[id(tensor)].is_free
        return self.flow.is_free_tensor(tensor, self._values)

    def static(self, tensor: tf.Tensor) -> Sizes | None:
        """Returns the sizes that follow from those of the inputs."""
        op = tensor.op
        values = [self._values[id(i)] for i in op.inputs]
        return self._inference.sizes(op, values)[tensor.value_index]

    def filled(self, sizes: Sizes, tensor: tf.Tensor) -> Sizes:
        """Fills in sizes that follow from those of the inputs."""
        if None not in sizes:
            return sizes
        static = self.static(tensor)
        if static is None:
            return sizes
        return tuple(
            t if s is None else s for s, t in zip(sizes, static, strict=True)
        )

    def refined(self, value: Value, tensor: tf.Tensor) -> Value:
        """Fills in sizes of a value; see `filled`."""
        sizes = value.sizes
        if sizes is None or None not in sizes:
            return value
        return dataclasses.replace(value, sizes=self.filled(sizes, tensor))

    def join(self, op: tf.Operation, a: Value, b: Value) -> Value:
        """Returns what holds of both values."""
        try:
            return joins.join(a, b)
        except findings.Refusal as refusal:
            found = self.finding(
                op, Category.MIXED, refusal.reason, refusal.way_out
            )
            return values_lib.mixed(
                dataclasses.replace(found, is_definite=refusal.is_definite)
            )

    def finding(
        self, op: tf.Operation, category: Category, reason: str, way_out: str
    ) -> Finding:
        """Describes what an operation does wrong."""
        layer = findings.layer_of(op.name, self.layers)
        return Finding(category, layer, op.type, op.name, reason, way_out)

    def refused(
        self,
        op: tf.Operation,
        output: tf.Tensor,
        reason: str,
        way_out: str = findings.APART,
        is_definite: bool = True,
    ) -> Value:
        """Describes an output that is not proved."""
        found = self.finding(op, Category.MIXED, reason, way_out)
        # `tf.vectorized_map` writes formulas with the number of the row, for
        # which there are not enough rules.
        if "pfor" in op.name.split("/") and way_out != findings.IN_RANGE:
            is_definite = False
        found = dataclasses.replace(found, is_definite=is_definite)
        return values_lib.mixed(found, self.static(output))

    def note_random(self, op: tf.Operation) -> None:
        """Notes numbers that are drawn by the number of the row."""
        if self._judges:
            self.random[id(op)] = op

    @contextlib.contextmanager
    def unjudged(self) -> Iterator[None]:
        """Interprets without noting what is written."""
        before, self._judges = self._judges, False
        try:
            yield
        finally:
            self._judges = before

    @contextlib.contextmanager
    def tentatively(self) -> Iterator[registry.Notes]:
        """Interprets, and forgets what was noted, unless it is kept."""
        notes = registry.Notes()
        before = dict(self.findings), dict(self.random)
        try:
            yield notes
        finally:
            if not notes.are_kept:
                self.findings, self.random = before

    def body(self, op: tf.Operation, name: str) -> tf.Graph:
        """Returns the graph of a function."""
        if name in self._bodies:
            return self._bodies[name]
        graph = op.graph
        while graph is not None:
            with contextlib.suppress(ValueError, KeyError, AttributeError):
                body = functions.graph_of(graph._get_function(name))
                if body is not None:
                    self._bodies[name] = body
                    return body
            graph = getattr(graph, "outer_graph", None)
        raise findings.Refusal(
            "It calls a function that is not found.", is_definite=False
        )

    def call(
        self, op: tf.Operation, name: str, arguments: Sequence[Value]
    ) -> list[Value]:
        """Interprets a function of the graph."""
        body = self.body(op, name)
        before, self._values = self._values, {}
        if self.flow is not None:
            self.flow = self.flow.into(op, body, before)
        try:
            for tensor, value in zip(body.inputs, arguments, strict=True):
                self.assume(tensor, value)
            found = [self.value(t) for t in body.outputs]
            if self._judges:
                self.judge(body.get_operations())
            return found
        finally:
            if self.flow is not None:
                self.flow = self.flow.out_of(op, body, self._values)
            self._values = before

    def judge(self, operations: Sequence[tf.Operation]) -> None:
        """Notes what operations write, print, or hand to Python."""
        for op in operations:
            if self.flow is not None and self._sees_no_data(op):
                continue
            if op.type in functions.CALLS:
                # One that is called without a state may have effects, too.
                if op.op_def.is_stateful or self._effects(op):
                    self._judge_call(op)
            elif state_rules.has_effect(op):
                values = [self.value(i) for i in op.inputs]
                self._note(state_rules.effect(op, values, self))

    def _sees_no_data(self, op: tf.Operation) -> bool:
        if op.type not in functions.CALLS and not state_rules.has_effect(op):
            return False
        for tensor in op.inputs:
            self.value(tensor)
        return self.flow is not None and self.flow.is_free(op, self._values)

    def _judge_call(self, op: tf.Operation) -> None:
        """Interprets a function with effects, unless that was done."""
        values = [self.value(i) for i in op.inputs]
        if op.outputs and id(op.outputs[0]) not in self._values:
            self._interpret(op)
        elif not op.outputs:
            try:
                self._apply(op, values)
                return
            except (findings.Refusal, *findings.RULE_ERRORS):
                self.note_effects(op)
                return
        if op.outputs and all(
            self._values[id(o)].kind is Kind.MIXED for o in op.outputs
        ):
            self.note_effects(op)

    def note_effects(self, op: tf.Operation) -> None:
        """Notes what a function writes that does not always run."""
        if not self._judges:
            return
        effects = self._effects(op)
        if not effects:
            return
        if all(state_rules.is_abort(e) for e in effects):
            self._note(state_rules.abort(op, self))
            return
        self._note(
            self.finding(
                op,
                Category.WRITE,
                "Data, or the batch size, decide whether it writes something.",
                findings.RULE_OUT,
            )
        )

    def has_effects(self, op: tf.Operation) -> bool:
        """Tells if a function writes, prints or hands something to Python."""
        return bool(self._effects(op))

    def _effects(self, op: tf.Operation) -> list[tf.Operation]:
        """Lists the operations with effects in a function."""
        found = []
        for name in functions.names_of(op):
            for inner in self.body(op, name).get_operations():
                if inner.type in functions.CALLS:
                    found += self._effects(inner)
                elif state_rules.has_effect(inner):
                    found.append(inner)
        return found

    def _note(self, finding: Finding | None) -> None:
        if finding is not None:
            self.findings[finding.category, finding.name] = finding
