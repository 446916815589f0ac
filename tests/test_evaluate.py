import json
import shutil

import numpy as np
import pytest
from conftest import assert_one_line, encode, run_command
from PIL import Image

import evaluate
import helper
from sampling import demo
from sampling.generator import draw_faces
from sampling.pictures import LABEL_HEIGHT

NEAR = 'nearer than 1% of real faces, %'


def smooth(count, seed):
    """Images (count, 28, 28, 3) of colours that blend into one another."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    return np.array([Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC) for image in small])


def save_images(folder, count):
    folder.mkdir()
    for index, image in enumerate(smooth(count, seed=0)):
        (folder / f'{index:02}.png').write_bytes(encode(image))


@pytest.fixture(scope='module')
def evaluated(trained, pictures, tmp_path_factory):
    """What `evaluate.py` printed about a short run, and the folder that it wrote."""
    folder = tmp_path_factory.mktemp('evaluated')
    result = run_command('evaluate.py', trained, '--data', pictures, cwd=folder)
    assert result.returncode == 0 and result.stderr == (
        f'Warning: only 4 of the 44 faces of {pictures} are held out: the measures depend mostly on chance\n'
    )
    return result.stdout, folder / 'evaluation'


# --- measures


def test_copies_of_training_faces_are_detected(monkeypatch):
    monkeypatch.setattr(evaluate, 'swd', lambda *_: {})  # only distances to training faces are of interest here
    monkeypatch.setattr(evaluate, 'mean_ms_ssim', lambda *_: 0.0)
    faces = smooth(300, seed=0)
    dataset = helper.Dataset(faces)
    training, held_out = dataset.training, dataset.held_out
    honest, _ = evaluate.measure(smooth(30, seed=1), faces, training, held_out)
    copied = np.random.default_rng(2).permutation(training)[:30]
    copies = (faces[copied] + np.random.default_rng(3).integers(-3, 4, (30, 28, 28, 3))).clip(0, 255).astype(np.uint8)
    memorised, neighbours = evaluate.measure(copies, faces, training, held_out)
    assert honest[NEAR]['drawn'] < 10 and memorised[NEAR]['drawn'] == 100
    assert neighbours['drawn'][0].tolist() == copied.tolist()
    assert memorised['distance to a training face, median']['drawn'] < 2
    assert honest['distance to a training face, median']['drawn'] > 10
    for measures in (honest, memorised):  # 1 of 30 held-out faces is below their first percentile
        np.testing.assert_allclose(measures[NEAR]['real'], 100 / 30)


def test_noise_and_sameness_are_distinguished_from_faces():
    faces = smooth(400, seed=0)
    dataset = helper.Dataset(faces)
    same = smooth(1, seed=1).repeat(40, axis=0)
    measures, _ = evaluate.measure(same, faces, dataset.training, dataset.held_out)
    fine, coarse = (measures[f'SWD x1000, {side}x{side}'] for side in (28, 14))
    assert 2 * fine['real'] < min(fine['drawn'], fine['noise']) and 2 * coarse['real'] < coarse['drawn']
    similarity = measures['MS-SSIM of pairs']
    assert similarity['drawn'] > 0.999 and similarity['noise'] < 0.1 < similarity['real'] < 0.9


# --- results


def test_the_table_has_the_values_of_the_file(evaluated):
    stdout, out = evaluated
    assert sorted(path.name for path in out.iterdir()) == ['distances.png', 'evaluation.json', 'neighbours.png']
    results = json.loads((out / 'evaluation.json').read_text())
    assert (results['run'], results['checkpoint'], results['step']) == ('run', 'step-10', 10)
    assert results['trained_on_these'] and (results['seed'], results['truncate']) == (0, 1)
    assert results['faces'] == {'drawn': 4, 'trained on': 40, 'held out': 4}
    assert 'Data: 40 to train on, 4 held out' in stdout and 'Faces: 4 drawn' in stdout
    assert 'evaluation' in stdout.splitlines()[-1]
    header = [line.split() for line in stdout.splitlines()].index(['drawn', 'real', 'noise'])
    rows = stdout.splitlines()[header + 1 :][: len(results['measures'])]
    assert len(rows) == 9 and len({len(row) for row in rows}) == 1  # aligned
    for row, (name, values) in zip(rows, results['measures'].items(), strict=True):
        assert row.startswith(name)
        np.testing.assert_allclose([float(cell) for cell in row[len(name) :].split()], list(values.values()), atol=6e-4)


def test_each_generated_face_is_beside_a_training_face(evaluated, trained, pictures, tmp_path):
    _, out = evaluated
    with Image.open(out / 'distances.png') as plot:
        assert plot.size == (840, 480)
    dataset = helper.Dataset(helper.load_faces(pictures, 28, tmp_path).faces)
    (generated,) = draw_faces(trained, 4, seed=0)
    picture = np.asarray(Image.open(out / 'neighbours.png'))
    scale = 4
    height, width = 28 * scale + LABEL_HEIGHT, (28 + 28 + 2) * scale
    assert picture.shape == (2 * (LABEL_HEIGHT + height), 4 * width, 3)
    for index in range(4):
        columns = slice(index * width, (index + 1) * width)
        pair = picture[LABEL_HEIGHT : LABEL_HEIGHT + 28 * scale, columns][::scale, ::scale]
        np.testing.assert_array_equal(pair[:, :28], generated[index])
        assert any((pair[:, 28:56] == face).all() for face in dataset.faces[dataset.training])


def test_a_warning_says_when_the_data_are_not_those_of_the_training(trained, tmp_path):
    save_images(tmp_path / 'others', 20)
    (tmp_path / 'evaluation').mkdir()
    (tmp_path / 'evaluation' / 'mine.txt').write_text('mine')
    checkpoint = trained / 'checkpoints' / 'step-6'
    flags = '--data', 'others', '--seed', 5, '--truncate', 0.5
    result = run_command('evaluate.py', checkpoint, *flags, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr.count('\n') == 2
    assert 'others is not the data set of this run' in result.stderr
    results = json.loads((tmp_path / 'evaluation-2' / 'evaluation.json').read_text())
    assert (results['step'], results['seed'], results['truncate']) == (6, 5, 0.5)
    assert not results['trained_on_these'] and results['faces']['held out'] == 2
    assert [path.name for path in (tmp_path / 'evaluation').iterdir()] == ['mine.txt']


@pytest.mark.parametrize(('held_out', 'share'), [('none', 'all'), ('people', 'most')])
def test_a_warning_says_when_the_training_held_out_nothing_or_people_that_are_not_known_here(
    trained, pictures, tmp_path, monkeypatch, capsys, held_out, share
):
    run = json.loads((trained / 'run.json').read_text())
    shutil.copytree(trained, tmp_path / 'run')
    run['settings']['hold_out'] = held_out
    (tmp_path / 'run' / 'run.json').write_text(json.dumps(run))
    arguments = [tmp_path / 'run', '--data', pictures, '--data-dir', tmp_path, '--out', tmp_path / 'evaluation']
    monkeypatch.setattr('sys.argv', ['evaluate.py', *map(str, arguments)])
    evaluate.main()
    assert f'this run was trained on {share} of the held-out faces' in capsys.readouterr().err
    assert json.loads((tmp_path / 'evaluation' / 'evaluation.json').read_text())['hold_out'] == 'images'


def test_the_pretrained_generator_is_not_compared_with_its_own_demo_faces(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, 'DEMO_FACES', 400)
    out = tmp_path / 'evaluation'
    monkeypatch.setattr('sys.argv', ['evaluate.py', '--data', 'demo', '--data-dir', str(tmp_path), '--out', str(out)])
    evaluate.main()
    assert 'a pretrained generator drew these faces' in capsys.readouterr().err
    measures = json.loads((out / 'evaluation.json').read_text())['measures']
    assert measures[NEAR]['drawn'] < 30 and measures['distance to a training face, 5 %']['drawn'] > 1


# --- errors


@pytest.mark.parametrize(
    ('arguments', 'parts'),
    [
        (('nowhere', '--data', 'demo'), ('nowhere', 'no such run')),
        ((), ('--data',)),
        (('--data', ''), ('--data: the path is empty',)),
        (('--data', 'nothing.zip'), ('nothing.zip',)),
        (('--data', 'broken.zip'), ('broken.zip', 'neither a folder nor a')),
        (('--data', 'few'), ('few are held out', '1 of the 19 faces of', 'at least 2 are needed')),
        (('--data', 'few', '--out', 'few'), ('few is not empty', '--out')),
        (('--data', 'few', '--truncate', '0'), ('--truncate',)),
    ],
)
def test_what_cannot_be_evaluated_is_an_error_of_one_line(tmp_path, arguments, parts):
    (tmp_path / 'broken.zip').write_bytes(b'no zip')
    save_images(tmp_path / 'few', 19)
    result = run_command('evaluate.py', *arguments, cwd=tmp_path)
    assert_one_line(result, *parts)
    assert result.stdout == '' and not (tmp_path / 'evaluation').exists()


def test_a_folder_that_cannot_be_written_is_an_error_before_the_work_begins(tmp_path, monkeypatch):
    def load(*_):
        raise AssertionError('data were loaded')

    (tmp_path / 'file').write_text('')
    out = tmp_path / 'file' / 'evaluation'
    monkeypatch.setattr('sys.argv', ['evaluate.py', '--data', 'demo', '--out', str(out)])
    monkeypatch.setattr(evaluate, 'load_dataset', load)
    with pytest.raises(OSError, match=str(out)):
        evaluate.main()
