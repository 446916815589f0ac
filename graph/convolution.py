"""Convolutions with faster gradients than TensorFlow's own on a CPU.

What was measured, and how much it gains, is in docs/speed.md. On a GPU TensorFlow's own gradients are used.
"""

import functools
import math

from graph.session import tf


@functools.cache
def min_matmul_channels():
    """From this many channels on, gradients of kernels are faster as matrix products; on a GPU never."""
    return math.inf if tf.config.list_physical_devices('GPU') else 64


def convolution(x, kernels, stride, padding):
    """`tf.nn.conv2d` of (N, H, W, C) with kernels (k, k, C, D), with the gradient of `kernel_gradient`."""

    @tf.custom_gradient
    def convolve(x, kernels):
        def gradient(dy):
            dx = tf.nn.conv2d_transpose(dy, kernels, tf.shape(x), stride, padding)
            return dx, kernel_gradient(x, dy, kernels.shape, stride, padding)

        return tf.nn.conv2d(x, kernels, stride, padding), gradient

    return convolve(x, kernels)


def transposed_convolution(x, kernels, sides, stride, padding):
    """`tf.nn.conv2d_transpose` of (N, h, w, C) with kernels (k, k, D, C) to (N, H, W, D). sides: H and W."""
    if max(x.shape[1:3]) < kernels.shape[0]:
        return small_transposed_convolution(x, kernels, sides, stride)

    @tf.custom_gradient
    def convolve(x, kernels):
        def gradient(dy):
            dx = tf.nn.conv2d(dy, kernels, stride, padding)
            return dx, kernel_gradient(dy, x, kernels.shape, stride, padding)

        shape = [tf.shape(x)[0], *sides, kernels.shape[2]]
        return tf.nn.conv2d_transpose(x, kernels, shape, stride, padding), gradient

    return convolve(x, kernels)


def small_transposed_convolution(x, kernels, sides, stride):
    """`transposed_convolution` of images smaller than the kernels.

    One matrix product gives the patch that each pixel of `x` adds to the result; the few patches are then added up.
    """
    kernel, channels = kernels.shape[1:3]
    pixels = [(row, column) for row in range(x.shape[1]) for column in range(x.shape[2])]
    patches = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), tf.reshape(kernels, [-1, x.shape[-1]]), transpose_b=True)
    patches = tf.unstack(tf.reshape(patches, [-1, len(pixels), kernel, kernel, channels]), axis=1)
    wholes = [(side - 1) * stride + kernel for side in x.shape[1:3]]
    margins = [
        [[stride * n, whole - kernel - stride * n] for n, whole in zip(pixel, wholes, strict=True)] for pixel in pixels
    ]
    y = tf.add_n([tf.pad(patch, [[0, 0], *pad, [0, 0]]) for patch, pad in zip(patches, margins, strict=True)])
    top, left = ((whole - side) // 2 for whole, side in zip(wholes, sides, strict=True))
    return y[:, top : top + sides[0], left : left + sides[1]]


def kernel_gradient(large, small, shape, stride, padding):
    """Gradient of convolution kernels of `shape` (k, k, C, D).

    large: the images that the kernels slide over (N, H, W, C). small: the images at their other end (N, h, w, D).
    One is the input of the convolution, the other the gradient of its result.

    The gradient of each pixel of a kernel is one matrix product of the parts of `large` and `small` that meet there.
    This skips the padding, a third of the work where 5x5 kernels slide over 7x7 images.
    """
    (height, width), kernel = large.shape[1:3], shape[0]
    if large.shape[-1] < min_matmul_channels() or height % stride or width % stride:
        return tf.nn.conv2d_backprop_filter(large, shape, small, [1, stride, stride, 1], padding)
    # With rows and columns in front of the batch, and the phases of the stride apart, all parts are plain slices.
    large = tf.reshape(large, [-1, height // stride, stride, width // stride, stride, shape[2]])
    phases = [tf.unstack(rows) for rows in tf.unstack(tf.transpose(large, [2, 4, 1, 3, 0, 5]))]
    small = tf.transpose(small, [1, 2, 0, 3])

    def overlaps(side, positions):
        """Yield the phase of `large`, and the rows (or columns) of it and of `small`, that meet at each of the kernel.

        side, positions: how many rows (or columns) `large` and `small` have.
        """
        before = max((positions - 1) * stride + kernel - side, 0) // 2 if padding == 'SAME' else 0
        for offset in range(kernel):
            shift, phase = divmod(offset - before, stride)
            first, end = max(0, -shift), min(positions, side // stride - shift)
            yield phase, slice(first + shift, end + shift), slice(first, end)

    columns = [
        ([rows[phase][:, of_large] for rows in phases], small[:, of_small])
        for phase, of_large, of_small in overlaps(width, small.shape[1])
    ]
    products = [
        tf.matmul(
            tf.reshape(large_columns[phase][of_large], [-1, shape[2]]),
            tf.reshape(small_columns[of_small], [-1, shape[3]]),
            transpose_a=True,
        )
        for phase, of_large, of_small in overlaps(height, small.shape[0])
        for large_columns, small_columns in columns
    ]
    return tf.reshape(tf.stack(products), shape)
