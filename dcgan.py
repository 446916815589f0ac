"""What is learned: the graph of a DCGAN in TensorFlow 1.x style.

The functions carry the names of the article's notebook: `model_inputs`, `generator`, `discriminator`,
`model_loss`, `model_opt`. The networks are data (`systems.py`); the layers are a few lines each over `tf.nn`.
Variables live under `generator/` and `discriminator/`, and a shipped checkpoint depends on their names.
"""

import itertools
import math
from typing import NamedTuple

from augment import augment, flip
from replication import current_replicas, mean_gradients, normalise_over_replicas, random_seed, stateless_random
from runtime import tf
from systems import PRECISIONS, Layer, System

# On a CPU the gradient of kernels over this many channels is faster as matrix products; on a GPU it never is.
TAP_CHANNELS = math.inf if tf.config.list_physical_devices('GPU') else 64
BATCH_NORM_EPSILON = 1e-3  # this and the momentum are those of tf.layers, which the article used
BATCH_NORM_MOMENTUM = 0.99


class Losses(NamedTuple):
    """What one batch gives before the weights move: two scalars, and for each of its N images."""

    d_loss: tf.Tensor
    g_loss: tf.Tensor
    d_real: tf.Tensor  # D(x), the probability of being real that each real image gets, (N, 1)
    d_fake: tf.Tensor  # D(G(z)), the same for generated images
    fake: tf.Tensor  # (N, H, W, 3) in -1..1


def weights(shape, stddev, dtype):
    """The variable `kernel` of the current scope, float32, as a tensor of `dtype`.

    At first it is N(0, stddev), or for a stddev of 0 uniform as Glorot and Bengio (2010) have it.
    """
    initializer = tf.random_normal_initializer(stddev=stddev) if stddev else tf.glorot_uniform_initializer()
    return tf.cast(tf.get_variable('kernel', shape, initializer=initializer), dtype)


def dense(x, shape, stddev, scope='dense'):
    """Fully connected layer, (N, ...) to (N, *shape); a bias is a function of its own."""
    with tf.variable_scope(scope):
        x = tf.reshape(x, [-1, x.shape[1:].num_elements()])
        x = tf.matmul(x, weights([x.shape[1], math.prod(shape)], stddev, x.dtype))
        return tf.reshape(x, [-1, *shape])


def conv2d(x, channels, kernel, stride, padding, stddev, scope='conv2d'):
    """Convolution of (N, H, W, C) with square kernels; H and W shrink by the stride."""
    with tf.variable_scope(scope):
        kernels = weights([kernel, kernel, x.shape[-1], channels], stddev, x.dtype)
        return convolution(x, kernels, stride, padding)


def conv2d_transpose(x, channels, kernel, stride, padding, stddev, scope='conv2d_transpose'):
    """Transposed convolution: a side becomes side * stride ('SAME') or (side - 1) * stride + kernel ('VALID')."""
    with tf.variable_scope(scope):
        kernels = weights([kernel, kernel, channels, x.shape[-1]], stddev, x.dtype)
        grow = {'SAME': lambda side: side * stride, 'VALID': lambda side: (side - 1) * stride + kernel}[padding]
        return transposed_convolution(x, kernels, grow(x.shape[1]), stride, padding)


def convolution(x, kernels, stride, padding):
    """`tf.nn.conv2d`, with the gradient of `kernel_gradient`."""

    @tf.custom_gradient
    def convolve(x, kernels):
        def gradient(dy):
            dx = tf.nn.conv2d_transpose(dy, kernels, tf.shape(x), stride, padding)
            return dx, kernel_gradient(x, dy, kernels.shape, stride, padding)

        return tf.nn.conv2d(x, kernels, stride, padding), gradient

    return convolve(x, kernels)


