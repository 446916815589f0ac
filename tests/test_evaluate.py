import json

import numpy as np
import pytest
from conftest import assert_one_line, encode, run_command
from PIL import Image

import evaluate
import generate
import helper

NEAR = 'nearer than 1% of real faces, %'


def smooth(count, seed):
    """Images (count, 28, 28, 3) of colours that run into one another."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.array([Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC) for image in small])


@pytest.fixture(scope='module')
def evaluated(trained, pictures, tmp_path_factory):
    """What `evaluate.py` said of a short run, and the folder that it wrote."""
    folder = tmp_path_factory.mktemp('evaluated')
    result = run_command('evaluate.py', trained, '--data', pictures, cwd=folder)
    assert result.returncode == 0 and result.stderr == '', result.stderr
    return result.stdout, folder / 'evaluation'


def test_copies_of_training_faces_are_found_out():
    faces = smooth(300, seed=0)
    trained, held_out = helper.split(len(faces))
    honest, neighbours = evaluate.measure(smooth(30, seed=1), faces, trained, held_out)
    copied = np.random.default_rng(2).permutation(trained)[:30]
    copies = (faces[copied] + np.random.default_rng(3).integers(-3, 4, (30, 28, 28, 3))).clip(0, 255).astype(np.uint8)
    memorised, of_copies = evaluate.measure(copies, faces, trained, held_out)
    assert honest[NEAR]['drawn'] < 10 and memorised[NEAR]['drawn'] == 100
    assert of_copies['drawn'][0].tolist() == copied.tolist()
    assert memorised['distance to a training face, median']['drawn'] < 2
    assert honest['distance to a training face, median']['drawn'] > 10
    for measures in (honest, memorised):  # 1 of 30 held out is below what 1 % of them are
        np.testing.assert_allclose(measures[NEAR]['real'], 100 / 30)


def test_noise_and_sameness_are_told_from_faces():
    faces = smooth(400, seed=0)
    trained, held_out = helper.split(len(faces))
    measures, _ = evaluate.measure(smooth(1, seed=1).repeat(40, axis=0), faces, trained, held_out)
    fine, coarse = (measures[f'SWD x1000, {side}x{side}'] for side in (28, 14))
    assert 2 * fine['real'] < min(fine['drawn'], fine['noise']) and 2 * coarse['real'] < coarse['drawn']
    alike = measures['MS-SSIM of pairs']
    assert alike['drawn'] > 0.999 and alike['noise'] < 0.1 < alike['real'] < 0.9


def test_a_sample_is_always_the_same_and_whole_where_it_can_be():
    numbers = np.arange(5, 100)
    some = helper.sample(numbers, 20)
    assert len(set(some)) == 20 and set(some) <= set(numbers) and (np.diff(some) > 0).all()
    np.testing.assert_array_equal(some, helper.sample(numbers, 20))
    np.testing.assert_array_equal(helper.sample(numbers, 1000), numbers)


def test_the_table_has_the_numbers_of_the_file(evaluated):
    stdout, out = evaluated
    assert sorted(path.name for path in out.iterdir()) == ['distances.png', 'evaluation.json', 'neighbours.png']
    results = json.loads((out / 'evaluation.json').read_text())
    assert (results['run'], results['checkpoint'], results['step']) == ('run', 'step-10', 10)
    assert results['trained_on_these'] and (results['seed'], results['truncate']) == (0, 1)
    assert results['faces'] == {'drawn': 4, 'trained on': 40, 'held out': 4}
    assert 'Faces: 4 drawn, 40 trained on, 4 of 4 held out' in stdout and 'evaluation' in stdout.splitlines()[-1]
    header = [line.split() for line in stdout.splitlines()].index(['drawn', 'real', 'noise'])
    rows = stdout.splitlines()[header + 1 :][: len(results['measures'])]
    assert len(rows) == 6 and len({len(row) for row in rows}) == 1  # aligned
    for row, (name, values) in zip(rows, results['measures'].items(), strict=True):
        assert row.startswith(name)
        np.testing.assert_allclose([float(cell) for cell in row[len(name) :].split()], list(values.values()), atol=6e-4)


def test_each_drawn_face_is_beside_a_training_face(evaluated, trained, pictures, tmp_path):
    _, out = evaluated
    with Image.open(out / 'distances.png') as plot:
        assert plot.size == (840, 480)
    faces = helper.load_faces(pictures, 28, tmp_path)
    on, _ = helper.split(len(faces))
    (drawn,) = generate.draw_faces(trained, 4, seed=0)
    picture = np.asarray(Image.open(out / 'neighbours.png'))
    scale, label = 4, generate.LABEL_HEIGHT
    height, width = 28 * scale + label, (28 + 28 + 2) * scale
    assert picture.shape == (2 * (label + height), 4 * width, 3)
    for number in range(4):
        pair = picture[label : label + 28 * scale, number * width : (number + 1) * width][::scale, ::scale]
        np.testing.assert_array_equal(pair[:, :28], drawn[number])
        assert any((pair[:, 28:56] == face).all() for face in faces[on])


def test_other_faces_are_said_not_to_be_those_of_the_training(trained, tmp_path):
    (tmp_path / 'others').mkdir()
    for number, image in enumerate(smooth(20, seed=0)):
        (tmp_path / 'others' / f'{number:02}.png').write_bytes(encode(image))
    (tmp_path / 'evaluation').mkdir()
    (tmp_path / 'evaluation' / 'mine.txt').write_text('mine')
    checkpoint = trained / 'checkpoints' / 'step-6'
    flags = '--data', 'others', '--seed', 5, '--truncate', 0.5
    result = run_command('evaluate.py', checkpoint, *flags, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr.count('\n') == 1
    assert 'not hold the faces it was trained on; held-out is then not known to be unseen' in result.stderr
    results = json.loads((tmp_path / 'evaluation-2' / 'evaluation.json').read_text())
    assert (results['step'], results['seed'], results['truncate']) == (6, 5, 0.5)
    assert not results['trained_on_these'] and results['faces']['held out'] == 2
    assert [path.name for path in (tmp_path / 'evaluation').iterdir()] == ['mine.txt']


@pytest.mark.parametrize(
    ('arguments', 'parts'),
    [
        (('nowhere', '--data', 'demo'), ('nowhere', 'no such run')),
        ((), ('--data',)),
        (('--data', ''), ('--data is empty',)),
        (('--data', 'nothing.zip'), ('nothing.zip',)),
        (('--data', 'broken.zip'), ('broken.zip', 'neither a folder nor a zip')),
        (('--data', 'few'), ('few holds 19 faces', '20 are needed')),
        (('--data', 'few', '--out', 'few'), ('few is not empty', '--out')),
        (('--data', 'few', '--truncate', '0'), ('--truncate',)),
    ],
)
def test_what_cannot_be_evaluated_ends_in_one_line(tmp_path, arguments, parts):
    (tmp_path / 'broken.zip').write_bytes(b'no zip')
    (tmp_path / 'few').mkdir()
    for number, image in enumerate(smooth(19, seed=0)):
        (tmp_path / 'few' / f'{number}.png').write_bytes(encode(image))
    result = run_command('evaluate.py', *arguments, cwd=tmp_path)
    assert_one_line(result, *parts)
    assert result.stdout == '' and not (tmp_path / 'evaluation').exists()
