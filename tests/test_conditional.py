"""A system with attributes, from the pictures to the faces: red ones and blue ones, in a folder each."""

import itertools
import json

import numpy as np
import pytest
from conftest import assert_one_line, chosen, run_command
from PIL import Image

import evaluate
import helper
from common import cli
from config.settings import parse_arguments
from graph.replica import Replica
from rundir.run_json import read_run
from sampling.generator import draw_faces
from sampling.pictures import LABEL_HEIGHT
from training import run as module
from training.data import load_dataset
from training.run import Run, choose_run, start_run

CLASSES = ('blue', 'red')
COLOURS = {'red': 0, 'blue': 2}  # the channel that is bright


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """A folder with a folder of 30 red and one of 30 blue pictures."""
    folder, rng = tmp_path_factory.mktemp('pictures') / 'pictures', np.random.default_rng(0)
    for number in range(60):
        name = CLASSES[number % 2]
        pixels = rng.integers(0, 100, (4, 4, 3))
        pixels[..., COLOURS[name]] += 155
        (folder / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.astype(np.uint8)).resize((28, 28), Image.Resampling.BICUBIC)
        image.save(folder / name / f'{number:02}.png')
    return folder


@pytest.fixture(scope='module')
def conditional(pictures):
    """The directory of a run with attributes that has learnt the two colours."""
    result = run_command(
        'train.py', '--data', 'pictures', '--attributes', 'red', 'blue', '--run-dir', 'run', '--width', 0.125,
        '--batch-size', 16, '--learning-rate', 2e-3, '--ema', 0.9, '--steps', 120, '--sample-every', 60,
        '--evaluate-every', 120, cwd=pictures.parent,
    )  # fmt: skip
    assert result.returncode == 0 and result.stderr == '', result.stderr
    assert '\nAttributes: red 50%, blue 50%\n' in result.stdout
    return pictures.parent / 'run'


def are(faces, colour):
    """Whether each of the faces, uint8 (N, H, W, 3), has a colour of CLASSES."""
    means = np.mean(faces, axis=(1, 2))
    return means[:, COLOURS[colour]] > means[:, 2 - COLOURS[colour]]


# --- training


@pytest.mark.parametrize('shard', [slice(None), slice(2), slice(2, 4)])
def test_the_generated_faces_of_a_batch_are_asked_for_what_the_real_ones_have(pictures, shard):
    settings, _ = chosen(f'--data {pictures} --data-dir {pictures.parent} --attributes red blue --batch-size 4')
    run = Run(settings | {'hold_out': 'none'}, load_dataset(settings | {'hold_out': 'none'}))
    for indices, latents in itertools.islice(run.batches(0, shard), 3):
        assert latents.shape == (len(indices), 102)
        np.testing.assert_array_equal(latents[:, 100] > 0, are(run.dataset.faces[indices], 'red'))
        np.testing.assert_array_equal(latents[:, 101], -latents[:, 100])


def test_a_run_keeps_how_attributes_occur_together(conditional):
    run = json.loads((conditional / 'run.json').read_text())
    assert run['settings']['attributes'] == ['red', 'blue']
    assert sorted(set(run['combinations'].split())) == ['01', '10']


def test_a_run_goes_on_with_the_same_attributes_only(conditional, pictures, tmp_path):
    def resume(*flags):
        args = parse_arguments(['--resume', '--run-dir', str(conditional), '--steps', '130', *flags])
        with start_run(args, Replica()) as run:
            return run

    assert resume().system.combinations == tuple(read_run(conditional)['combinations'].split())
    with pytest.raises(cli.UserError, match='--attributes is .* in this run'):
        resume('--attributes', 'red')
    names = [f'{path.parent.name}/{path.name}' for path in pictures.rglob('*.png')]
    rows = ['file,blue,red', *(f'{name},{int("red" in name)},{int("blue" in name)}' for name in names)]
    (tmp_path / 'swapped.csv').write_text('\n'.join(rows))
    with pytest.raises(cli.UserError, match='differ from when this run started; check --attribute-table'):
        resume('--attribute-table', str(tmp_path / 'swapped.csv'))


@pytest.mark.parametrize('combinations', ['', '1', '10 1', '10 1x', 5])
def test_a_run_json_without_proper_combinations_is_damaged(conditional, tmp_path, combinations):
    run = json.loads((conditional / 'run.json').read_text())
    (tmp_path / 'run.json').write_text(json.dumps(run | {'combinations': combinations}))
    with pytest.raises(cli.UserError, match='run.json is damaged'):
        read_run(tmp_path)


def test_nothing_is_known_about_the_demo_faces():
    with pytest.raises(cli.UserError, match='--attributes: the demo faces have no attribute labels'):
        choose_run(parse_arguments(['--data', 'demo', '--attributes', 'Male']))


def test_the_table_of_celeb_a_is_downloaded_before_the_archive(tmp_path, monkeypatch):
    def download_attributes(data_dir):
        raise cli.UserError(f'the table is downloaded into {data_dir}')

    monkeypatch.setattr(module.helper, 'download_attributes', download_attributes)
    settings, _ = chosen(f'--data-dir {tmp_path} --attributes Male --hold-out none')
    with pytest.raises(cli.UserError, match=f'downloaded into {tmp_path}'):
        load_dataset(settings)
    (tmp_path / 'list_attr_celeba.txt').write_text('Young\n')
    with pytest.raises(OSError, match='has no attribute Male: it has Young'):
        load_dataset(settings)


