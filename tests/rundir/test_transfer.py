"""What a new run takes of another one, variable by variable."""

import shutil

import numpy as np
import pytest
from conftest import chosen, cut

import dcgan
import train
from common import cli
from graph.replica import Replica
from graph.session import open_session, tf
from rundir import checkpoints
from rundir.run_json import write_run
from rundir.transfer import initial_values
from sampling.generator import PRETRAINED, PRETRAINED_ATTRIBUTES

WIDTH = '--width 0.05'


def random_run(path, flags=''):
    """A run directory with a checkpoint of random values."""
    (path / 'checkpoints').mkdir()
    settings, system = chosen(f'{WIDTH} {flags}')
    combinations = {'combinations': '1' * len(system.attributes)} if system.attributes else {}
    write_run(path, settings, {'images': 1, 'data_digest': ''} | combinations, [])
    model = train.build_graph(settings, Replica())
    with open_session(model.graph) as session:
        rng = np.random.default_rng(0)
        with model.graph.as_default():
            variables = tf.global_variables()
        random = {
            each.initial_value: rng.random(each.shape).astype(each.dtype.base_dtype.as_numpy_dtype)
            for each in variables
        }
        session.run(model.initializer, random)
        checkpoints.write(session, model.saver, path / 'checkpoints' / 'step-7')
    return path


@pytest.fixture(scope='module')
def other(tmp_path_factory):
    """An unconditional run."""
    return random_run(tmp_path_factory.mktemp('other'))


def begin(path, flags, frozen=()) -> dict:
    """The variables, by name, of a run that begins with the weights of another."""
    settings, system = chosen(f'{WIDTH} {flags}')
    model = train.build_graph(settings, Replica())
    values = initial_values(path, model.graph, system, frozen)
    with open_session(model.graph) as session:
        session.run(model.initializer, values)
        with model.graph.as_default():
            return session.run({variable.op.name: variable for variable in tf.global_variables()})


def saved(path):
    return tf.train.NewCheckpointReader(str(checkpoints.find(path)[1].prefix))


def test_both_networks_are_taken_and_the_optimisers_begin_anew(other, capsys):
    variables, values = begin(other, ''), saved(other)
    assert capsys.readouterr().out.endswith('/step-7: generator copied; discriminator copied\n')
    of_networks = {name for name in variables if name.startswith(('generator/', 'discriminator/'))}
    assert any(name.endswith('/ExponentialMovingAverage') for name in of_networks)
    for name in of_networks:
        np.testing.assert_array_equal(variables[name], values.get_tensor(name))
    assert variables['global_step'] == 0
    moments = [value for name, value in variables.items() if '/Adam' in name]
    assert moments and not any(value.any() for value in moments)


def test_a_generator_alone_is_its_own_average(capsys):
    flags = ['--system recommended --width 1 --attributes', *PRETRAINED_ATTRIBUTES]
    variables, values = begin(PRETRAINED, ' '.join(flags)), saved(PRETRAINED)
    assert capsys.readouterr().out.endswith('generator copied; discriminator not copied (not there)\n')
    for name in ('generator/layer1/dense/kernel', 'generator/layer2/batch_norm/gamma'):
        np.testing.assert_array_equal(variables[name], values.get_tensor(name))
        np.testing.assert_array_equal(variables[f'{name}/ExponentialMovingAverage'], values.get_tensor(name))


def test_what_does_not_fit_is_named_and_starts_at_random(other, capsys):
    variables, values = begin(other, '--latent-size 7 --no-discriminator-batch-norm --image-size 32'), saved(other)
    assert capsys.readouterr().out.endswith(
        'generator copied except layer1 (other shape); discriminator copied '
        'except layer2/bias (not there), layer3/bias (not there), layer4 (other shape)\n'
    )
    assert variables['generator/layer1/dense/kernel'].shape[0] == 7
    assert (variables['generator/layer1/batch_norm/gamma'] == 1).all()  # as it would be without another run
    name = 'discriminator/layer3/conv2d/kernel'
    np.testing.assert_array_equal(variables[name], values.get_tensor(name))


