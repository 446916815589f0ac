"""Networks for other sizes: what the rule gives, worked out by hand, and that every network has the shape asked for."""

import argparse

import numpy as np
import pytest
from conftest import chosen

import dcgan
from common import cli
from config.sizes import image_size, resized
from graph.session import open_session, tf
from systems import SYSTEMS


def layers(network) -> str:
    """A network in short: dense 4x4x512, strided 256/2."""
    return ' '.join(
        'x'.join(map(str, layer.output)) if isinstance(layer.output, tuple) else f'{layer.output}/{layer.stride}'
        for layer in network
    )


@pytest.mark.parametrize('name', SYSTEMS)
def test_the_published_size_has_the_published_networks(name):
    system = SYSTEMS[name]
    assert resized(system, system.image_size, 3) == system


@pytest.mark.parametrize(
    ('name', 'size', 'generator', 'discriminator'),
    [
        # Twice the published side: a layer more, and the same smallest map.
        ('oreilly', 56, '2x2x512 512/2 256/2 128/2 3/2', '64/2 128/2 256/2 256/1 1'),
        ('ranjan', 128, '4x4x1024 1024/2 512/2 256/2 128/2 3/2', '128/2 256/2 512/2 1024/2 1024/2 1'),
        ('kdnuggets', 256, '16x16x128 128/1 256/2 256/2 256/2 256/2 512/1 512/1 3/1',
         '256/1 256/2 256/2 256/2 256/2 256/2 1'),
        ('recommended', 56, '7x7x256 256/2 128/2 3/2', '64/2 128/2 256/2 256/2 1'),
        # Half of it.
        ('ranjan', 32, '4x4x512 256/2 128/2 3/2', '128/2 256/2 512/2 1'),
        ('kdnuggets', 64, '16x16x256 256/1 256/2 256/2 512/1 512/1 3/1', '256/1 256/2 256/2 256/2 1'),
        # Others: a smallest map of 4 to 7 pixels, or of 16 to 31.
        ('oreilly', 16, '4x4x256 128/2 3/2', '64/2 128/1 1'),
        ('oreilly', 64, '4x4x512 512/2 256/2 128/2 3/2', '64/2 128/2 256/2 256/1 1'),
        ('oreilly', 48, '6x6x512 256/2 128/2 3/2', '64/2 128/2 256/1 1'),
        ('oreilly', '48x64', '6x8x512 256/2 128/2 3/2', '64/2 128/2 256/1 1'),
        ('ranjan', 28, '7x7x256 128/2 3/2', '128/2 256/2 1'),
        ('kdnuggets', 100, '25x25x256 256/1 256/2 256/2 512/1 512/1 3/1', '256/1 256/2 256/2 256/2 1'),
        ('kdnuggets', 16, '16x16x256 256/1 512/1 512/1 3/1', '256/1 256/2 1'),
    ],
)  # fmt: skip
def test_there_is_a_layer_more_for_each_doubling(name, size, generator, discriminator):
    system = resized(SYSTEMS[name], size, 3)
    assert (layers(system.generator), layers(system.discriminator)) == (generator, discriminator)


def test_what_else_a_layer_has_stays_where_it_belongs():
    larger, smaller = (resized(SYSTEMS['oreilly'], size, 3) for size in (112, 16))
    assert [layer.padding for layer in larger.generator] == ['SAME', 'VALID', 'SAME', 'SAME', 'SAME', 'SAME']
    assert [layer.batch_norm for layer in larger.generator] == [True] * 5 + [False]
    assert [layer.batch_norm for layer in larger.discriminator] == [False] + [True] * 4 + [False]
    assert {layer.padding for layer in smaller.generator} == {'SAME'}  # 2x2 becomes 7x7 only without padding
    assert [layer.batch_norm for layer in smaller.discriminator] == [False, True, False]
    for size in (16, 64, 256):
        discriminator = resized(SYSTEMS['kdnuggets'], size, 3).discriminator
        assert [layer.dropout for layer in discriminator[:-1]] == [False] * (len(discriminator) - 2) + [True]


@pytest.mark.parametrize('size', [16, 20, 28, 32, 48, 56, 64, 96, 128, 160, 192, 224, 256, '64x48', '48x128'])
@pytest.mark.parametrize('name', ['oreilly', 'kdnuggets', 'ranjan', 'recommended'])  # the others have the same layers
def test_networks_from_16_to_256_pixels_have_the_shape_asked_for(name, size):
    _, system = chosen(f'--system {name} --image-size {size} --channels 1 --width 0.05')
    height, width, _ = system.image_shape
    assert f'{height}x{width}' in (size, f'{size}x{size}')
    with tf.Graph().as_default():
        fake = dcgan.generator(system, tf.zeros([2, system.latent_size]))
        assert fake.shape.as_list() == [2, height, width, 1]
        assert dcgan.discriminator(system, fake).shape.as_list() == [2, 1]


@pytest.mark.parametrize('name', ['oreilly', 'kdnuggets'])
def test_networks_that_are_not_square_learn(name):
    _, system = chosen(f'--system {name} --image-size 48x32 --width 0.05 --augment color-translation-cutout')
    with tf.Graph().as_default(), open_session() as session:
        tf.train.get_or_create_global_step()
        images = tf.random.stateless_uniform([4, 48, 32, 3], [0, 0], -0.5)
        losses = dcgan.model_loss(system, images, tf.ones([4, 100])).losses
        gradients = tf.gradients(losses.d_loss + losses.g_loss, tf.trainable_variables())
        session.run(tf.global_variables_initializer())
        assert all(np.isfinite(value).all() and value.any() for value in session.run(gradients))


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ('--image-size 100', '--image-size 100: .* multiples of 16, .* 96$'),
        ('--image-size 50x70', '--image-size 50x70: .* multiples of 8, .* 48x64$'),
        ('--image-size 33 --system kdnuggets', 'multiples of 2, .* 32$'),
    ],
)
def test_a_size_that_the_networks_cannot_have_is_refused_with_one_that_they_can(flags, message):
    with pytest.raises(cli.UserError, match=message):
        chosen(flags)
    fitting = message.split()[-1].rstrip('$')
    chosen(flags.replace(flags.split()[1], fitting))


@pytest.mark.parametrize(
    ('text', 'size'), [('64', 64), ('64x48', '64x48'), ('64x64', 64), ('1024', 1024), ('16x1024', '16x1024')]
)
def test_a_size_is_a_side_or_height_and_width(text, size):
    assert image_size(text) == size


@pytest.mark.parametrize('text', ['', '15', '1025', '64x', 'x64', '64x8', '6x4x3', '-64', '64.0', '64 x 48', '٦٤'])
def test_other_sizes_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match='from 16 to 1024'):
        image_size(text)
