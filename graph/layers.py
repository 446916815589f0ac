"""Layers: small functions over `tf.nn` with `tf.get_variable`.

The scopes here name the variables, and checkpoints depend on the names.
"""

import math

from graph.convolution import convolution, transposed_convolution
from graph.random import random_uniform
from graph.replica import current_replica
from graph.session import tf

BATCH_NORM_EPSILON = 1e-3  # the default of tf.layers, used by the article


def weights(shape, stddev, dtype):
    """The variable `kernel` of the current scope, float32, as a tensor of `dtype`.

    It starts as N(0, stddev), or for a stddev of 0 as the uniform distribution of Glorot and Bengio (2010).
    """
    initializer = tf.random_normal_initializer(stddev=stddev) if stddev else tf.glorot_uniform_initializer()
    return tf.cast(tf.get_variable('kernel', shape, initializer=initializer), dtype)


def dense(x, shape, stddev, scope='dense'):
    """Fully connected layer without bias, (N, ...) to (N, *shape)."""
    with tf.variable_scope(scope):
        x = tf.reshape(x, [-1, x.shape[1:].num_elements()])
        x = tf.matmul(x, weights([x.shape[1], math.prod(shape)], stddev, x.dtype))
        return tf.reshape(x, [-1, *shape])


def conv2d(x, channels, kernel, stride, padding, stddev, scope='conv2d'):
    """Convolution of (N, H, W, C) with square kernels, without bias; H and W shrink by the stride."""
    with tf.variable_scope(scope):
        kernels = weights([kernel, kernel, x.shape[-1], channels], stddev, x.dtype)
        return convolution(x, kernels, stride, padding)


def conv2d_transpose(x, channels, kernel, stride, padding, stddev, scope='conv2d_transpose'):
    """Transposed convolution, without bias: a side becomes side * stride ('SAME') or (side - 1) * stride + kernel."""
    with tf.variable_scope(scope):
        kernels = weights([kernel, kernel, channels, x.shape[-1]], stddev, x.dtype)
        sides = [side * stride if padding == 'SAME' else (side - 1) * stride + kernel for side in x.shape[1:3]]
        return transposed_convolution(x, kernels, sides, stride, padding)


def bias(x, per_channel=True, scope='bias'):
    """Add a learned bias, 0 at first: one for each channel, or one for each value of an image."""
    shape = x.shape[-1:] if per_channel else x.shape[1:]
    value = tf.cast(tf.get_variable(scope, shape, initializer=tf.zeros_initializer()), x.dtype)
    return tf.nn.bias_add(x, value) if per_channel else x + value


def batch_norm(x, training, statistics=None, ghost_size=None, scope='batch_norm'):
    """Batch normalisation of (N, H, W, C) per channel (Ioffe and Szegedy, 2015).

    training: normalise with the statistics of the batch, otherwise with stored ones.
    statistics: a list that gets the operations which store the statistics of the batch.
    ghost_size: in training, normalise groups of this many images separately (Hoffer et al., 2017, arXiv:1705.08741).
    """
    with tf.variable_scope(scope):
        channels = [x.shape[-1]]
        gamma = tf.get_variable('gamma', channels, initializer=tf.ones_initializer())
        beta = tf.get_variable('beta', channels, initializer=tf.zeros_initializer())

        def stored():
            """Mean and variance, by the names that tf.layers gives them."""
            mean = tf.get_variable('moving_mean', channels, initializer=tf.zeros_initializer(), trainable=False)
            ones = tf.ones_initializer()
            return mean, tf.get_variable('moving_variance', channels, initializer=ones, trainable=False)

        if not training:
            return tf.nn.batch_normalization(x, *stored(), beta, gamma, BATCH_NORM_EPSILON)
        if ghost_size:
            groups = tf.reshape(tf.cast(x, tf.float32), [-1, ghost_size, *x.shape[1:]])
            moments = tf.nn.moments(groups, [1, 2, 3], keepdims=True)
            groups = tf.nn.batch_normalization(groups, *moments, beta, gamma, BATCH_NORM_EPSILON)
            return tf.cast(tf.reshape(groups, [-1, *x.shape[1:]]), x.dtype)
        x, mean, variance = current_replica().batch_norm(x, gamma, beta, BATCH_NORM_EPSILON)
        if statistics is not None:
            statistics += [variable.assign(value) for variable, value in zip(stored(), (mean, variance), strict=True)]
        return x


def dropout(x, rate):
    """Set a fraction `rate` of the values to 0 and scale the others to keep the mean (Srivastava et al., 2014)."""
    keep = random_uniform(tf.shape(x), 'dropout', dtype=x.dtype) >= rate
    return tf.where(keep, x * (1 / (1 - rate)), tf.zeros_like(x))
