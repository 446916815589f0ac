"""Differentiable augmentation: random changes of real and generated images before the discriminator sees them.

They keep the discriminator from memorising small data sets. The generator gets its gradients through them, and learns
to draw unchanged images.
"""

import math

from graph.random import random_normal, random_uniform
from graph.session import tf

# Strengths of Zhao et al. (2020), as fractions of the side.
MAX_SHIFT = 1 / 8
CUTOUT = 1 / 2


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

    system.augment: steps of differentiable augmentation, in order (Zhao et al., 2020, arXiv:2006.10738).
    system.instance_noise: standard deviation of normal noise (Soenderby et al., 2017, arXiv:1610.04490).
    """
    steps = {'color': color, 'translation': translation, 'cutout': cutout}
    for name in system.augment.split('-') if system.augment != 'none' else ():
        images = steps[name](images)
    if system.instance_noise:
        images += system.instance_noise * random_normal(tf.shape(images), 'instance_noise')
    return images
