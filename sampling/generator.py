"""Trained generators: restored from a checkpoint, drawn from."""

import contextlib
import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import dcgan
import helper
from common.cli import UserError, progress
from graph.layers import BATCH_NORM_EPSILON
from graph.session import open_session, tf
from rundir import checkpoints
from rundir.run_json import read_run, system_of_run
from sampling.conditions import ask
from sampling.latents import sample_latents
from systems import System

PRETRAINED = Path(__file__).parent.parent / 'pretrained'
PRETRAINED_BY_SIZE = {28: PRETRAINED, 64: PRETRAINED / '64'}  # by the side of the faces, pixels
PIXELS_AT_ONCE = 64 * 28 * 28  # per run of the session: the layers of a 128x128 network are large


class Generator(NamedTuple):
    """A trained generator in an open session."""

    system: System
    session: Any
    z: Any  # the placeholder of the latents, (N, z_dim)
    images: Any  # (N, H, W, C) in -1..1

    def draw(self, latents, count: int):
        """Like the function `draw`, with a progress bar for `count` faces."""
        with progress(desc='Drawing', total=count, unit=' faces') as bar:
            for faces in draw(self.session, self.z, self.images, latents):
                bar.update(len(faces))
                yield faces


def draw(session, z, images, latents):
    """Yield the faces of `latents`, each (z_dim,), in chunks: uint8 (n, H, W, C).

    z, images: a placeholder for latents, and the generator's images in -1..1.
    The session always gets batches of the same size, so a face depends on its latent alone.
    """
    latents = iter(latents)
    batch_size = max(1, PIXELS_AT_ONCE // images.shape[1:3].num_elements())
    while chunk := list(itertools.islice(latents, batch_size)):
        batch = session.run(images, {z: np.resize(chunk, (batch_size, z.shape[1]))})
        yield helper.to_uint8(batch[: len(chunk)], (-1, 1))


@contextlib.contextmanager
def restored_generator(checkpoint: Path, wanted: dict[str, bool] | None = None):
    """Yield the Generator of a run directory or checkpoint, with averaged weights if it has them. Raises UserError.

    wanted: the attributes that its faces are to have, or not to have; see `sampling.conditions.ask`.
    """
    run_dir, (_, prefix) = checkpoints.find(checkpoint)
    system = replace(system_of_run(read_run(run_dir)), precision='fp32')  # whatever it was trained in
    system = ask(system, wanted or {})
    with tf.Graph().as_default(), open_session() as session:
        z = tf.placeholder(tf.float32, [None, system.z_dim], 'input_z')
        images = dcgan.generator(system, z, training=False)
        try:
            saved = tf.train.NewCheckpointReader(os.fsencode(prefix))
            values = {}  # instead of random initial ones
            for variable in tf.global_variables():
                average = f'{variable.op.name}/ExponentialMovingAverage'
                name = average if saved.has_tensor(average) else variable.op.name
                values[variable.initial_value] = saved.get_tensor(name)
            session.run(tf.global_variables_initializer(), values)
        except (tf.errors.OpError, ValueError, RuntimeError, IndexError):
            raise UserError(f'{prefix} is damaged, or belongs to another system') from None
        yield Generator(system, session, z, images)


def folded_layers(generator: Generator):
    """Yield the kernel and the bias of each layer, with batch normalisation, which is linear when drawing, in them.

    Kernels have the shapes of `graph/layers.py`, and biases are one for each channel, or for each value of an image.
    """
    variables = generator.session.run({variable.op.name: variable for variable in tf.global_variables()})
    for number, layer in enumerate(generator.system.generator, 1):
        scope = f'generator/layer{number}'
        kernel = variables[f'{scope}/{layer.kind}/kernel']
        if not layer.batch_norm:
            yield kernel, variables[f'{scope}/bias']
            continue
        names = 'gamma', 'beta', 'moving_mean', 'moving_variance'
        gamma, beta, mean, variance = (variables[f'{scope}/batch_norm/{name}'] for name in names)
        scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
        if layer.kind == 'dense':
            scaled = (kernel.reshape(-1, len(scale)) * scale).reshape(kernel.shape)
        elif layer.kind == 'conv2d':
            scaled = kernel * scale
        else:  # (k, k, channels, channels of the input)
            scaled = kernel * scale[:, None]
        yield scaled, beta - mean * scale


def draw_faces(checkpoint: Path, count: int, seed: int, truncate: float = 1.0, wanted: dict[str, bool] | None = None):
    """Yield `count` faces in chunks, uint8 (n, H, W, C). Raises UserError.

    The face at index i depends on the checkpoint, `seed`, `truncate`, `wanted` and i, and not on `count`.
    wanted: see `restored_generator`.
    """
    with restored_generator(checkpoint, wanted) as generator:
        rng = np.random.default_rng(seed)
        yield from generator.draw((sample_latents(generator.system, rng, 1, truncate)[0] for _ in range(count)), count)
