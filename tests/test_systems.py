"""The systems against their articles: shapes and parameters worked out by hand, and that each of them learns."""

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import NARROW, chosen, run_command

import dcgan
import train
from config.settings import flag
from graph.replica import Replica
from graph.session import open_session, tf
from helper import get_batch
from sampling.generator import draw_faces
from sampling.latents import sample_latents
from systems import SYSTEMS, System

# For each layer, first to last: the shape of its output and its number of parameters: kernels, then gamma and beta of a
# batch normalisation, or else biases. A kernel has side * side * (channels in) * (channels out) parameters.
OREILLY_DISCRIMINATOR = [
    ((14, 14, 64), 5 * 5 * 3 * 64 + 64),
    ((7, 7, 128), 5 * 5 * 64 * 128 + 128 + 128),
    ((7, 7, 256), 5 * 5 * 128 * 256 + 256 + 256),
    ((1,), 7 * 7 * 256 * 1 + 1),
]
PAPER = {
    'generator': [
        ((4, 4, 1024), 100 * 4 * 4 * 1024 + 1024 + 1024),
        ((8, 8, 512), 5 * 5 * 1024 * 512 + 512 + 512),
        ((16, 16, 256), 5 * 5 * 512 * 256 + 256 + 256),
        ((32, 32, 128), 5 * 5 * 256 * 128 + 128 + 128),
        ((64, 64, 3), 5 * 5 * 128 * 3 + 3),
    ],
    'discriminator': [
        ((32, 32, 128), 5 * 5 * 3 * 128 + 128),
        ((16, 16, 256), 5 * 5 * 128 * 256 + 256 + 256),
        ((8, 8, 512), 5 * 5 * 256 * 512 + 512 + 512),
        ((4, 4, 1024), 5 * 5 * 512 * 1024 + 1024 + 1024),
        ((1,), 4 * 4 * 1024 * 1 + 1),
    ],
}
LAYERS = {
    'oreilly': {
        'generator': [
            ((2, 2, 512), 100 * 2 * 2 * 512 + 512 + 512),
            ((7, 7, 256), 5 * 5 * 512 * 256 + 256 + 256),  # (2 - 1) * 2 + 5 = 7
            ((14, 14, 128), 5 * 5 * 256 * 128 + 128 + 128),
            ((28, 28, 3), 5 * 5 * 128 * 3 + 3),
        ],
        'discriminator': OREILLY_DISCRIMINATOR,
    },
    'sharma': {
        'generator': [
            ((2, 2, 1024), 100 * 2 * 2 * 1024 + 1024 + 1024),
            ((7, 7, 512), 5 * 5 * 1024 * 512 + 512 + 512),
            ((14, 14, 256), 5 * 5 * 512 * 256 + 256 + 256),
            ((28, 28, 3), 5 * 5 * 256 * 3 + 3),
        ],
        'discriminator': OREILLY_DISCRIMINATOR,
    },
    'kdnuggets': {
        'generator': [
            ((16, 16, 128), 100 * 16 * 16 * 128 + 16 * 16 * 128),
            ((16, 16, 256), 5 * 5 * 128 * 256 + 256),
            ((32, 32, 256), 4 * 4 * 256 * 256 + 256),
            ((64, 64, 256), 4 * 4 * 256 * 256 + 256),
            ((128, 128, 256), 4 * 4 * 256 * 256 + 256),
            ((128, 128, 512), 5 * 5 * 256 * 512 + 512),
            ((128, 128, 512), 5 * 5 * 512 * 512 + 512),
            ((128, 128, 3), 7 * 7 * 512 * 3 + 3),
        ],
        'discriminator': [
            ((126, 126, 256), 3 * 3 * 3 * 256 + 256),  # 128 - 3 + 1
            ((62, 62, 256), 4 * 4 * 256 * 256 + 256),  # (126 - 4) / 2 + 1
            ((30, 30, 256), 4 * 4 * 256 * 256 + 256),  # (62 - 4) / 2 + 1
            ((14, 14, 256), 4 * 4 * 256 * 256 + 256),  # (30 - 4) / 2 + 1
            ((6, 6, 256), 4 * 4 * 256 * 256 + 256),  # (14 - 4) / 2 + 1
            ((1,), 6 * 6 * 256 * 1 + 1),
        ],
    },
    'ranjan': PAPER,
    'chandarana': PAPER,
    'recommended': {
        'generator': [
            ((7, 7, 256), 100 * 7 * 7 * 256 + 256 + 256),
            ((14, 14, 128), 4 * 4 * 256 * 128 + 128 + 128),
            ((28, 28, 3), 4 * 4 * 128 * 3 + 3),
        ],
        'discriminator': [
            ((14, 14, 64), 4 * 4 * 3 * 64 + 64),
            ((7, 7, 128), 4 * 4 * 64 * 128 + 128 + 128),
            ((4, 4, 256), 4 * 4 * 128 * 256 + 256 + 256),
            ((1,), 4 * 4 * 256 * 1 + 1),
        ],
    },
    'recommended64': {
        'generator': [
            ((4, 4, 512), 100 * 4 * 4 * 512 + 512 + 512),
            ((8, 8, 256), 4 * 4 * 512 * 256 + 256 + 256),
            ((16, 16, 128), 4 * 4 * 256 * 128 + 128 + 128),
            ((32, 32, 64), 4 * 4 * 128 * 64 + 64 + 64),
            ((64, 64, 3), 4 * 4 * 64 * 3 + 3),
        ],
        'discriminator': [
            ((32, 32, 64), 4 * 4 * 3 * 64 + 64),
            ((16, 16, 128), 4 * 4 * 64 * 128 + 128 + 128),
            ((8, 8, 256), 4 * 4 * 128 * 256 + 256 + 256),
            ((4, 4, 512), 4 * 4 * 256 * 512 + 512 + 512),
            ((1,), 4 * 4 * 512 * 1 + 1),
        ],
    },
}