def transposed_convolution(x, kernels, side, stride, padding):
    """`tf.nn.conv2d_transpose` to (N, side, side, C), in the form that is fast for the size of `x`."""
    kernel, channels = kernels.shape[1:3]
    if x.shape[1] < kernel:  # what each pixel of x adds to the image: one matrix product for all
        pixels = [(row, column) for row in range(x.shape[1]) for column in range(x.shape[2])]
        added = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), tf.reshape(kernels, [-1, x.shape[-1]]), transpose_b=True)
        added = tf.unstack(tf.reshape(added, [-1, len(pixels), kernel, kernel, channels]), axis=1)
        whole = (x.shape[1] - 1) * stride + kernel
        around = [[[stride * n, whole - kernel - stride * n] for n in pixel] for pixel in pixels]
        y = tf.add_n([tf.pad(part, [[0, 0], *pad, [0, 0]]) for part, pad in zip(added, around, strict=True)])
        first = (whole - side) // 2
        return y[:, first : first + side, first : first + side]

    @tf.custom_gradient
    def convolve(x, kernels):
        def gradient(dy):
            dx = tf.nn.conv2d(dy, kernels, stride, padding)
            return dx, kernel_gradient(dy, x, kernels.shape, stride, padding)

        shape = [tf.shape(x)[0], side, side, channels]
        return tf.nn.conv2d_transpose(x, kernels, shape, stride, padding), gradient

    return convolve(x, kernels)


