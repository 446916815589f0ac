"""Differentiable augmentation: random changes of real and generated images before the discriminator sees them.

They keep the discriminator from memorising small data sets. The generator gets its gradients through them, and learns
to draw unchanged images.
"""

import math

from graph.random import random_normal, random_uniform
from graph.replica import current_replica
from graph.session import tf

# Strengths of Zhao et al. (2020), as fractions of the side.
MAX_SHIFT = 1 / 8
CUTOUT = 1 / 2
# Images until an adaptive probability has risen from 0 to 1 (Karras et al., 2020, when they start from a trained run).
RISE = 100_000


def uniform(images, low, high):
    """One random number per image, U(low, high), shape (N, 1, 1, 1)."""
    return random_uniform(tf.stack([tf.shape(images)[0], 1, 1, 1]), 'augment', low, high)


def flip(images, probability):
    """Mirror each image with this probability."""
    return tf.where_v2(uniform(images, 0, 1) < probability, tf.reverse(images, [2]), images)


def color(images):
    """Shift brightness by up to 0.5 (of -1..1), then scale saturation by 0 to 2, then contrast by 0.5 to 1.5."""
    images += uniform(images, -0.5, 0.5)
    grey = tf.reduce_mean(images, axis=3, keepdims=True)
    images = grey + (images - grey) * uniform(images, 0, 2)
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    return mean + (images - mean) * uniform(images, 0.5, 1.5)


def translation(images):
    """Shift by whole pixels, down and across, up to MAX_SHIFT of the side; uncovered pixels become 0, grey."""
    shifts = [round(side * MAX_SHIFT) for side in images.shape[1:3]]
    offsets = [tf.floor(uniform(images, -shift, shift + 1))[:, 0, 0] for shift in shifts]
    images = tf.pad(images, [[0, 0], *([shift, shift] for shift in shifts), [0, 0]])
    for axis, shift, offset in zip((1, 2), shifts, offsets, strict=True):
        pixels = tf.range(shift, images.shape[axis] - shift)
        # Not ImageProjectiveTransformV3, which XLA cannot compile.
        images = tf.gather(images, pixels + tf.cast(offset, tf.int32), axis=axis, batch_dims=1)
    return images


def cutout(images):
    """Set a rectangle with CUTOUT of each side, centred on a random pixel, to 0, grey."""

    def inside(axis):
        side = images.shape[axis]
        pixels = tf.reshape(tf.range(side, dtype=tf.float32), [side if each == axis else 1 for each in range(4)])
        distance = pixels - tf.floor(uniform(images, 0, side))
        return (distance >= -round(side * CUTOUT / 2)) & (distance < math.ceil(side * CUTOUT / 2))

    return tf.where_v2(inside(1) & inside(2), tf.zeros_like(images), images)


def augment(system, images):
    """Augment the images (N, H, W, C), -1..1. The discriminator sees the result in every pass.

    system.augment: steps of differentiable augmentation, in order (Zhao et al., 2020, arXiv:2006.10738), each applied
    to an image with the probability of `adaptive_probability`, or to all images if it is not adaptive.
    system.instance_noise: standard deviation of normal noise (Soenderby et al., 2017, arXiv:1610.04490).
    """
    steps = {'color': color, 'translation': translation, 'cutout': cutout}
    for name in system.augment.split('-') if system.augment != 'none' else ():
        changed = steps[name](images)
        if system.augment_target:
            changed = tf.where_v2(uniform(images, 0, 1) < adaptive_probability(), changed, images)
        images = changed
    if system.instance_noise:
        images += system.instance_noise * random_normal(tf.shape(images), 'instance_noise')
    return images


def adaptive_probability():
    """The variable with the probability of each augmentation, 0 at first."""
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        return tf.get_variable('augment_probability', [], initializer=tf.zeros_initializer(), trainable=False)


def adapt(system, d_real):
    """An operation that adapts the probability to D(x), `d_real` (N, 1) (Karras et al., 2020, arXiv:2006.06676).

    It rises while the discriminator is ahead, which is when mean(sign(D(x) - 1/2)) exceeds system.augment_target: of
    the real images of a batch, more than (1 + target) / 2 are judged as real.
    """
    probability = adaptive_probability()
    (ahead,) = current_replica().mean([tf.reduce_mean(tf.sign(d_real - 0.5))])
    change = tf.sign(ahead - system.augment_target) * system.batch_size / RISE
    return probability.assign(tf.clip_by_value(probability + change, 0.0, 1.0))
