"""Operations on the last axes, with the examples along the first of these."""

import pytest
import tensorflow as tf

from tests.independence import graphs
from tf_dpfp.independence import reduction_rules

R = tf.raw_ops
MATRIX = graphs.MATRIX
COMPLEX = tf.TensorSpec([None, 3, 3], tf.complex64)
VOLUME = tf.TensorSpec([None, 3, 3, 3], tf.complex64)
REAL_VOLUME = tf.TensorSpec([None, 3, 3, 3], tf.float32)
TWO, THREE = [3, 3], [3, 3, 3]

LAST = {
    "AdjustContrastv2": (
        lambda x: R.AdjustContrastv2(images=x, contrast_factor=2.0),
        REAL_VOLUME,
    ),
    "Cholesky": (lambda x: R.Cholesky(input=x), MATRIX),
    "FFT2D": (lambda x: R.FFT2D(input=x), COMPLEX),
    "FFT3D": (lambda x: R.FFT3D(input=x), VOLUME),
    "IFFT2D": (lambda x: R.IFFT2D(input=x), COMPLEX),
    "IFFT3D": (lambda x: R.IFFT3D(input=x), VOLUME),
    "IRFFT2D": (lambda x: R.IRFFT2D(input=x, fft_length=TWO), COMPLEX),
    "IRFFT3D": (lambda x: R.IRFFT3D(input=x, fft_length=THREE), VOLUME),
    "LogMatrixDeterminant": (
        lambda x: R.LogMatrixDeterminant(input=x)[1],
        MATRIX,
    ),
    "MatrixBandPart": (
        lambda x: R.MatrixBandPart(input=x, num_lower=1, num_upper=0),
        MATRIX,
    ),
    "MatrixDeterminant": (lambda x: R.MatrixDeterminant(input=x), MATRIX),
    "MatrixDiagPartV3": (
        lambda x: R.MatrixDiagPartV3(input=x, k=0, padding_value=0.0),
        MATRIX,
    ),
    "MatrixInverse": (lambda x: R.MatrixInverse(input=x), MATRIX),
    "MatrixSquareRoot": (lambda x: R.MatrixSquareRoot(input=x), MATRIX),
    "MatrixSolve": (lambda x: R.MatrixSolve(matrix=x, rhs=x), MATRIX),
    "MatrixTriangularSolve": (
        lambda x: R.MatrixTriangularSolve(matrix=x, rhs=x),
        MATRIX,
    ),
    "Qr": (lambda x: R.Qr(input=x)[0], MATRIX),
    "RFFT2D": (lambda x: R.RFFT2D(input=x, fft_length=TWO), MATRIX),
    "RFFT3D": (lambda x: R.RFFT3D(input=x, fft_length=THREE), REAL_VOLUME),
    "SelfAdjointEigV2": (lambda x: R.SelfAdjointEigV2(input=x)[1], MATRIX),
    "Svd": (lambda x: R.Svd(input=x)[0], MATRIX),
    "Eig": (lambda x: R.Eig(input=x, Tout=tf.complex64)[1], MATRIX),
    "Lu": (lambda x: R.Lu(input=x)[0], MATRIX),
    "MatrixLogarithm": (
        lambda x: R.MatrixLogarithm(input=tf.cast(x, tf.complex64)),
        MATRIX,
    ),
    "TridiagonalMatMul": (
        lambda x: R.TridiagonalMatMul(
            rhs=x,
            **dict.fromkeys(
                ("superdiag", "maindiag", "subdiag"),
                tf.ones([tf.shape(x)[0], 1, 3]),
            ),
        ),
        MATRIX,
    ),
    "TridiagonalSolve": (
        lambda x: R.TridiagonalSolve(diagonals=x, rhs=x),
        MATRIX,
    ),
}


@pytest.mark.parametrize("name", LAST)
def test_no_axis_that_is_worked_on_is_that_of_the_examples(name):
    function, spec = LAST[name]
    count = spec.shape.rank - 1
    assert reduction_rules._LAST[name][0] == count
    # The examples along the first of them, and another axis in front.
    turned = [1, 0, *range(2, count + 1)]
    finding = graphs.refused(lambda x: function(tf.transpose(x, turned)), spec)
    assert finding.operation == name
    assert finding.reason == reduction_rules.OVER
    graphs.proved(function, spec, allowed=[graphs.Category.ABORT])


def test_all_of_several_axes_are_looked_at():
    of_two = {n for n, (count, _) in reduction_rules._LAST.items() if count > 1}
    assert of_two - set(LAST) == {
        "BatchMatrixBandPart",
        "CholeskyGrad",
        "MatrixDiagPart",
    }
