"""The article's graph: placeholders, generator, discriminator, losses and optimisers, in TensorFlow 1.x style.

The functions have the names of the article's notebook. The layers of a network are data (`systems.py`), and are built
by `graph/layers.py`. Variables live under `generator/` and `discriminator/`.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

from graph.augment import augment, flip
from graph.layers import iterate_powers, network, spectrally_normalized
from graph.random import random_uniform
from graph.replica import Ghosts, current_replica
from graph.session import tf
from systems import System

GHOST_SIZE = 8  # images that share the statistics of batch normalisation in R1


def model_inputs(image_width, image_height, image_channels, z_dim):
    """Placeholders: real images (N, H, W, C) in -0.5..0.5, latents (N, z_dim), the learning rate (a scalar)."""
    input_real = tf.placeholder(tf.float32, [None, image_height, image_width, image_channels], 'input_real')
    input_z = tf.placeholder(tf.float32, [None, z_dim], 'input_z')
    learning_rate = tf.placeholder(tf.float32, [], 'learning_rate')
    return input_real, input_z, learning_rate


def generator(system: System, z, training=True, reuse=False, ema=None, statistics=None):
    """Images (N, H, W, C) in -1..1 from latents (N, z_dim), which end with their conditions if there are attributes.

    training: batch normalisation with the statistics of the batch, and dropout; otherwise with stored statistics.
    ema: a `tf.train.ExponentialMovingAverage` of the weights to draw with, in place of the weights.
    statistics: a list that gets the operations which store the statistics of the batch.
    """

    def averaged(getter, *args, **kwargs):
        variable = getter(*args, **kwargs)
        average = ema.average(variable)  # of the trained variables alone
        return variable if average is None else average

    with tf.variable_scope('generator', reuse=reuse, custom_getter=averaged if ema else None):
        return network(system, system.generator, z, training, statistics)


def discriminator(system: System, images, condition=(), reuse=False):
    """Logits (N, 1) for `images` (N, H, W, C) in -1..1; their sigmoid is D(x), the probability of being real.

    condition: 1 or -1 for each attribute, (N, attributes), if there are any. The last layer has an output for each,
    and the mean of their products is added to the logits: the projection of Miyato and Koyama (2018, arXiv:1802.05637),
    with a mean in place of the sum, which many attributes would make as many times as steep.
    """
    getter = spectrally_normalized if system.spectral_norm else None
    layers = system.discriminator
    if not system.discriminator_batch_norm:
        layers = tuple(replace(layer, batch_norm=False) for layer in layers)
    if system.attributes:
        layers = (*layers[:-1], replace(layers[-1], output=(1 + len(system.attributes),)))
    with tf.variable_scope('discriminator', reuse=reuse, custom_getter=getter):
        logits = network(system, layers, images, training=True)
    if system.attributes:
        logits = logits[:, :1] + tf.reduce_mean(logits[:, 1:] * condition, axis=1, keepdims=True)
    return logits


class Losses(NamedTuple):
    """The losses of one batch, before the weights change."""

    d_loss: Any  # a scalar
    g_loss: Any  # a scalar
    d_real: Any  # D(x), the probability of being real given to each real image, (N, 1)
    d_fake: Any  # D(G(z)), the same for generated images
    d_penalty: Any  # a scalar, which the discriminator minimises beside its loss
    real: Any  # the real images as the discriminator saw them, (N, H, W, C) in -1..1
    fake: Any  # the generated images, not augmented
    condition: Any = ()  # of both, (N, attributes), if there are any


def model_loss(system: System, input_real, input_z) -> Losses:
    """Build both networks and their losses."""
    fake = generator(system, input_z)
    real = input_real * 2  # from the data's range to the generator's
    if system.flip:
        real = flip(real, system.flip)
    real = augment(system, real)
    condition = input_z[:, system.latent_size :] if system.attributes else ()
    real_logits = discriminator(system, real, condition)
    fake_logits = discriminator(system, augment(system, fake), condition, reuse=True)
    d_real, d_fake = probabilities(system, real_logits, fake_logits)
    return Losses(
        d_loss=discriminator_loss(system, real_logits, fake_logits),
        g_loss=generator_loss(system, real_logits, fake_logits),
        d_real=d_real,
        d_fake=d_fake,
        d_penalty=gradient_penalty(system, real, condition) if system.r1 else tf.constant(0.0),
        real=real,
        fake=fake,
        condition=condition,
    )


def discriminator_loss(system: System, real_logits, fake_logits):
    """What the discriminator minimises, for its logits (N, 1) of real and of generated images.

    standard: the cross-entropy of Goodfellow et al. (2014) against `system.real_label` (0.9 with label smoothing) and
    `system.fake_label`. hinge: Lim and Ye (2017, arXiv:1705.02894). relativistic: each real image is to seem more real
    than one generated image (Jolicoeur-Martineau, 2018, arXiv:1807.00734).
    """
    if system.objective == 'hinge':
        return tf.reduce_mean(tf.nn.relu(1 - real_logits)) + tf.reduce_mean(tf.nn.relu(1 + fake_logits))
    if system.objective == 'relativistic':
        return cross_entropy(real_logits - fake_logits, 1.0)
    loss_real = cross_entropy(real_logits, system.real_label, system.label_noise)
    return loss_real + cross_entropy(fake_logits, system.fake_label, system.label_noise)


def generator_loss(system: System, real_logits, fake_logits):
    """What the generator minimises; standard: the non-saturating cross-entropy against `system.wanted_label`."""
    if system.objective == 'hinge':
        return -tf.reduce_mean(fake_logits)
    if system.objective == 'relativistic':
        return cross_entropy(fake_logits - real_logits, 1.0)
    return cross_entropy(fake_logits, system.wanted_label)


def probabilities(system: System, real_logits, fake_logits) -> tuple:
    """D(x) and D(G(z)), each (N, 1): of being real, or for a relativistic objective of being the real one of a pair."""
    if system.objective == 'relativistic':
        return tf.sigmoid(real_logits - fake_logits), tf.sigmoid(fake_logits - real_logits)
    real_is_1 = system.objective != 'standard' or system.real_label > system.fake_label
    sign = 1 if real_is_1 else -1  # or else the logits are those of being generated
    return tf.sigmoid(sign * real_logits), tf.sigmoid(sign * fake_logits)


def gradient_penalty(system: System, real, condition=()):
    """R1: the squared gradient of the logits at `real` images, halved, times `system.r1` (Mescheder et al., 2018).

    It is taken every `r1_every` steps only, and is as many times as large, which costs little and does as much (Karras
    et al., 2020, arXiv:1912.04958). Batch normalisation, if any, is here that of groups of GHOST_SIZE images, where
    they divide the batch: the same on one machine and on several.
    """

    def penalty():
        images = tf.identity(real)
        replica = current_replica()
        ghost_size = math.gcd(GHOST_SIZE, system.batch_size // replica.count)
        with Ghosts(replica, ghost_size).scope():
            logits = discriminator(system, images, condition, reuse=True)
        (gradient,) = tf.gradients(logits, images)
        return system.r1 / 2 * system.r1_every * tf.reduce_mean(tf.reduce_sum(gradient**2, axis=[1, 2, 3]))

    due = tf.equal(tf.train.get_or_create_global_step() % system.r1_every, 0)
    return tf.cond(due, penalty, lambda: tf.constant(0.0))


def cross_entropy(logits, label, noise=0.0):
    """Mean sigmoid cross-entropy of `logits` against one `label`, 0..1, for all of them.

    noise: move each label towards the opposite one, 1 - label, by a random fraction of the way, at most this one.
    """
    labels = tf.fill(tf.shape(logits), label)
    if noise:
        labels += noise * (1 - 2 * label) * random_uniform(tf.shape(logits), 'label_noise')
    return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits))


def model_opt(system: System, losses: Losses, learning_rate, ema=None):
    """One operation that makes a whole training step: both updates, the moving average, the global step.

    The article runs its two optimisers one after the other. So does the update order 'alternating', in one session
    run: the generator is updated against the updated discriminator, on the same generated images. 'simultaneous'
    takes both gradients at the same point, which saves one pass through the discriminator.
    ema: a `tf.train.ExponentialMovingAverage` to keep of the generator's weights.
    """
    global_step = tf.train.get_or_create_global_step()
    with tf.variable_scope('d_optimizer'):
        d_learning_rate = learning_rate * system.learning_rate_ratio
        variables = tf.trainable_variables('discriminator/')
        variables = [each for each in variables if not each.op.name.startswith(frozen_scopes(system))]
        d_train_opt = minimize(system, losses.d_loss + losses.d_penalty, d_learning_rate, variables)
    with tf.control_dependencies([d_train_opt]):
        d_train_opt = tf.group(d_train_opt, iterate_powers())
    g_loss = losses.g_loss
    if system.update_order == 'alternating':
        with tf.control_dependencies([d_train_opt]):
            fake_logits = discriminator(system, augment(system, losses.fake), losses.condition, reuse=True)
            compared = system.objective == 'relativistic'
            real_logits = discriminator(system, losses.real, losses.condition, reuse=True) if compared else None
            g_loss = generator_loss(system, real_logits, fake_logits)
    with tf.variable_scope('g_optimizer'):
        g_train_opt = minimize(system, g_loss, learning_rate, tf.trainable_variables('generator/'))
    with tf.control_dependencies([d_train_opt, g_train_opt]):
        step = global_step.assign_add(1)
    with tf.control_dependencies([step]):
        return ema.apply(tf.trainable_variables('generator/')) if ema else tf.no_op()


def frozen_scopes(system: System) -> tuple[str, ...]:
    """The scopes of the layers of the discriminator that are not trained."""
    return tuple(f'discriminator/layer{number}/' for number in range(1, system.freeze_discriminator + 1))


def minimize(system: System, loss, learning_rate, variables):
    """One update of `variables` by the system's optimiser."""
    step = tf.train.get_or_create_global_step()
    learning_rate = tf.train.inverse_time_decay(learning_rate, step, 1, system.learning_rate_decay)
    if system.optimizer == 'adam':
        optimizer = tf.train.AdamOptimizer(learning_rate, system.beta1)
    else:
        optimizer = tf.train.RMSPropOptimizer(learning_rate, epsilon=1e-7)  # as in Keras, decay 0.9 too
    gradients = [gradient for gradient, _ in optimizer.compute_gradients(loss, variables)]
    gradients = current_replica().mean(gradients)
    if system.clip_value:
        gradients = [tf.clip_by_value(gradient, -system.clip_value, system.clip_value) for gradient in gradients]
    return optimizer.apply_gradients(zip(gradients, variables, strict=True))


def store_statistics(system: System, z, ema=None):
    """An operation that stores the batch norm statistics of the generator, for sampling, as those of one batch.

    They are taken from the weights that draw, so they fit averaged weights too, and without dropout, as samples are.
    z: latents (N, z_dim), some hundreds.
    """
    statistics: list = []
    system = replace(system, dropout=0.0)
    generator(system, z, training=True, reuse=tf.AUTO_REUSE, ema=ema, statistics=statistics)
    return tf.group(statistics)