WITH_ATTRIBUTES = {
    'generator/layer1/dense/kernel': 0,
    'generator/layer1/dense/kernel/ExponentialMovingAverage': 0,
    'discriminator/layer4/dense/kernel': 1,
    'discriminator/layer4/bias': 0,
}  # and the axis along which each attribute has an entry


def test_a_conditional_network_starts_as_an_unconditional_one(other, capsys):
    variables, values = begin(other, '--attributes Smiling Male Young'), saved(other)
    assert capsys.readouterr().out.endswith('/step-7: generator copied; discriminator copied\n')
    for name, axis in WITH_ATTRIBUTES.items():
        copied, attributes = np.split(variables[name], [-3], axis)
        np.testing.assert_array_equal(copied, values.get_tensor(name))
        assert attributes.shape[axis] == 3 and not attributes.any()


def test_attributes_are_taken_by_name(tmp_path, capsys):
    conditional = random_run(tmp_path, '--attributes Smiling Male Young')
    variables, values = begin(conditional, '--attributes Bangs Young Smiling'), saved(conditional)
    assert capsys.readouterr().out.endswith('/step-7: generator copied; discriminator copied\n')
    for name, axis in WITH_ATTRIBUTES.items():
        others, smiling, _, young = np.split(values.get_tensor(name), [-3, -2, -1], axis)
        expected = np.concatenate([others, np.zeros_like(young), young, smiling], axis)
        np.testing.assert_array_equal(variables[name], expected)

    # An unconditional network leaves them out.
    variables = begin(conditional, '')
    for name, axis in WITH_ATTRIBUTES.items():
        np.testing.assert_array_equal(variables[name], np.split(values.get_tensor(name), [-3], axis)[0])


def test_nothing_that_fits_is_an_error(other):
    with pytest.raises(cli.UserError, match='--init-from: no layer of .*step-7 fits'):
        begin(other, '--width 0.1 --channels 1')


def test_a_layer_that_is_not_taken_cannot_be_frozen(other):
    frozen = ('discriminator/layer1/', 'discriminator/layer2/')
    begin(other, '', frozen)
    with pytest.raises(cli.UserError, match=r'^--freeze-discriminator: .*step-7 .* for layer2/bias \(not there\)$'):
        begin(other, '--no-discriminator-batch-norm', frozen)


def test_a_damaged_checkpoint_is_an_error(other, tmp_path):
    copy = shutil.copytree(other, tmp_path / 'copy')
    (data,) = copy.glob('checkpoints/*.data*')
    cut(data)
    with pytest.raises(cli.UserError, match='damaged: step-7'):
        begin(copy, '')


@pytest.mark.parametrize('flags', ['', '--r1 1 --r1-every 1'])
def test_frozen_layers_of_the_discriminator_stay_as_they_are(flags):
    settings, system = chosen(f'{WIDTH} --freeze-discriminator 2 --init-from x --batch-size 4 {flags}')
    assert dcgan.frozen_scopes(system) == ('discriminator/layer1/', 'discriminator/layer2/')
    model = train.build_graph(settings, Replica())
    with model.graph.as_default(), open_session() as session:
        session.run(model.initializer)
        weights = {variable.op.name: variable for variable in tf.trainable_variables()}
        before = session.run(weights)
        rng = np.random.default_rng(0)
        images, latents = rng.uniform(-0.5, 0.5, (4, 28, 28, 3)), rng.uniform(-1, 1, (4, 100))
        feed = {model.batch: images, model.input_z: latents, model.learning_rate: 2e-4, model.count: 1}
        session.run(model.losses, feed)
        after = session.run(weights)
        moments = {variable.op.name for variable in tf.global_variables() if 'Adam' in variable.op.name}
    same = {name for name in weights if (after[name] == before[name]).all()}
    assert same == {name for name in weights if name.startswith(dcgan.frozen_scopes(system))} and len(same) >= 4
    assert not any('discriminator/layer1/' in name for name in moments)
