"""Layers: small functions over `tf.nn` with `tf.get_variable`, and networks of them.

Names of variables follow from the scopes here, and shipped checkpoints depend on them.
"""

import math

from graph.convolution import convolution, transposed_convolution
from graph.random import random_uniform
from graph.replica import current_replica
from graph.session import tf
from systems import PRECISIONS

BATCH_NORM_EPSILON = 1e-3  # that of tf.layers, which the article used


def weights(shape, stddev, dtype):
    """The variable `kernel` of the current scope, float32, as a tensor of `dtype`.

    It starts as N(0, stddev), or for a stddev of 0 as the uniform distribution of Glorot and Bengio (2010).
    """
    initializer = tf.random_normal_initializer(stddev=stddev) if stddev else tf.glorot_uniform_initializer()
    return tf.cast(tf.get_variable('kernel', shape, initializer=initializer), dtype)


def spectrally_normalized(getter, name, *args, **kwargs):
    """A custom getter of variable scopes that gives kernels divided by their largest singular value.

    So each layer amplifies nothing by more than 1 (Miyato et al., 2018, arXiv:1802.05957). The singular vector is
    found by power iteration, one iteration a step, from the vector in the variable `kernel/u`; see `iterate_powers`.
    """
    kernels = getter(name, *args, **kwargs)
    if not name.endswith('/kernel'):
        return kernels
    matrix = tf.reshape(kernels, [-1, kernels.shape[-1]])
    u = getter(f'{name}/u', [matrix.shape[1]], initializer=tf.random_normal_initializer(), trainable=False)
    v = tf.stop_gradient(tf.math.l2_normalize(tf.linalg.matvec(matrix, u)))
    new_u = tf.stop_gradient(tf.math.l2_normalize(tf.linalg.matvec(matrix, v, transpose_a=True)))
    if not tf.get_variable_scope().reuse:
        tf.add_to_collection('power iterations', (u, new_u))
    return kernels / tf.tensordot(v, tf.linalg.matvec(matrix, new_u), 1)


def iterate_powers():
    """An operation that keeps the results of this step's power iterations for the next step."""
    return tf.group([u.assign(new_u) for u, new_u in tf.get_collection('power iterations')])


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


def batch_norm(x, training, statistics=None, scope='batch_norm'):
    """Batch normalisation of (N, H, W, C) per channel (Ioffe and Szegedy, 2015).

    training: normalise with the statistics of the batch, otherwise with stored ones.
    statistics: a list that gets the operations which store those of the batch.
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
        x, *of_batch = current_replica().batch_norm(x, gamma, beta, BATCH_NORM_EPSILON)
        if statistics is not None:
            statistics += [variable.assign(value) for variable, value in zip(stored(), of_batch, strict=True)]
        return x


def dropout(x, rate):
    """Set a fraction `rate` of the values to 0 and scale the others to keep the mean (Srivastava et al., 2014)."""
    keep = random_uniform(tf.shape(x), 'dropout', dtype=x.dtype) >= rate
    return tf.where(keep, x * (1 / (1 - rate)), tf.zeros_like(x))


def network(system, layers, x, training, statistics=None):
    """Stack `layers` on `x`, each in its own scope: layer1, layer2, ... The result is float32.

    training, statistics: see `batch_norm`; without training there is no dropout either.
    """
    convolutions = {'conv2d': conv2d, 'conv2d_transpose': conv2d_transpose}
    activations = {
        'leaky_relu': lambda x: tf.nn.leaky_relu(x, system.leaky_slope),
        'relu': tf.nn.relu,
        'tanh': tf.tanh,
        None: tf.identity,
    }
    x = tf.cast(x, PRECISIONS[system.precision])
    for number, layer in enumerate(layers, 1):
        with tf.variable_scope(f'layer{number}'):
            if layer.kind == 'dense':
                x = dense(x, layer.output, system.weight_stddev)
            else:
                x = convolutions[layer.kind](
                    x, layer.output, layer.kernel, layer.stride, layer.padding, system.weight_stddev
                )
            if number == len(layers):
                x = tf.cast(x, tf.float32)
            x = batch_norm(x, training, statistics) if layer.batch_norm else bias(x, layer.kind != 'dense')
            x = activations[layer.activation](x)
            if training and layer.dropout and system.dropout:
                x = dropout(x, system.dropout)
    return x
