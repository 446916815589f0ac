"""The article's graph: placeholders, generator, discriminator, losses and one training step, in TensorFlow 1.x style.

The functions have the names of the article's notebook. A network is data, a list of layers (`systems.py`); the layers
themselves are in `graph/layers.py`. Variables live under `generator/` and `discriminator/`.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

from graph.augment import adapt, augment, flip
from graph.layers import batch_norm, bias, conv2d, conv2d_transpose, dense, dropout
from graph.names import layer_scope
from graph.random import random_uniform
from graph.replica import current_replica
from graph.session import tf
from systems import PRECISIONS, System

GHOST_SIZE = 8  # images in a group of ghost batch normalisation, in R1


# --- Placeholders


def model_inputs(image_width, image_height, image_channels, z_dim):
    """Placeholders: real images (N, H, W, C) in -0.5..0.5, latents (N, z_dim), the learning rate (a scalar)."""
    input_real = tf.placeholder(tf.float32, [None, image_height, image_width, image_channels], 'input_real')
    input_z = tf.placeholder(tf.float32, [None, z_dim], 'input_z')
    learning_rate = tf.placeholder(tf.float32, [], 'learning_rate')
    return input_real, input_z, learning_rate


# --- Networks


def network(system: System, layers, x, training, statistics=None, ghost_size=None):
    """Stack `layers` on `x`, each in its own scope: layer1, layer2, ... Returns float32.

    training, statistics, ghost_size: see `graph.layers.batch_norm`. Dropout is applied in training only.
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
            # The linear part: a dense layer, a convolution or a transposed convolution.
            if layer.kind == 'dense':
                x = dense(x, layer.output, system.weight_stddev)
            else:
                convolve = convolutions[layer.kind]
                x = convolve(x, layer.output, layer.kernel, layer.stride, layer.padding, system.weight_stddev)
            if number == len(layers):
                x = tf.cast(x, tf.float32)
            # Batch normalisation has a bias of its own, beta.
            if layer.batch_norm:
                x = batch_norm(x, training, statistics, ghost_size)
            else:
                x = bias(x, per_channel=layer.kind != 'dense')
            x = activations[layer.activation](x)
            if training and layer.dropout and system.dropout:
                x = dropout(x, system.dropout)
    return x


def generator(system: System, z, training=True, reuse=False, ema=None, statistics=None):
    """Images (N, H, W, C) in -1..1 from latents (N, z_dim). A conditional system's latents end with the conditions.

    training: normalise with the statistics of the batch, and apply dropout; otherwise use stored ones, in float32.
    ema: a `tf.train.ExponentialMovingAverage` whose averages take the place of the weights.
    statistics: a list that gets the operations which store the statistics of the batch.
    """

    def averaged(getter, *args, **kwargs):
        variable = getter(*args, **kwargs)
        average = ema.average(variable)  # None for variables that are not trained
        return variable if average is None else average

    if not training:
        system = replace(system, precision='fp32')
    with tf.variable_scope('generator', reuse=reuse, custom_getter=averaged if ema else None):
        return network(system, system.generator, z, training, statistics)


def discriminator(system: System, images, condition=(), reuse=False, ghost_size=None):
    """Logits (N, 1) for `images` (N, H, W, C) in -1..1; their sigmoid is D(x), the probability of being real.

    condition: 1 or -1 for each attribute, (N, attributes), in a conditional system. The last layer then has one more
    output for each attribute, and the logit is output 0 + mean(output i * condition i): the projection of Miyato and
    Koyama (2018, arXiv:1802.05637), averaged instead of summed, so that its scale does not grow with the attributes.
    ghost_size: see `graph.layers.batch_norm`.
    """
    layers = system.discriminator
    if not system.discriminator_batch_norm:
        layers = tuple(replace(layer, batch_norm=False) for layer in layers)
    if system.attributes:
        layers = (*layers[:-1], replace(layers[-1], output=(1 + len(system.attributes),)))
    with tf.variable_scope('discriminator', reuse=reuse):
        logits = network(system, layers, images, training=True, ghost_size=ghost_size)
    if system.attributes:
        logits = logits[:, :1] + tf.reduce_mean(logits[:, 1:] * condition, axis=1, keepdims=True)
    return logits


# --- Losses


