"""What does the discriminator see? Real and generated images, changed at random in the same ways.

It cannot learn a few thousand faces by heart that it never sees twice. All changes are differentiable, so that the
generator learns through them, and it learns to draw images that are not changed: see `augment`.
"""

import math

from replication import random_seed, stateless_random
from runtime import tf
from systems import System

SHIFT = 1 / 8  # of a side, at most; this and the other strengths are those of Zhao et al.
CUTOUT = 1 / 2  # of a side


def uniform(images, low, high):
    """A random number for each of `images`, (N, 1, 1, 1)."""
    shape = tf.stack([tf.shape(images)[0], 1, 1, 1])
    return low + (high - low) * stateless_random(tf.random.stateless_uniform, shape, random_seed('augment'))


def flip(images, share):
    """Mirror a `share` of `images`, at random."""
    return tf.where_v2(uniform(images, 0, 1) < share, tf.reverse(images, [2]), images)


def color(images):
    """Change brightness by up to 0.5 of -1..1, then saturation to 0 to 2 times its own, then contrast to 0.5 to 1.5."""
    images += uniform(images, -0.5, 0.5)
    grey = tf.reduce_mean(images, axis=3, keepdims=True)
    images = grey + (images - grey) * uniform(images, 0, 2)
    mean = tf.reduce_mean(images, axis=[1, 2, 3], keepdims=True)
    return mean + (images - mean) * uniform(images, 0.5, 1.5)


def translation(images):
    """Shift by whole pixels, down and across, up to SHIFT of a side; what comes in is 0, grey."""
    most = round(images.shape[1] * SHIFT)
    down, across = (tf.floor(uniform(images, -most, most + 1))[:, 0, 0] for _ in range(2))
    one, zero = tf.ones_like(down), tf.zeros_like(down)
    # Where pixel (x, y) of the result comes from: (a x + b y + c, d x + e y + f), rows of a b c d e f 0 0.
    transforms = tf.concat([one, zero, across, zero, one, down, zero, zero], axis=1)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images, transforms=transforms, output_shape=images.shape[1:3].as_list(), fill_value=0.0,
        interpolation='NEAREST', fill_mode='CONSTANT',
    )  # fmt: skip


def cutout(images):
    """Set a square of CUTOUT of the side, centred on any pixel, to 0."""
    side = images.shape[1]
    pixels = tf.range(side, dtype=tf.float32)

    def inside(shape):
        distance = tf.reshape(pixels, shape) - tf.floor(uniform(images, 0, side))
        return (distance >= -round(side * CUTOUT / 2)) & (distance < math.ceil(side * CUTOUT / 2))

    return tf.where_v2(inside([1, side, 1, 1]) & inside([1, 1, side, 1]), tf.zeros_like(images), images)


def augment(system: System, images):
    """`images` (N, H, W, 3) in -1..1 as the discriminator sees them, real and generated ones, in every pass.

    system.augment: differentiable augmentation (Zhao et al., 2020, arXiv:2006.10738), its steps in order.
    system.instance_noise: the standard deviation of normal noise (Soenderby et al., 2017, arXiv:1610.04490).
    """
    steps = {'color': color, 'translation': translation, 'cutout': cutout}
    for name in system.augment.split('-') if system.augment != 'none' else ():
        images = steps[name](images)
    if system.instance_noise:
        noise = stateless_random(tf.random.stateless_normal, tf.shape(images), random_seed('instance_noise'))
        images += system.instance_noise * noise
    return images
