"""Projection: the latent whose face is nearest to a photo, found by gradient descent."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

import dcgan
import helper
from common.cli import UserError, progress
from dataset.source import Source
from graph.session import tf
from sampling.generator import Generator, draw
from sampling.latents import sample_latents
from systems import System

CANDIDATES = 1000  # random latents to choose the starting points from
STARTS = 4  # nearest candidates, from which the search starts
STEPS = 400  # steps of Adam
LEARNING_RATE = 0.2  # initial rate of Adam; it decays to 0 along a cosine
MIN_SIDE = 4  # side of the coarsest pyramid level, pixels


class Projection(NamedTuple):
    """The result for a photo. Distances are root mean square (RMS) differences on a scale of 0..255."""

    latent: np.ndarray  # (z_dim,)
    face: np.ndarray  # uint8 (H, W, C)
    distance: float  # between the face and the photo
    random_distance: float  # between the nearest of CANDIDATES random faces and the photo


def find_photos(paths: list[Path]) -> list[Path]:
    """The image files `paths`, and in place of each folder its sorted images. Raises DataError and OSError."""
    photos = []
    for path in paths:
        if path.is_dir():
            source = Source(path)
            source.check_images()
            photos += [path / image.location for image in source.images]
        else:
            photos.append(path)
    return photos


def read_photo(path: Path, system: System) -> np.ndarray:
    """Read an image file, cropped and resized as for training: uint8 (H, W, C). Raises UserError."""
    height, width, channels = system.image_shape
    try:
        return helper.get_image(path, width, height, system.crop, channels)
    except Exception as error:  # Pillow raises any exception for a broken image
        raise UserError(f'{path} cannot be read: {getattr(error, "strerror", None) or error}') from None


def rms(images: np.ndarray, photo: np.ndarray) -> np.ndarray:
    """The root mean square difference of each of `images` (N, H, W, C) from `photo` (H, W, C): (N,)."""
    return np.sqrt(np.square(images.astype(np.float32) - photo).mean(axis=(1, 2, 3)))


def constrain(system: System, latents):
    """Project latents (N, z_dim) onto the support of the prior."""
    if system.latent == 'uniform':  # Lipton and Tripathi (2017, arXiv:1702.04782)
        return tf.clip_by_value(latents, -1, 1)
    # Normal latents lie close to a sphere.
    return tf.clip_by_norm(latents, float(latents.shape[1]) ** 0.5, axes=[1])


def pyramid_loss(images, photo):
    """The mean squared difference of each of `images` (N, H, W, C) from `photo` (H, W, C), summed over scales: (N,)."""
    difference = images - photo
    # Halve the sides again and again: at coarse scales, small displacements hardly matter.
    loss = tf.reduce_mean(difference**2, axis=[1, 2, 3])
    while min(difference.shape[1:3]) >= 2 * MIN_SIDE:
        difference = tf.nn.avg_pool2d(difference, 2, 2, 'VALID')
        loss += tf.reduce_mean(difference**2, axis=[1, 2, 3])
    return loss


def project(generator: Generator, photos: np.ndarray, seed: int):
    """Yield the Projection of each of `photos`, uint8 (N, H, W, C); `seed` decides the candidates to start from.

    Adam descends through the generator from several starts at once (Zhu et al., 2016, arXiv:1609.03552).
    """
    # Draw the candidates.
    system, session = generator.system, generator.session
    candidates = sample_latents(system, np.random.default_rng(seed), CANDIDATES)
    faces = generator.draw_all(candidates)

    # Build the optimisation: the latents are variables, and the weights of the generator stay fixed.
    photo = tf.placeholder(tf.float32, photos.shape[1:])
    latents = tf.get_variable('latents', [STARTS, system.z_dim], constraint=lambda moved: constrain(system, moved))
    images = dcgan.generator(system, latents, training=False, reuse=True)
    loss = tf.reduce_sum(pyramid_loss(images, photo / 127.5 - 1))  # the starts do not interact
    step = tf.get_variable('projection_step', [], tf.int32, tf.zeros_initializer())
    optimizer = tf.train.AdamOptimizer(tf.train.cosine_decay(LEARNING_RATE, step, STEPS))
    descend = optimizer.minimize(loss, step, [latents])
    start = tf.variables_initializer([latents, step, *optimizer.variables()])

    for pixels in photos:
        # Start from the nearest candidates.
        random_distances = rms(faces, pixels)
        session.run(start, {latents.initial_value: candidates[random_distances.argsort()[:STARTS]]})
        with progress(desc='Projecting', total=STEPS, unit=' steps') as bar:
            for _ in range(STEPS):
                session.run(descend, {photo: pixels})
                bar.update()
        # Keep the best result.
        found = session.run(latents)
        drawn = np.concatenate(list(draw(session, generator.z, generator.images, found)))
        distances = rms(drawn, pixels)
        best = distances.argmin()
        yield Projection(found[best], drawn[best], distances[best], random_distances.min())
