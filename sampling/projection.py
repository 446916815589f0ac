"""Projection: the latent of a photo, whose face is the nearest that the generator can draw."""

from typing import NamedTuple

import numpy as np

import dcgan
from common.cli import progress
from graph.session import tf
from sampling.generator import Generator, draw
from sampling.latents import sample_latents
from systems import System

CANDIDATES = 1000  # random latents; the search starts from the nearest ones
STARTS = 4
STEPS = 400
LEARNING_RATE = 0.2  # of Adam at the first step; it falls to 0 along a cosine
MIN_SIDE = 4  # of the coarsest level of the pyramid, pixels


class Projection(NamedTuple):
    """What was found for a photo. Distances are root mean square differences on a scale of 0..255."""

    latent: np.ndarray  # (z_dim,)
    face: np.ndarray  # uint8 (H, W, C)
    distance: float  # of the face from the photo
    random_distance: float  # of the nearest of CANDIDATES random faces


def rms(images: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """The root mean square difference of each of `images` (N, H, W, C) from `photo` (H, W, C): (N,)."""
    return np.sqrt(np.square(images.astype(np.float32) - photo).mean(axis=(1, 2, 3)))


def constrain(system: System, latents):
    """Move latents (N, z_dim) to where the system's distribution has them.

    Into -1..1 if they are uniform (Lipton and Tripathi, 2017, arXiv:1702.04782), otherwise into the sphere that normal
    latents lie close to.
    """
    if system.latent == 'uniform':
        return tf.clip_by_value(latents, -1, 1)
    return tf.clip_by_norm(latents, float(latents.shape[1]) ** 0.5, axes=[1])


def pyramid_loss(images, photo):
    """The mean squared difference of each of `images` (N, H, W, C) from `photo` (H, W, C), summed over scales: (N,).

    Each scale has half the side of the one before, so that what is only displaced still counts as near.
    """
    difference = images - photo
    loss = tf.reduce_mean(difference**2, axis=[1, 2, 3])
    while min(difference.shape[1:3]) >= 2 * MIN_SIDE:
        difference = tf.nn.avg_pool2d(difference, 2, 2, 'VALID')
        loss += tf.reduce_mean(difference**2, axis=[1, 2, 3])
    return loss


def project(generator: Generator, photos: np.ndarray, seed: int):
    """Yield the Projection of each of `photos`, uint8 (N, H, W, C).

    Adam descends through the generator from several starts at once (Zhu et al., 2016, arXiv:1609.03552). `seed` decides
    where from.
    """
    system, session = generator.system, generator.session
    candidates = sample_latents(system, np.random.default_rng(seed), CANDIDATES)
    faces = np.concatenate(list(generator.draw(candidates, CANDIDATES)))
    photo = tf.placeholder(tf.float32, photos.shape[1:])
    shape = [STARTS, system.z_dim]
    latents = tf.get_variable('latents', shape, constraint=lambda latents: constrain(system, latents))
    images = dcgan.generator(system, latents, training=False, reuse=True)
    loss = tf.reduce_sum(pyramid_loss(images, photo / 127.5 - 1))  # each start has a part of its own
    step = tf.get_variable('projection_step', [], tf.int32, tf.zeros_initializer())
    optimizer = tf.train.AdamOptimizer(tf.train.cosine_decay(LEARNING_RATE, step, STEPS))
    descend = optimizer.minimize(loss, step, [latents])
    start = tf.variables_initializer([latents, step, *optimizer.variables()])
    for pixels in photos:
        random_distances = rms(faces, pixels)
        session.run(start, {latents.initial_value: candidates[random_distances.argsort()[:STARTS]]})
        with progress(desc='Projecting', total=STEPS, unit=' steps') as bar:
            for _ in range(STEPS):
                session.run(descend, {photo: pixels})
                bar.update()
        found = session.run(latents)
        drawn = np.concatenate(list(draw(session, generator.z, generator.images, found)))
        distances = rms(drawn, pixels)
        best = distances.argmin()
        yield Projection(found[best], drawn[best], distances[best], random_distances.min())