def kernel_gradient(large, small, shape, stride, padding):
    """Gradient of convolution kernels, `shape` (k, k, C, D).

    large: what the kernels slide over (N, H, H, C). small: the same pass at their other end (N, h, h, D).
    One of them is the gradient of the convolution's result, the other its input.

    A pixel of a kernel, a tap, meets a part of `large` and a part of `small`, and its gradient is one matrix
    product of the two. That leaves out the padding, a third of the work where 5x5 kernels slide over 7x7, and
    runs several times faster in bfloat16 than TensorFlow's own.
    """
    side, positions, kernel = large.shape[1], small.shape[1], shape[0]
    if large.shape[-1] < TAP_CHANNELS or side % stride:
        return tf.nn.conv2d_backprop_filter(large, shape, small, [1, stride, stride, 1], padding)
    before = max((positions - 1) * stride + kernel - side, 0) // 2 if padding == 'SAME' else 0
    # The batch after rows and columns, and each phase of the stride by itself: so the parts are slices.
    large = tf.reshape(large, [-1, side // stride, stride, side // stride, stride, shape[2]])
    phases = [tf.unstack(rows) for rows in tf.unstack(tf.transpose(large, [2, 4, 1, 3, 0, 5]))]
    small = tf.transpose(small, [1, 2, 0, 3])

    def meet(tap):
        shift, phase = divmod(tap - before, stride)
        first, end = max(0, -shift), min(positions, side // stride - shift)
        return phase, slice(first + shift, end + shift), slice(first, end)

    columns = [
        ([rows[phase][:, of_large] for rows in phases], small[:, of_small])
        for phase, of_large, of_small in map(meet, range(kernel))
    ]
    taps = [
        tf.matmul(
            tf.reshape(of_columns[phase][of_large], [-1, shape[2]]),
            tf.reshape(some[of_small], [-1, shape[3]]),
            transpose_a=True,
        )
        for phase, of_large, of_small in map(meet, range(kernel))
        for of_columns, some in columns
    ]
    return tf.reshape(tf.stack(taps), shape)


def bias(x, shared=True, scope='bias'):
    """Add learned numbers, 0 at first: one a channel, which its pixels share, or one for each value of an image."""
    shape = x.shape[-1:] if shared else x.shape[1:]
    added = tf.cast(tf.get_variable(scope, shape, initializer=tf.zeros_initializer()), x.dtype)
    return tf.nn.bias_add(x, added) if shared else x + added


def batch_norm(x, training, momentum=BATCH_NORM_MOMENTUM, scope='batch_norm'):
    """Batch normalisation of (N, H, W, C) per channel (Ioffe and Szegedy, 2015).

    In training with the statistics of the batch, otherwise with their moving averages. In training it adds
    the updates of the averages, average * momentum + value * (1 - momentum), to tf.GraphKeys.UPDATE_OPS.
    """
    with tf.variable_scope(scope):
        channels = [x.shape[-1]]
        zeros, ones = tf.zeros_initializer(), tf.ones_initializer()
        gamma = tf.get_variable('gamma', channels, initializer=ones)
        beta = tf.get_variable('beta', channels, initializer=zeros)
        moving_mean = tf.get_variable('moving_mean', channels, initializer=zeros, trainable=False)
        moving_variance = tf.get_variable('moving_variance', channels, initializer=ones, trainable=False)
        if not training:
            return tf.nn.batch_normalization(x, moving_mean, moving_variance, beta, gamma, BATCH_NORM_EPSILON)
        replicas = current_replicas()
        if replicas and replicas.batch_norm:
            x, mean, variance = normalise_over_replicas(x, gamma, beta, BATCH_NORM_EPSILON, replicas)
        else:
            x, mean, variance = tf.nn.fused_batch_norm(x, gamma, beta, epsilon=BATCH_NORM_EPSILON)
        for average, value in ((moving_mean, mean), (moving_variance, variance)):
            update = average.assign(average * momentum + value * (1 - momentum))
            tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update)
        return x


def dropout(x, rate):
    """Set a share `rate` of `x` to 0, and scale the rest so that the mean stays (Srivastava et al., 2014)."""
    seed = random_seed('dropout')
    if not current_replicas():
        return tf.nn.experimental.stateless_dropout(x, rate, seed)
    keep = stateless_random(tf.random.stateless_uniform, tf.shape(x), seed, x.dtype) >= rate
    return tf.where(keep, x * (1 / (1 - rate)), tf.zeros_like(x))


def network(system: System, layers: tuple[Layer, ...], x, training, momentum=BATCH_NORM_MOMENTUM):
    """Stack `layers` on `x`, each under a scope of its own: layer1, layer2, ... Float32 comes out of the last."""
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
            x = batch_norm(x, training, momentum) if layer.batch_norm else bias(x, shared=layer.kind != 'dense')
            x = activations[layer.activation](x)
            if training and layer.dropout and system.dropout:
                x = dropout(x, system.dropout)
    return x


def model_inputs(image_width, image_height, image_channels, z_dim):
    """Placeholders: real images uint8 (N, H, W, C), latents (N, z_dim), the learning rate (a scalar)."""
    input_real = tf.placeholder(tf.uint8, [None, image_height, image_width, image_channels], 'input_real')
    input_z = tf.placeholder(tf.float32, [None, z_dim], 'input_z')
    learning_rate = tf.placeholder(tf.float32, [], 'learning_rate')
    return input_real, input_z, learning_rate


def generator(system: System, z, training=True, reuse=False, ema=None, momentum=BATCH_NORM_MOMENTUM):
    """Images (N, H, W, 3) in -1..1 from latents (N, latent_size).

    training: batch normalisation with the batch's statistics; otherwise with the moving averages.
    ema: a `tf.train.ExponentialMovingAverage` that was applied to the generator; draw with its averages.
    """

    def averaged(getter, *args, **kwargs):
        return ema.average(getter(*args, **kwargs))

    with tf.variable_scope('generator', reuse=reuse, custom_getter=averaged if ema else None):
        return network(system, system.generator, z, training, momentum)


def discriminator(system: System, images, reuse=False):
    """Logits (N, 1) of `images` (N, H, W, 3) in -1..1 being real; their sigmoid is the probability."""
    with tf.variable_scope('discriminator', reuse=reuse):
        return network(system, system.discriminator, images, training=True)


def cross_entropy(logits, label, noise=0.0):
    """Mean sigmoid cross-entropy of `logits` against the same `label` (0..1) for all.

    noise: each label moves towards the other, 1 - label, by this times its difference to it at most, at random.
    """
    labels = tf.fill(tf.shape(logits), label)
    if noise:
        drawn = stateless_random(tf.random.stateless_uniform, tf.shape(logits), random_seed('label_noise'))
        labels += noise * (1 - 2 * label) * drawn
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))