def test_a_table_that_lacks_pictures_is_an_error(pictures, tmp_path):
    (tmp_path / 'table.csv').write_text('file,red\n')
    flags = f'--data {pictures} --data-dir {pictures.parent} --attributes red --attribute-table {tmp_path}/table.csv'
    with pytest.raises(OSError, match="table.csv lacks 60 of 60 images, first 'blue/00.png'"):
        load_dataset(chosen(flags)[0] | {'hold_out': 'none'})


# --- drawing


def test_faces_have_what_is_asked_for(conditional):
    for colour in CLASSES:
        for wanted in ({colour: True}, {next(name for name in CLASSES if name != colour): False}):
            (faces,) = draw_faces(conditional, 40, seed=0, wanted=wanted)
            assert are(faces, colour).all()
    (faces,) = draw_faces(conditional, 40, seed=0)
    assert 0 < are(faces, 'red').sum() < 40


def test_a_conditional_run_draws_the_faces_of_its_last_grid(conditional):
    (faces,) = draw_faces(conditional, 64, seed=0)
    grid = Image.open(conditional / 'samples' / 'step-00000120.png')
    np.testing.assert_allclose(helper.images_square_grid(faces), np.asarray(grid), atol=1)


def test_a_grid_shows_each_latent_with_each_attribute(conditional, tmp_path):
    flags = '--checkpoint', conditional, '--attribute-grid', 5, '--without', 'red', '--scale', 4
    result = run_command('generate.py', *flags, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == '' and 'faces/attributes.png' in result.stdout
    grid = np.asarray(Image.open(tmp_path / 'faces' / 'attributes.png'))
    height = 28 * 4 + LABEL_HEIGHT
    assert grid.shape == (5 * height, 3 * 28 * 4, 3)
    cells = grid.reshape(5, height, 3, 28 * 4, 3).swapaxes(1, 2)[:, :, :-LABEL_HEIGHT]
    drawn, red, blue = cells.swapaxes(0, 1)
    np.testing.assert_array_equal(drawn, blue)  # without red
    assert are(red, 'red').all() and are(blue, 'blue').all()


def test_an_exported_generator_can_be_asked_too(conditional, tmp_path):
    result = run_command('generate.py', '--checkpoint', conditional, '--export', 'mine', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (faces,) = draw_faces(tmp_path / 'mine', 5, seed=0, wanted={'red': True})
    assert are(faces, 'red').all()


def test_a_conditional_run_is_evaluated_without_its_attributes(conditional, pictures, tmp_path, monkeypatch):
    flat = tmp_path / 'flat'
    flat.mkdir()
    for number, path in enumerate(sorted(pictures.rglob('*.png'))):
        (flat / f'{number:02}.png').write_bytes(path.read_bytes())
    arguments = [conditional, '--data', flat, '--data-dir', tmp_path, '--out', tmp_path / 'evaluation']
    monkeypatch.setattr('sys.argv', ['evaluate.py', *map(str, arguments)])
    evaluate.main()
    results = json.loads((tmp_path / 'evaluation' / 'evaluation.json').read_text())
    assert results['trained_on_these'] and results['faces']['drawn'] == 6


@pytest.mark.parametrize(
    ('flags', 'parts'),
    [
        (('--with', 'green'), ('unknown attribute green', 'trained with red, blue')),
        (('--attribute-grid', 3, '--count', 4), ('--count has no effect with --attribute-grid',)),
    ],
)
def test_what_cannot_be_asked_for_is_an_error_of_one_line(conditional, tmp_path, flags, parts):
    result = run_command('generate.py', '--checkpoint', conditional, *flags, cwd=tmp_path)
    assert_one_line(result, *parts)
    assert not (tmp_path / 'faces').exists()


def test_latents_from_files_get_the_attributes_that_are_asked_for(conditional, tmp_path):
    def faces(*flags):
        flags = '--checkpoint', conditional, '--format', 'npz', *flags
        assert run_command('generate.py', *flags, cwd=tmp_path).returncode == 0
        with np.load(tmp_path / flags[-1] / 'faces.npz') as arrays:
            return arrays['arr_0']

    drawn = faces('--count', 8, '--out', 'drawn')
    again = faces('--latents', 'drawn/latents.npy', '--out', 'again')
    np.testing.assert_array_equal(again, drawn)
    for colour, other in zip(CLASSES, CLASSES[::-1], strict=True):
        assert are(faces('--latents', 'drawn/latents.npy', '--with', colour, '--out', colour), colour).all()
        latents = np.load(tmp_path / colour / 'latents.npy')
        np.testing.assert_array_equal(latents[:, -2:], [[1, -1] if colour == 'red' else [-1, 1]] * 8)  # red, then blue
        np.testing.assert_array_equal(latents[:, :-2], np.load(tmp_path / 'drawn' / 'latents.npy')[:, :-2])
        without = '--latents', 'drawn/latents.npy', '--without', other, '--truncate', 0.5, '--out', f'not {other}'
        assert len(faces(*without)) == 8
        latents = np.load(tmp_path / f'not {other}' / 'latents.npy')
        assert (latents[:, -1 if other == 'blue' else -2] == -1).all() and np.abs(latents[:, :-2]).max() <= 0.5