@pytest.mark.parametrize('name', SYSTEMS)
def test_layers_have_the_published_shapes_and_parameters(name):
    system = chosen(f'--system {name}')[1]
    inputs = {'generator': [4, system.latent_size], 'discriminator': [4, *LAYERS[name]['generator'][-1][0]]}
    with tf.Graph().as_default():
        for scope, expected in LAYERS[name].items():
            layers, built = getattr(system, scope), []
            for count in range(1, len(layers) + 1):
                with tf.variable_scope(scope, reuse=tf.AUTO_REUSE):
                    output = dcgan.network(system, layers[:count], tf.zeros(inputs[scope]), training=True)
                learned = tf.trainable_variables(f'{scope}/layer{count}/')
                parameters = sum(variable.shape.num_elements() for variable in learned)
                built.append((tuple(output.shape.as_list()[1:]), parameters))
            assert built == expected
        assert dcgan.generator(system, tf.zeros(inputs['generator']), reuse=True).shape == (4, *system.image_shape)
        assert dcgan.discriminator(system, tf.zeros(inputs['discriminator']), reuse=True).shape == (4, 1)


BATCH_SIZE = 4


def narrow(name) -> tuple[dict, System]:
    """Settings with so small a width that steps are quick even if images are large, and their system."""
    width = 1 / 32 if SYSTEMS[name].image_shape[0] > 28 else 1 / 16
    return chosen(f'--system {name} --width {width} --batch-size {BATCH_SIZE}')


def fixed_batch(system):
    """Images of smooth colours in place of faces, -0.5..0.5, and latents."""
    rng = np.random.default_rng(0)
    height, width, channels = system.image_shape
    slopes = rng.uniform(-1, 1, (BATCH_SIZE, 2, channels))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    images = np.stack([127 + 60 * (y[..., None] * a + x[..., None] * b) for a, b in slopes])
    return get_batch(images.astype(np.uint8), np.arange(BATCH_SIZE)), sample_latents(system, rng, BATCH_SIZE)


@pytest.mark.parametrize('name', SYSTEMS)
def test_the_discriminator_of_each_system_learns_to_tell_a_batch_apart(name):
    _, system = narrow(name)
    images, latents = fixed_batch(system)
    with tf.Graph().as_default(), open_session() as session:
        tf.set_random_seed(0)
        height, width, channels = system.image_shape
        real, z, learning_rate = dcgan.model_inputs(width, height, channels, system.latent_size)
        losses = dcgan.model_loss(system, real, z).losses
        learn = dcgan.minimize(system, losses.d_loss, learning_rate, tf.trainable_variables('discriminator/'))
        feed = {real: images, z: latents, learning_rate: 2e-3}
        session.run(tf.global_variables_initializer())
        before = session.run(losses, feed)
        for _ in range(60):
            session.run(learn, feed)
        after = session.run(losses, feed)
    assert after.d_loss < before.d_loss - 0.3
    assert after.d_real.shape == after.d_fake.shape == (BATCH_SIZE, 1)
    assert after.d_real.mean() > after.d_fake.mean() + 0.2