class Losses(NamedTuple):
    """The losses and scores of one batch, before its update."""

    d_loss: Any  # the discriminator's loss, a scalar
    g_loss: Any  # the generator's loss, a scalar
    d_real: Any  # D(x), the probability of being real given to each real image, (N, 1)
    d_fake: Any  # D(G(z)), the probability of being real given to each generated image, (N, 1)


LOSS_SHAPES = Losses(d_loss=[], g_loss=[], d_real=[None, 1], d_fake=[None, 1])


class Batch(NamedTuple):
    """One batch after a pass through both networks."""

    losses: Losses
    d_penalty: Any  # R1, a scalar that is added to the discriminator's loss
    real: Any  # the real images as the discriminator saw them, (N, H, W, C) in -1..1
    fake: Any  # the generated images before augmentation, (N, H, W, C) in -1..1
    condition: Any  # the conditions of both, (N, attributes), or () without attributes


def model_loss(system: System, input_real, input_z) -> Batch:
    """Build both networks and their losses. input_real: (N, H, W, C) in -0.5..0.5; input_z: latents (N, z_dim)."""
    # Generated images, and real ones scaled to the generator's range.
    fake = generator(system, input_z)
    real = input_real * 2
    if system.flip:
        real = flip(real, system.flip)
    real = augment(system, real)

    # The discriminator's opinion of both.
    condition = input_z[:, system.latent_size :] if system.attributes else ()
    real_logits = discriminator(system, real, condition)
    fake_logits = discriminator(system, augment(system, fake), condition, reuse=True)

    # The losses, and the scores that are logged with them.
    d_real, d_fake = probabilities(system, real_logits, fake_logits)
    losses = Losses(
        d_loss=discriminator_loss(system, real_logits, fake_logits),
        g_loss=generator_loss(system, fake_logits),
        d_real=d_real,
        d_fake=d_fake,
    )
    d_penalty = gradient_penalty(system, real, condition) if system.r1 else tf.constant(0.0)
    return Batch(losses, d_penalty, real, fake, condition)


def discriminator_loss(system: System, real_logits, fake_logits):
    """The discriminator's loss for its logits (N, 1) of real and of generated images.

    The cross-entropy of Goodfellow et al. (2014) against `system.real_label` (0.9 with label smoothing) and
    `system.fake_label`.
    """
    loss_real = cross_entropy(real_logits, system.real_label, system.label_noise)
    return loss_real + cross_entropy(fake_logits, system.fake_label, system.label_noise)


def generator_loss(system: System, fake_logits):
    """The generator's loss: the non-saturating cross-entropy against `system.wanted_label`."""
    return cross_entropy(fake_logits, system.wanted_label)


def cross_entropy(logits, label, noise=0.0):
    """Mean sigmoid cross-entropy of `logits` against the same `label`, 0..1, for all of them.

    noise: move each label up to this fraction of the way towards 1 - label, at random.
    """
    labels = tf.fill(tf.shape(logits), label)
    if noise:
        labels += noise * (1 - 2 * label) * random_uniform(tf.shape(logits), 'label_noise')
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))


def probabilities(system: System, real_logits, fake_logits) -> tuple:
    """D(x) and D(G(z)), each (N, 1)."""
    sign = 1 if system.real_label > system.fake_label else -1  # kdnuggets labels generated images 1
    return tf.sigmoid(sign * real_logits), tf.sigmoid(sign * fake_logits)