def model_loss(system: System, input_real, input_z):
    """Build both networks and the losses of Goodfellow et al. (2014), the generator's not saturating.

    The discriminator learns to give real images `system.real_label` (0.9 where it is smoothed) and generated
    ones `system.fake_label`; the generator wants its images to get `system.wanted_label`.
    """
    fake = generator(system, input_z)
    real = tf.cast(input_real, tf.float32) / 255 - 0.5  # the article's range
    real *= 2  # the generator's
    if system.flip:
        real = flip(real, system.flip)
    real_logits = discriminator(system, augment(system, real))
    fake_logits = discriminator(system, augment(system, fake), reuse=True)
    of_real = cross_entropy(real_logits, system.real_label, system.label_noise)
    of_fake = cross_entropy(fake_logits, system.fake_label, system.label_noise)
    real_is_1 = system.real_label > system.fake_label  # or the logits are those of being generated
    return Losses(
        d_loss=of_real + of_fake,
        g_loss=cross_entropy(fake_logits, system.wanted_label),
        d_real=tf.sigmoid(real_logits if real_is_1 else -real_logits),
        d_fake=tf.sigmoid(fake_logits if real_is_1 else -fake_logits),
        fake=fake,
    )


def minimize(system: System, loss, learning_rate, variables):
    """One update of `variables` by the system's optimiser."""
    step = tf.train.get_or_create_global_step()
    learning_rate = tf.train.inverse_time_decay(learning_rate, step, 1, system.learning_rate_decay)
    optimizer = {
        'adam': lambda: tf.train.AdamOptimizer(learning_rate, system.beta1),
        'rmsprop': lambda: tf.train.RMSPropOptimizer(learning_rate, epsilon=1e-7),  # and decay 0.9: as in Keras
    }[system.optimizer]()
    gradients = optimizer.compute_gradients(loss, variables)
    if current_replicas():
        means = mean_gradients([gradient for gradient, _ in gradients], current_replicas())
        gradients = list(zip(means, variables, strict=True))
    if system.clip_value:
        most = system.clip_value
        gradients = [(tf.clip_by_value(gradient, -most, most), variable) for gradient, variable in gradients]
    return optimizer.apply_gradients(gradients)


def model_opt(system: System, losses: Losses, learning_rate, ema=None):
    """One operation that makes a whole training step: both updates, moving averages, global step.

    With the update order 'alternating' the discriminator is updated first and then the generator against
    it, on the same generated images (as published, in one session run instead of two); 'simultaneous'
    takes both gradients at the same point, which saves a pass through the discriminator.
    ema: a `tf.train.ExponentialMovingAverage` to keep of the generator.
    """
    global_step = tf.train.get_or_create_global_step()
    generator_variables = tf.global_variables('generator/')
    with tf.variable_scope('d_optimizer'):
        d_learning_rate = learning_rate * system.learning_rate_ratio
        d_train_opt = minimize(system, losses.d_loss, d_learning_rate, tf.trainable_variables('discriminator/'))
    g_loss = losses.g_loss
    if system.update_order == 'alternating':
        with tf.control_dependencies([d_train_opt]):
            logits = discriminator(system, augment(system, losses.fake), reuse=True)
            g_loss = cross_entropy(logits, system.wanted_label)
    with tf.variable_scope('g_optimizer'):
        g_train_opt = minimize(system, g_loss, learning_rate, tf.trainable_variables('generator/'))
    # Of the passes that share a network's variables the first updates its averages: for the discriminator
    # that is the one over the real images.
    updates = [tf.get_collection(tf.GraphKeys.UPDATE_OPS, scope) for scope in ('generator/', 'discriminator/')]
    with tf.control_dependencies([d_train_opt, g_train_opt, *itertools.chain(*updates)]):
        step = global_step.assign_add(1)
    with tf.control_dependencies([step]):
        return ema.apply(generator_variables) if ema else tf.no_op()


def refresh_statistics(system: System, z, ema=None):
    """An operation that sets the moving averages that samples use to the statistics of one large batch.

    The averages lag behind the weights, and those of averaged weights are not the average of the
    statistics. Samples are drawn without dropout, and so are these. z: latents (N, latent_size), some hundred.
    """
    others = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    generator(system._replace(dropout=0.0), z, training=True, reuse=True, ema=ema, momentum=0.0)
    return tf.group(tf.get_collection(tf.GraphKeys.UPDATE_OPS)[len(others) :])
