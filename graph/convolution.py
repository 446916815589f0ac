"""Convolutions whose kernel gradients are faster on a CPU than TensorFlow's own.

How it works: pixel (i, j) of the kernel K, at each position (y, x) of a convolution with stride s and padding p,
multiplies a pixel of the large image into one of the small image. Its gradient is the sum of all these pairs,

    dK[i, j] = sum over n, y, x of large[n, y*s+i-p, x*s+j-p] outer small[n, y, x]

which is one matrix product of two slices: the pixels of `large` and of `small` that meet at (i, j). In one dimension,
with 6 pixels, a kernel of 5, stride 2 and padding 1 (a dot is a padded pixel):

    large               .  0  1  2  3  4  5  .  .
    kernel at small[0]  0  1  2  3  4
    kernel at small[1]        0  1  2  3  4
    kernel at small[2]              0  1  2  3  4

    dK[0] = large[1] small[1] + large[3] small[2]                         large[-1] is padding: no product
    dK[2] = large[1] small[0] + large[3] small[1] + large[5] small[2]

Leaving out the padding saves a third of the work for 5x5 kernels on 7x7 images. With stride 2 the slices of `large`
have gaps, so its even and odd pixels (the phases of the stride) are separated first.
"""

import functools
import math

from graph.session import tf


@functools.cache
def min_matmul_channels():
    """The number of channels from which matrix products beat TensorFlow's kernel gradients; infinite on a GPU."""
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
    """`transposed_convolution` of images smaller than the kernels."""
    # One matrix product gives the patch (k, k, D) that each pixel of `x` adds to the result.
    kernel, channels = kernels.shape[1:3]
    pixels = [(row, column) for row in range(x.shape[1]) for column in range(x.shape[2])]
    patches = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), tf.reshape(kernels, [-1, x.shape[-1]]), transpose_b=True)
    patches = tf.unstack(tf.reshape(patches, [-1, len(pixels), kernel, kernel, channels]), axis=1)

    # Add the patches up, each padded to the whole result and shifted by the stride times its pixel.
    wholes = [(side - 1) * stride + kernel for side in x.shape[1:3]]
    padded = []
    for pixel, patch in zip(pixels, patches, strict=True):
        margins = [[stride * n, whole - kernel - stride * n] for n, whole in zip(pixel, wholes, strict=True)]
        padded.append(tf.pad(patch, [[0, 0], *margins, [0, 0]]))
    y = tf.add_n(padded)

    # Keep the centre for 'SAME' padding; for 'VALID' it is the whole.
    top, left = ((whole - side) // 2 for whole, side in zip(wholes, sides, strict=True))
    return y[:, top : top + sides[0], left : left + sides[1]]


def kernel_gradient(large, small, shape, stride, padding):
    """Gradient of convolution kernels of `shape` (k, k, C, D).

    large: the images that the kernels slide over (N, H, W, C). small: the images with one pixel per position of the
    kernels (N, h, w, D). One is the input of the convolution, the other the gradient of its result.
    """
    (height, width), kernel = large.shape[1:3], shape[0]
    if large.shape[-1] < min_matmul_channels() or height % stride or width % stride:
        return tf.nn.conv2d_backprop_filter(large, shape, small, [1, stride, stride, 1], padding)

    # Put rows and columns in front of the batch, so that all parts are plain slices: phases[i][j] is (H/s, W/s, N, C).
    large = tf.reshape(large, [-1, height // stride, stride, width // stride, stride, shape[2]])
    phases = [tf.unstack(rows) for rows in tf.unstack(tf.transpose(large, [2, 4, 1, 3, 0, 5]))]
    small = tf.transpose(small, [1, 2, 0, 3])

    # For each column j of the kernel: the columns of `large`, in every phase of its rows, and of `small`.
    columns = [
        ([rows[phase][:, of_large] for rows in phases], small[:, of_small])
        for phase, of_large, of_small in overlaps(width, small.shape[1], kernel, stride, padding)
    ]
    # For each row i and column j of the kernel: the product of what meets there, (C, D).
    products = [
        tf.matmul(
            tf.reshape(large_columns[phase][of_large], [-1, shape[2]]),
            tf.reshape(small_columns[of_small], [-1, shape[3]]),
            transpose_a=True,
        )
        for phase, of_large, of_small in overlaps(height, small.shape[0], kernel, stride, padding)
        for large_columns, small_columns in columns
    ]
    return tf.reshape(tf.stack(products), shape)


def overlaps(side, positions, kernel, stride, padding):
    """For each row (column) of a kernel: the phase of `large`, and the slices of that phase and of `small` that meet.

    side, positions: numbers of rows (columns) of `large` and `small`. In the drawing above, row 0 of the kernel meets
    large[1] and large[3], which are rows 0 and 1 of phase 1, at small[1] and small[2]:

    >>> next(overlaps(6, 3, 5, 2, 'SAME'))
    (1, slice(0, 2, None), slice(1, 3, None))
    """
    before = max((positions - 1) * stride + kernel - side, 0) // 2 if padding == 'SAME' else 0
    for i in range(kernel):
        # large[y * stride + i - before] is row y + shift of `phase`. Both y and y + shift must be valid rows.
        shift, phase = divmod(i - before, stride)
        first, end = max(0, -shift), min(positions, side // stride - shift)
        yield phase, slice(first + shift, end + shift), slice(first, end)
