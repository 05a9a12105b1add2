"""The work of compiled programs, held against what is known of them."""

import pytest
import tensorflow as tf

from benchmarks import compiled_program


def _work(function, *arguments):
    compiled = tf.function(function, jit_compile=True, autograph=False)
    lowered = compiled.experimental_get_compiler_ir(*arguments)
    return compiled_program.work(lowered(stage="optimized_hlo"))


def test_a_product():
    left, right = tf.ones([64, 32]), tf.ones([32, 16])
    found = _work(lambda x, y: tf.matmul(x, y), left, right)
    assert found.multiply_adds == 64 * 32 * 16
    assert found.kernels >= 1
    assert found.bytes >= 4 * (64 * 32 + 32 * 16 + 64 * 16)


@pytest.mark.parametrize("strides", [1, 2])
def test_a_convolution(strides):
    images, kernel = tf.ones([4, 8, 8, 3]), tf.ones([3, 3, 3, 16])
    found = _work(
        lambda x, k: tf.nn.conv2d(x, k, strides, "SAME"), images, kernel
    )
    positions = (8 // strides) ** 2
    assert found.multiply_adds == 4 * positions * 3 * 3 * 3 * 16


def test_operations_without_products_are_one_kernel():
    x = tf.ones([1000])
    found = _work(lambda x: tf.tanh(x * 3.0 + 1.0) - x, x)
    assert found == compiled_program.Work(1, 8000, 0)


_LOOP = """
HloModule loop

%body (p: f32[16,16]) -> f32[16,16] {
  %p = f32[16,16]{1,0} parameter(0)
  ROOT %d = f32[16,16]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (x: f32[16,16]) -> f32[16,16] {
  %x = f32[16,16]{1,0} parameter(0)
  ROOT %w = f32[16,16]{1,0} while(%x), condition=%c, body=%body BACKEND
}
"""  # noqa: E501


def test_a_loop_counts_as_often_as_xla_knows_it_to_run():
    known = ', backend_config={"known_trip_count":{"n":"5"}}'
    for config, times in ((known, 5), ("", 1)):
        found = compiled_program.work(_LOOP.replace(" BACKEND", config))
        assert found.multiply_adds == times * 16**3
        assert found.kernels == times


def test_what_is_cut_off_is_not_read():
    x = tf.ones([100_000])
    found = _work(lambda x: tf.tanh(x[10:20]) + 1.0, x)
    assert found.bytes < 1000


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no entry computation"):
        compiled_program.work("HloModule nothing")
