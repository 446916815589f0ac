import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, cut, flip_bit

from common import cli
from config.settings import NEWEST
from graph.session import tf
from rundir import checkpoints
from rundir.checkpoints import Checkpoint

FOLDERS = 'checkpoints', 'samples'


@pytest.fixture
def run_dir(tmp_path):
    """A run directory that is empty but for its folders and the head of its log."""
    for folder in FOLDERS:
        (tmp_path / folder).mkdir()
    (tmp_path / 'log.csv').write_text('step,swd\n')
    return tmp_path


def touch(run_dir, *names):
    """Make the files of checkpoints without any content."""
    for name in names:
        for suffix in ('index', 'data-00000-of-00001'):
            (run_dir / 'checkpoints' / f'{name}.{suffix}').touch()


def names_at(path):
    """The names of the checkpoints that a path means."""
    run_dir, candidates = checkpoints.locate(path)
    assert all(checkpoint.prefix.parent == run_dir / 'checkpoints' for checkpoint in candidates)
    return [checkpoint.prefix.name for checkpoint in candidates]


def found(run_dir):
    return [checkpoint.prefix.name for checkpoint in checkpoints.find_all(run_dir)]


# --- found


def test_checkpoints_are_found_in_the_order_of_their_steps(run_dir):
    touch(run_dir, 'step-10', 'step-9', 'keep-9', 'best-2')
    (run_dir / 'checkpoints' / 'step-11.data-00000-of-00001').touch()  # without an index it is none
    (run_dir / 'checkpoints' / 'notes.index').touch()
    assert found(run_dir) == ['best-2', 'keep-9', 'step-9', 'step-10']
    first, *_, last = checkpoints.find_all(run_dir)
    assert (first.prefix.name, first.step) == ('best-2', 2)
    assert [path.name for path in last.files()] == ['step-10.index', 'step-10.data-00000-of-00001']


def test_the_files_of_a_checkpoint_are_not_those_of_a_step_that_begins_alike(run_dir):
    touch(run_dir, 'step-1', 'step-10')
    assert len(Checkpoint(1, run_dir / 'checkpoints' / 'step-1').files()) == 2


def test_a_directory_means_its_best_checkpoint_or_else_the_newest(run_dir):
    with pytest.raises(cli.UserError, match='has no checkpoint'):
        checkpoints.locate(run_dir)
    touch(run_dir, 'step-9', 'keep-10')
    assert names_at(run_dir) == ['keep-10', 'step-9']
    touch(run_dir, 'best-3', 'best-5')
    assert names_at(run_dir) == ['best-5', 'best-3', 'keep-10', 'step-9']
    assert checkpoints.find_best(run_dir) == checkpoints.locate(run_dir)[1][0]
    assert names_at(run_dir / 'checkpoints') == names_at(run_dir / 'samples') == names_at(run_dir)


@pytest.mark.parametrize(
    'name',
    [
        'checkpoints/keep-10', 'checkpoints/keep-10.index', 'checkpoints/keep-10.data-00000-of-00001',
        'samples/step-00000010.png',
    ],
)  # fmt: skip
def test_a_checkpoint_is_meant_by_its_prefix_its_files_or_its_samples(run_dir, monkeypatch, name):
    touch(run_dir, 'step-9', 'keep-10', 'best-3', 'step-100')
    assert names_at(run_dir / name) == ['keep-10']
    monkeypatch.chdir(run_dir)
    assert names_at(Path(name)) == ['keep-10']


@pytest.mark.parametrize('name', ['nowhere', 'checkpoints/step-8', 'log.csv', 'samples/step-00000008.png'])
def test_a_path_that_is_neither_is_an_error(run_dir, name):
    touch(run_dir, 'step-9')
    with pytest.raises(cli.UserError, match=f'{name}: no such run directory or checkpoint'):
        checkpoints.locate(run_dir / name)


