import errno
import json
import re
import shutil
import sys

import forkserver
import numpy as np
import pytest
from conftest import ROOT, chosen, run_command
from PIL import Image

import dcgan
from common.cli import UserError
from config.settings import read_settings
from export import formats
from export.formats import export_generator
from graph.session import open_session, tensorflow, tf
from helper import to_uint8
from rundir import checkpoints
from rundir.run_json import write_run
from sampling.generator import PRETRAINED, draw_faces, restored_generator
from sampling.latents import sample_latents

PAGE = (ROOT / 'docs' / 'formats.md').read_text()
PROGRAMS = dict(re.findall(r'^## (\w+)$.*?^```python\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
# The headings of the programs, and the values of --format.
MODELS = {'SavedModel': 'saved_model', 'TFLite': 'tflite', 'ONNX': 'onnx'}
HEADINGS = MODELS | {'Keras': 'saved_model', 'PyTorch': 'checkpoint'}


def faces_of(checkpoint, count=5):
    return np.concatenate(list(draw_faces(checkpoint, count, 0)))


def skip_without_converter(format):
    if format == 'onnx':
        pytest.importorskip('tf2onnx')
        pytest.importorskip('onnxruntime')


@pytest.fixture
def untrained(tmp_path):
    """Makes run directories of narrow generators whose weights are random, large enough for faces full of contrast."""

    def make(flags):
        settings, system = chosen(f'{flags} --width 0.0625 --weight-stddev 0.2')
        run = tmp_path / 'run'
        (run / 'checkpoints').mkdir(parents=True)
        write_run(run, settings, {'images': 1, 'data_digest': ''}, [])
        with tf.Graph().as_default(), open_session() as session:
            tf.set_random_seed(0)
            dcgan.generator(system, tf.placeholder(tf.float32, [None, system.latent_size]), training=False)
            session.run(tf.global_variables_initializer())
            checkpoints.write(session, tf.train.Saver(), run / 'checkpoints' / 'step-1')
        return run

    return make


# --- models


@pytest.mark.parametrize('heading', HEADINGS)
def test_the_documented_program_draws_the_ten_faces(heading, tmp_path):
    skip_without_converter(HEADINGS[heading])
    if heading == 'PyTorch':
        pytest.importorskip('torch')
    run_command('generate.py', cwd=tmp_path).check_returncode()
    result = run_command('generate.py', '--export', 'mine', '--format', HEADINGS[heading], cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == '' and result.stdout == 'The generator: mine\n'
    forkserver.run(['-c', PROGRAMS[heading]], cwd=tmp_path).check_returncode()
    drawn = np.asarray(Image.open(tmp_path / 'faces.png')).astype(int)
    np.testing.assert_allclose(drawn, np.hstack(faces_of(PRETRAINED, 10)), atol=0 if heading == 'Keras' else 1)


def load(format, folder):
    """The function of a model: from latents to faces."""
    if format == 'saved_model':
        signature = tensorflow.saved_model.load(str(folder)).signatures['serving_default']
        return lambda latents: signature(latents=tf.constant(latents))['faces'].numpy()
    if format == 'tflite':
        interpreter = pytest.importorskip('ai_edge_litert.interpreter').Interpreter(str(folder / 'generator.tflite'))
        runner = interpreter.get_signature_runner()
        return lambda latents: runner(latents=latents)['faces']
    session = pytest.importorskip('onnxruntime').InferenceSession(folder / 'generator.onnx')
    return lambda latents: session.run(['faces'], {'latents': latents})[0]


@pytest.mark.parametrize('format', MODELS.values())
@pytest.mark.parametrize(
    'flags', ['--latent-size 7', '--image-size 24x40 --channels 1', '--system ranjan', '--system kdnuggets']
)
def test_a_model_of_any_system_draws_any_number_of_faces(flags, format, untrained, tmp_path):
    skip_without_converter(format)
    run = untrained(flags)
    export_generator(run, tmp_path / 'mine', format)
    with restored_generator(run) as generator:
        latents = sample_latents(generator.system, np.random.default_rng(0), 16)
        faces = to_uint8(generator.session.run(generator.images, {generator.z: latents}), (-1, 1))
    assert faces.std(axis=0).mean() > 20
    model = load(format, tmp_path / 'mine')
    for count in (1, 16, 3):
        drawn = model(latents[:count])
        assert drawn.dtype == np.uint8 and drawn.shape == faces[:count].shape
        np.testing.assert_allclose(drawn.astype(int), faces[:count], atol=1)


def test_a_saved_model_has_what_tensorflow_serving_asks_for(untrained, tmp_path):
    export_generator(untrained(''), tmp_path / 'mine', 'saved_model')
    with tf.Graph().as_default(), open_session() as session:
        signature = tf.saved_model.load(session, ['serve'], str(tmp_path / 'mine')).signature_def['serving_default']
    assert signature.method_name == 'tensorflow/serving/predict'
    described = {
        name: (info.dtype, [dim.size for dim in info.tensor_shape.dim])
        for name, info in (*signature.inputs.items(), *signature.outputs.items())
    }
    assert described == {'latents': (tf.float32, [-1, 100]), 'faces': (tf.uint8, [-1, 28, 28, 3])}


def test_without_its_converter_onnx_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tf2onnx', None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, 'tf2onnx.convert', raising=False)
    with pytest.raises(UserError, match='tf2onnx.*; pip install "tf2onnx'):
        export_generator(PRETRAINED, tmp_path / 'mine', 'onnx')
    assert list(tmp_path.iterdir()) == []


# --- checkpoints


def test_an_exported_generator_draws_the_same_faces_wherever_it_is_moved(tmp_path):
    export_generator(PRETRAINED, tmp_path / 'new' / 'first')
    (tmp_path / 'new' / 'first').rename(tmp_path / 'moved')
    prefix = checkpoints.find(PRETRAINED)[1].prefix.name
    assert {path.name for path in (tmp_path / 'moved').rglob('*')} == {
        f'{prefix}.data-00000-of-00001', f'{prefix}.index', 'checkpoints', 'run.json',
    }  # fmt: skip
    np.testing.assert_array_equal(faces_of(tmp_path / 'moved'), faces_of(PRETRAINED))


def test_an_export_says_what_it_was_trained_on_but_not_where_that_is(tmp_path):
    copy = shutil.copytree(PRETRAINED, tmp_path / 'copy')
    run = json.loads((copy / 'run.json').read_text())
    run['settings'] |= {'data': '/home/me/pictures.zip', 'data_dir': '/home/me/data'}
    (copy / 'run.json').write_text(json.dumps(run))
    export_generator(copy, tmp_path / 'mine')
    exported = json.loads((tmp_path / 'mine' / 'run.json').read_text())
    run['settings'] = read_settings(run['settings']) | {'data': 'pictures.zip', 'data_dir': 'data'}
    assert exported == run | {'changes': []}


# --- whatever the format


@pytest.mark.parametrize('format', formats.FORMATS)
def test_an_export_overwrites_nothing(format, tmp_path):
    with pytest.raises(UserError, match=f'{tmp_path} already exists'):
        export_generator(PRETRAINED, tmp_path, format)
    assert list(tmp_path.iterdir()) == []


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, 'No space left on device')


def no_space_for_copies(*_, **__):
    raise shutil.Error([('from', 'to', 'No space left on device')])


def no_space_for_tensorflow(*_, **__):
    raise tf.errors.ResourceExhaustedError(None, None, 'No space left on device')


@pytest.mark.parametrize(
    ('format', 'module', 'function', 'fail'),
    [
        ('checkpoint', json, 'dumps', no_space),
        ('checkpoint', checkpoints, 'write', no_space_for_tensorflow),
        ('saved_model', shutil, 'copytree', no_space_for_copies),
    ],
)
def test_an_export_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, format, module, function, fail):
    monkeypatch.setattr(module, function, fail)
    with pytest.raises(OSError if fail is no_space else UserError, match='mine'):
        export_generator(PRETRAINED, tmp_path / 'mine', format)
    assert list(tmp_path.iterdir()) == []