@pytest.mark.parametrize('name', SYSTEMS)
def test_a_step_of_each_system_changes_every_weight(name):
    settings, system = narrow(name)
    images, latents = fixed_batch(system)
    model = train.build_graph(settings, Replica())
    with model.graph.as_default(), open_session() as session:
        session.run(model.initializer)
        weights = {variable.op.name: variable for variable in tf.trainable_variables()}
        before = session.run(weights)
        feed = {model.batch: images, model.input_z: latents, model.learning_rate: system.learning_rate, model.count: 1}
        outcome = session.run(model.losses, feed)
        after = session.run(weights)
        assert session.run(model.step) == 1 and session.run(model.weights_finite)
        session.run(model.store_statistics, {model.input_z: latents})
        faces = session.run(model.samples, {model.input_z: latents})
    assert all(np.isfinite(value).all() for value in outcome)
    assert all((after[name] != before[name]).any() for name in weights)
    assert faces.shape == (BATCH_SIZE, *system.image_shape) and np.isfinite(faces).all()


# --- width and flags


@pytest.mark.parametrize('name', SYSTEMS)
def test_width_scales_the_hidden_channels_and_nothing_else(name):
    full, thin = (chosen(f'--system {name} --width {width}')[1] for width in (1, 0.125))
    for full_layers, thin_layers in ((full.generator, thin.generator), (full.discriminator, thin.discriminator)):
        for before, after in zip(full_layers[:-1], thin_layers[:-1], strict=True):
            if isinstance(before.output, tuple):
                assert after.output == (*before.output[:-1], before.output[-1] // 8)
            else:
                assert after.output == before.output // 8
            assert replace(after, output=before.output) == before
        assert thin_layers[-1] == full_layers[-1]
    assert thin.generator[-1].output == 3 and thin.discriminator[-1].output == (1,)
    assert replace(thin, generator=full.generator, discriminator=full.discriminator) == full


def test_a_layer_has_at_least_one_channel():
    assert [layer.output for layer in chosen('--width 0.0001')[1].generator] == [(2, 2, 1), 1, 1, 3]
    assert [layer.output for layer in chosen('--width 0.005')[1].discriminator] == [1, 1, 1, (1,)]
    assert [layer.output for layer in chosen('--width 2')[1].generator] == [(2, 2, 1024), 512, 256, 3]


@pytest.mark.parametrize(
    'flags, values',
    [
        ('', {'epochs': 2, 'steps': None, 'sample_every': 400, 'sample_epochs': None}),
        ('--steps 9', {'epochs': None, 'steps': 9, 'sample_every': 400, 'sample_epochs': None}),
        ('--epochs 9 --steps 8', {'epochs': 9, 'steps': 8, 'sample_every': 400, 'sample_epochs': None}),
        ('--sample-epochs 3', {'epochs': 2, 'steps': None, 'sample_every': None, 'sample_epochs': 3}),
        ('--system kdnuggets', {'epochs': None, 'steps': 20_000, 'sample_every': 50, 'sample_epochs': None}),
        ('--system kdnuggets --epochs 1', {'epochs': 1, 'steps': None, 'sample_every': 50, 'sample_epochs': None}),
        ('--system ranjan --sample-every 5', {'epochs': 25, 'steps': None, 'sample_every': 5, 'sample_epochs': None}),
    ],
)
def test_one_flag_of_a_schedule_takes_the_place_of_both_settings(flags, values):
    settings, _ = chosen(flags)
    assert {name: settings[name] for name in values} == values


def test_run_json_is_enough_to_draw_the_faces_of_a_run_with_other_values(tmp_path, pictures):
    values = {
        'batch_size': 8, 'latent_size': 7, 'latent': 'normal', 'leaky_slope': 0.1, 'optimizer': 'rmsprop', 'ema': 0.5,
        'dropout': 0.35, 'augment': 'translation', 'flip': 0.25, 'samples': 9,
    }  # fmt: skip
    flags = [text for name, value in values.items() for text in (flag(name), value)]
    result = run_command(
        'train.py', *NARROW, *flags, '--data', pictures, '--run-dir', 'run', '--steps', 2, '--sample-every', 1,
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0 and result.stderr == ''
    saved = json.loads((tmp_path / 'run' / 'run.json').read_text())['settings']
    assert {name: saved[name] for name in values} == values and saved['width'] == 0.125
    (faces,) = draw_faces(tmp_path / 'run', 9, seed=0)
    assert faces.shape == (9, 28, 28, 3) and faces.std(axis=0).mean() > 0
    (others,) = draw_faces(tmp_path / 'run', 9, seed=1)
    assert (faces != others).any(axis=(1, 2, 3)).all()