def test_the_distance_of_the_best_checkpoint_is_that_of_the_log(run_dir):
    assert checkpoints.best_distance(run_dir) == math.inf
    (run_dir / 'log.csv').write_text('step,swd\n2,9.5\n3,\n4,1.25\n')
    touch(run_dir, 'step-4')
    assert checkpoints.best_distance(run_dir) == math.inf  # step 4 went the way of other checkpoints
    touch(run_dir, 'best-2')
    assert checkpoints.best_distance(run_dir) == 9.5
    touch(run_dir, 'best-3')
    assert checkpoints.best_distance(run_dir) == math.inf


# --- damaged


DAMAGES = {
    f'{damage.__name__} {suffix}': (damage, suffix)
    for damage in (cut, flip_bit, type(ROOT).unlink)
    for suffix in ('data-00000-of-00001', 'index')
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(copy, capsys, damage):
    spoil, suffix = DAMAGES[damage]
    for name in ('step-10', 'keep-10'):
        spoil(copy / 'checkpoints' / f'{name}.{suffix}')
    assert checkpoints.find_to_resume(copy, NEWEST) == Checkpoint(9, copy / 'checkpoints' / 'step-9')
    if damage != 'unlink index':  # then there is no such checkpoint any more
        out = capsys.readouterr().out
        assert 'step-10 is damaged, falling back to keep-10\n' in out and 'keep-10 is damaged, falling back' in out
    assert checkpoints.find(copy)[1].prefix.name == 'step-9'  # for drawing, too
    with pytest.raises(cli.UserError, match='no checkpoint of step 10|no intact checkpoint; damaged: step-10, keep-10'):
        checkpoints.find_to_resume(copy, 10)


def test_a_checkpoint_of_a_step_is_found_among_all_kinds(copy):
    assert checkpoints.find_to_resume(copy, NEWEST).prefix.name == 'step-10'
    assert checkpoints.find_to_resume(copy, 5).prefix.name == 'keep-5'
    with pytest.raises(cli.UserError, match='no checkpoint of step 7, only of 5, 6, 9, 10'):
        checkpoints.find_to_resume(copy, 7)


def test_a_run_without_any_checkpoint_starts_from_the_beginning(run_dir, capsys):
    assert checkpoints.find_to_resume(run_dir, NEWEST) is None
    assert 'no checkpoint yet: starting from the beginning' in capsys.readouterr().out
    with pytest.raises(cli.UserError, match='no checkpoint of step 3, only of none'):
        checkpoints.find_to_resume(run_dir, 3)


def test_a_half_copied_run_is_not_started_again(copy, tmp_path):
    for path in (copy / 'checkpoints').glob('*.index'):
        path.unlink()
    with pytest.raises(
        cli.UserError, match='but step 10 in log.csv and data files without an .index file .keep-10.*, step-9.*: copy'
    ):
        checkpoints.find_to_resume(copy, NEWEST)
    (copy / 'log.csv').unlink()
    with pytest.raises(cli.UserError, match='but data files without an .index file .keep-10.data'):
        checkpoints.find_to_resume(copy, NEWEST)
    assert len(list((copy / 'checkpoints').iterdir())) == 5


def test_a_checkpoint_that_a_training_deletes_is_skipped_or_read_to_its_end(copy, monkeypatch):
    def open_and_delete(checkpoint):
        for path in checkpoint.files():
            path.unlink()
        return original(checkpoint)

    _, _, saved = checkpoints.find(copy)
    original = checkpoints.open_intact
    monkeypatch.setattr(checkpoints, 'open_intact', open_and_delete)
    with pytest.raises(cli.UserError, match=f'{copy} has no checkpoint'):
        checkpoints.find(copy)
    assert saved.get_tensor('global_step') == 10


@pytest.mark.parametrize('name', ['lr[1e-4]', 'a*', 'b?', 'c\\d', 'e{f,g}', '[!h]'])
def test_checkpoints_are_read_in_folders_of_any_name(copy, tmp_path, name):
    run_dir = shutil.move(copy, tmp_path / name / 'run')
    assert checkpoints.find(run_dir)[1].step == checkpoints.find_to_resume(run_dir, NEWEST).step == 10


# --- saved and deleted


def test_a_checkpoint_that_is_saved_is_intact_and_older_ones_are_deleted(run_dir):
    with tf.Graph().as_default(), tf.Session() as session:
        session.run(tf.get_variable('x', initializer=1.0).initializer)
        saver = tf.train.Saver(max_to_keep=None)
        for step in range(1, 6):
            checkpoints.save(session, saver, run_dir, 'step', step, healthy=0)
    assert found(run_dir) == ['step-3', 'step-4', 'step-5']
    assert all(checkpoints.open_intact(checkpoint) for checkpoint in checkpoints.find_all(run_dir))
    assert len(list((run_dir / 'checkpoints').iterdir())) == 6


def test_the_last_healthy_checkpoint_is_not_deleted(run_dir):
    touch(run_dir, *(f'step-{step}' for step in range(1, 9)), 'keep-1')
    checkpoints.delete_old(run_dir, healthy=3)
    assert found(run_dir) == ['keep-1', 'step-3', 'step-6', 'step-7', 'step-8']
    assert len(list((run_dir / 'checkpoints').iterdir())) == 10


def test_only_the_newest_of_the_best_checkpoints_stays(run_dir):
    touch(run_dir, 'best-3', 'best-4', 'keep-2', 'step-4')
    checkpoints.delete_old(run_dir, healthy=4)
    assert found(run_dir) == ['keep-2', 'best-4', 'step-4']


def test_only_temporary_files_of_tensorflow_are_deleted(run_dir, capsys):
    touch(run_dir, 'step-10', 'keep-5')
    folder = run_dir / 'checkpoints'
    for name in ('mine.txt', 'step-11.data-00000-of-00001', '.step-12.data-00000-of-00001.aX3'):
        (folder / name).touch()
    before = sorted(folder.iterdir())
    unfinished = 'step-12.index.tempstate123', 'step-12.data-00000-of-00001.tempstate123'
    for name in unfinished:
        (folder / name).touch()
    checkpoints.delete_temporary(run_dir)
    assert sorted(folder.iterdir()) == before
    assert sorted(re.findall(r'Deleted, unfinished: .*/(.*)', capsys.readouterr().out)) == sorted(unfinished)
    assert [path.name for path in checkpoints.find_without_index(run_dir)] == ['step-11.data-00000-of-00001']


# --- going back


def test_grids_are_found_in_order_and_other_pictures_are_not(run_dir):
    for name in ('start', 'step-00000010', 'step-00000002', 'step-100000000', 'step-99999999', 'step-2', 'mine'):
        (run_dir / 'samples' / f'{name}.png').touch()
    grids = [path.stem for path in checkpoints.find_grids(run_dir)]
    assert grids == ['step-00000002', 'step-00000010', 'step-99999999', 'step-100000000']


def test_files_from_after_a_step_are_found(run_dir):
    touch(run_dir, 'step-4', 'best-5', 'keep-6')
    for name in ('start', 'step-00000004', 'step-00000006'):
        (run_dir / 'samples' / f'{name}.png').touch()
    names = sorted(path.name for path in checkpoints.find_later_files(run_dir, 4))
    data = 'data-00000-of-00001'
    assert names == [f'best-5.{data}', 'best-5.index', f'keep-6.{data}', 'keep-6.index', 'step-00000006.png']


def test_the_way_back_is_a_command_that_resumes_from_the_last_healthy_checkpoint(tmp_path):
    run_dir = tmp_path / 'my run'
    (run_dir / 'checkpoints').mkdir(parents=True)
    touch(run_dir, 'step-100', 'keep-150', 'step-200')
    advice = checkpoints.advice_to_go_back(run_dir, healthy=199)
    command = shlex.split(advice.partition(': ')[2])
    assert command == ['python', 'train.py', '--resume', '150', '--run-dir', str(run_dir)]


def test_without_a_healthy_checkpoint_the_way_back_is_to_start_again(run_dir):
    touch(run_dir, 'step-200')
    advice = checkpoints.advice_to_go_back(run_dir, healthy=100)
    assert '--learning-rate' in advice and '--resume' not in advice
