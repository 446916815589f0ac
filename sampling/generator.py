"""Trained generators: restored from a checkpoint, and sampled."""

import contextlib
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import dcgan
import helper
from common.cli import UserError, progress
from graph.layers import BATCH_NORM_EPSILON
from graph.names import AVERAGE, layer_scope
from graph.session import open_session, tf
from rundir import checkpoints
from rundir.run_json import read_run, system_of_run
from sampling.conditions import Conditions
from sampling.latents import sample_latents
from systems import System

PRETRAINED = Path(__file__).parent.parent / 'pretrained'
PRETRAINED_BY_SIZE = {28: PRETRAINED, 64: PRETRAINED / '64'}  # run directories by image size, pixels
PRETRAINED_ATTRIBUTES = (
    'Smiling', 'Male', 'Young', 'Eyeglasses', 'Blond_Hair', 'Black_Hair', 'Bangs', 'No_Beard', 'Wearing_Hat',
)  # fmt: skip
PIXELS_PER_RUN = 64 * 28 * 28  # limit for a session run: the layers of a 128x128 network are large


class Generator(NamedTuple):
    """A trained generator in an open session."""

    checkpoint: checkpoints.Checkpoint
    system: System
    session: Any
    z: Any  # placeholder of the latents, (N, z_dim)
    images: Any  # (N, H, W, C) in -1..1

    def draw(self, latents, count: int):
        """Like the function `draw`, with a progress bar for `count` faces."""
        with progress(desc='Drawing', total=count, unit=' faces') as bar:
            for faces in draw(self.session, self.z, self.images, latents):
                bar.update(len(faces))
                yield faces

    def draw_all(self, latents: np.ndarray) -> np.ndarray:
        """The faces of latents (N, z_dim): uint8 (N, H, W, C)."""
        return np.concatenate(list(self.draw(latents, len(latents))))

    def draw_samples(self, count: int, seed, truncate: float = 1.0, wanted: dict[str, bool] | None = None):
        """Yield `count` faces in chunks, uint8 (n, H, W, C).

        seed: see `numpy.random.default_rng`. wanted: see `Conditions.asked`.
        The face at index i depends on the checkpoint, `seed`, `truncate`, `wanted` and i, but not on `count`.
        """
        rng, conditions = np.random.default_rng(seed), Conditions.of(self.system).asked(wanted or {})
        latents = (sample_latents(self.system, rng, 1, truncate, conditions)[0] for _ in range(count))
        yield from self.draw(latents, count)


def draw(session, z, images, latents):
    """Yield the faces of `latents`, each (z_dim,), in chunks: uint8 (n, H, W, C); z, images: see `Generator`."""
    latents = iter(latents)
    # Every batch has the same size, so that a face depends only on its latent.
    batch_size = max(1, PIXELS_PER_RUN // images.shape[1:3].num_elements())
    while chunk := list(itertools.islice(latents, batch_size)):
        batch = session.run(images, {z: np.resize(chunk, (batch_size, z.shape[1]))})
        yield helper.to_uint8(batch[: len(chunk)], (-1, 1))


@contextlib.contextmanager
def restored_generator(path: Path):
    """Yield the Generator of `path` (see `checkpoints.locate`), with averaged weights if any. Raises UserError."""
    run_dir, found, saved = checkpoints.find(path)
    system = system_of_run(read_run(run_dir))
    with tf.Graph().as_default(), open_session() as session:
        z = tf.placeholder(tf.float32, [None, system.z_dim], 'input_z')
        images = dcgan.generator(system, z, training=False)
        # Initialise the variables with the saved values.
        try:
            values = {}
            for variable in tf.global_variables():
                name = variable.op.name
                source = name + AVERAGE if saved.has_tensor(name + AVERAGE) else name
                values[variable.initial_value] = saved.get_tensor(source)
            session.run(tf.global_variables_initializer(), values)
        except (tf.errors.OpError, ValueError, RuntimeError, IndexError):
            raise UserError(f'{found.prefix} belongs to another system than {run_dir / "run.json"}') from None
        yield Generator(found, system, session, z, images)


def folded_layers(generator: Generator):
    """Yield kernel (see `graph/layers.py`) and bias of each layer, with batch normalisation folded into them."""
    variables = generator.session.run({variable.op.name: variable for variable in tf.global_variables()})
    for number, layer in enumerate(generator.system.generator, 1):
        scope = layer_scope('generator', number)
        kernel = variables[f'{scope}/{layer.kind}/kernel']
        if not layer.batch_norm:
            yield kernel, variables[f'{scope}/bias']
            continue
        # gamma * (kernel * x - mean) / sqrt(variance + epsilon) + beta = (scale * kernel) * x + (beta - scale * mean)
        names = 'gamma', 'beta', 'moving_mean', 'moving_variance'
        gamma, beta, mean, variance = (variables[f'{scope}/batch_norm/{name}'] for name in names)
        scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
        if layer.kind == 'conv2d_transpose':  # (k, k, channels, input channels)
            scaled = kernel * scale[:, None]
        else:  # the channels of the output come last
            scaled = (kernel.reshape(-1, len(scale)) * scale).reshape(kernel.shape)
        yield scaled, beta - mean * scale


def draw_faces(path: Path, count: int, seed, truncate: float = 1.0, wanted: dict[str, bool] | None = None):
    """Yield faces of the generator at `path`, as `Generator.draw_samples` does. Raises UserError."""
    with restored_generator(path) as generator:
        yield from generator.draw_samples(count, seed, truncate, wanted)