def gradient_penalty(system: System, real, condition=()):
    """R1: r1 / 2 * mean(|gradient of the logit at a real image|^2) (Mescheder et al., 2018, arXiv:1801.04406).

    Lazy regularisation: computed every `r1_every` steps and multiplied by `r1_every`, which has the same effect at a
    fraction of the cost (Karras et al., 2020, arXiv:1912.04958). Batch normalisation would make the gradient at one
    image depend on all the others. It is computed here in groups of GHOST_SIZE images, or fewer if GHOST_SIZE does not
    divide the batch, which gives the same penalty on one machine and on several.
    """

    def penalty():
        images = tf.identity(real)
        ghost_size = math.gcd(GHOST_SIZE, system.batch_size // current_replica().count)
        logits = discriminator(system, images, condition, reuse=True, ghost_size=ghost_size)
        (gradient,) = tf.gradients(logits, images)
        return system.r1 / 2 * system.r1_every * tf.reduce_mean(tf.reduce_sum(gradient**2, axis=[1, 2, 3]))

    due = tf.equal(tf.train.get_or_create_global_step() % system.r1_every, 0)
    return tf.cond(due, penalty, lambda: tf.constant(0.0))


# --- One training step


def training_step(system: System, input_real, input_z, learning_rate, ema=None) -> Losses:
    """One training step: fetching any of the losses it returns makes the step.

    input_real: a batch of real images (N, H, W, C) in -0.5..0.5; input_z: latents (N, z_dim). The losses and scores are
    the whole batch's, if several replicas share it. ema: see `model_opt`.
    """
    batch = model_loss(system, input_real, input_z)
    train_opt = model_opt(system, batch, learning_rate, ema)
    losses = current_replica().gather(batch.losses)
    with tf.control_dependencies([train_opt]):  # so the losses wait for both updates
        return Losses(*(tf.identity(loss) for loss in losses))


def model_opt(system: System, batch: Batch, learning_rate, ema=None):
    """One operation that updates the discriminator, the generator, its moving average and the global step.

    The article runs its two optimisers one after the other. So does the update order 'alternating', in one session
    run: the generator is updated against the updated discriminator, on the same generated images. 'simultaneous'
    takes both gradients at the same point, which saves one pass through the discriminator.
    ema: a `tf.train.ExponentialMovingAverage` to keep of the generator's weights.
    """
    global_step = tf.train.get_or_create_global_step()

    # (1) Update D: minimise its loss for real and generated images, and the gradient penalty.
    with tf.variable_scope('d_optimizer'):
        d_learning_rate = learning_rate * system.learning_rate_ratio
        variables = tf.trainable_variables('discriminator/')
        variables = [variable for variable in variables if not variable.op.name.startswith(frozen_scopes(system))]
        d_train_opt = minimize(system, batch.losses.d_loss + batch.d_penalty, d_learning_rate, variables)

    # (2) Update G: minimise its loss against the updated D.
    g_loss = batch.losses.g_loss
    if system.update_order == 'alternating':
        with tf.control_dependencies([d_train_opt]):
            fake_logits = discriminator(system, augment(system, batch.fake), batch.condition, reuse=True)
            g_loss = generator_loss(system, fake_logits)
    with tf.variable_scope('g_optimizer'):
        g_train_opt = minimize(system, g_loss, learning_rate, tf.trainable_variables('generator/'))

    # (3) Count the step, adapt the augmentation, and update the moving average of G's weights.
    with tf.control_dependencies([d_train_opt, g_train_opt]):
        counted = global_step.assign_add(1)
        adapted = adapt(system, batch.losses.d_real) if system.augment_target else tf.no_op()
    with tf.control_dependencies([counted, adapted]):
        return ema.apply(tf.trainable_variables('generator/')) if ema else tf.no_op()


def minimize(system: System, loss, learning_rate, variables):
    """One update of `variables` by the system's optimiser."""
    step = tf.train.get_or_create_global_step()
    learning_rate = tf.train.inverse_time_decay(learning_rate, step, 1, system.learning_rate_decay)
    if system.optimizer == 'adam':
        optimizer = tf.train.AdamOptimizer(learning_rate, system.beta1)
    else:
        optimizer = tf.train.RMSPropOptimizer(learning_rate, epsilon=1e-7)  # the defaults of Keras: decay 0.9, 1e-7
    gradients = [gradient for gradient, _ in optimizer.compute_gradients(loss, variables)]
    gradients = current_replica().mean(gradients)
    if system.clip_value:
        gradients = [tf.clip_by_value(gradient, -system.clip_value, system.clip_value) for gradient in gradients]
    return optimizer.apply_gradients(zip(gradients, variables, strict=True))


def frozen_scopes(system: System) -> tuple[str, ...]:
    """The scopes of the discriminator's first layers, if they are not trained."""
    return tuple(layer_scope('discriminator', number) + '/' for number in range(1, system.freeze_discriminator + 1))


def store_statistics(system: System, z, ema=None):
    """An operation that stores the generator's batch norm statistics for sampling, computed from one batch.

    They are computed as samples are drawn: with averaged weights, if any, in float32 and without dropout.
    z: latents (N, z_dim), some hundreds.
    """
    statistics: list = []
    system = replace(system, dropout=0.0, precision='fp32')
    generator(system, z, training=True, reuse=tf.AUTO_REUSE, ema=ema, statistics=statistics)
    return tf.group(statistics)
