import csv
import itertools
import json
import re
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import NARROW, chosen, new_run
from PIL import Image

from common import cli
from config.settings import parse_arguments
from graph.replica import Replica
from helper import Dataset
from rundir.checkpoints import Checkpoint
from rundir.log_csv import LOG_COLUMNS
from rundir.run_json import read_run
from training import run as module
from training.run import Run, choose_run, prepare_data, record_changes, start_run

FACES = np.arange(20 * 2 * 2 * 3, dtype=np.uint8).reshape(20, 2, 2, 3)  # 18 to train on


def start(*flags, replica=None):
    """The run that flags start, with its directory no longer locked."""
    with start_run(parse_arguments([str(flag) for flag in flags]), replica or Replica()) as run:
        return run


# --- how long, and when


@pytest.mark.parametrize(
    ('flags', 'last_step'),
    [('--epochs 3', 12), ('--steps 7', 7), ('--epochs 3 --steps 7', 7), ('--epochs 3 --steps 99', 12)],
)
def test_a_run_ends_with_its_steps_or_its_epochs(flags, last_step):
    run = new_run(f'--batch-size 4 {flags}', FACES)
    assert run.steps_per_epoch == 4 and run.last_step == last_step


def test_epochs_are_counted_from_1():
    run = new_run('--batch-size 4', FACES)
    assert [run.epoch(step) for step in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ('flags', 'schedule'),
    [
        ('--epochs 2', {'sample': 400, 'save': 1000, 'keep': 4}),
        ('--epochs 10', {'sample': 400, 'save': 1000, 'keep': 4}),
        ('--epochs 11', {'sample': 400, 'save': 1000, 'keep': 8}),
        ('--epochs 95', {'sample': 400, 'save': 1000, 'keep': 40}),
        ('--steps 41', {'sample': 400, 'save': 1000, 'keep': 8}),
        ('--sample-epochs 3 --keep-every 5 --checkpoint-every 6 --evaluate-every 7',
         {'sample': 12, 'save': 6, 'keep': 20, 'evaluate': 7}),
    ],
)  # fmt: skip
def test_a_run_has_a_schedule_and_keeps_ten_checkpoints_or_fewer(flags, schedule):
    assert new_run(f'--batch-size 4 {flags}', FACES).schedule == schedule


def test_everything_but_keeping_is_due_at_the_end():
    run = new_run('--batch-size 4 --sample-every 3 --checkpoint-every 6 --keep-every 1 --evaluate-every 5', FACES)
    due = [run.due(step, last=False) for step in (1, 3, 4, 6, 20)]
    assert due == [set(), {'sample'}, {'keep'}, {'sample', 'save'}, {'keep', 'evaluate'}]
    assert run.due(7, last=True) == {'sample', 'save', 'evaluate'}


def test_the_real_samples_are_faces_of_the_training():
    run = new_run('--samples 5', FACES)
    assert run.real_samples.shape == (5, 2, 2, 3) and run.real_samples.dtype == np.uint8
    training = {face.tobytes() for face in FACES[run.dataset.training]}
    assert {face.tobytes() for face in run.real_samples} <= training
    assert len(new_run('--samples 64', FACES).real_samples) == 18


# --- batches


def first_batches(run, step, count, shard=slice(None)):
    """The indices and latents of the `count` steps after `step`, as lists."""
    taken = itertools.islice(run.batches(step, shard), count)
    return [(indices.tolist(), latents.tolist()) for indices, latents in taken]


def test_a_resumed_run_gets_the_batches_that_the_whole_run_gets():
    run = new_run('--batch-size 4 --seed 7', FACES)  # 4 batches an epoch
    whole = first_batches(run, 0, 10)
    for step in range(1, 10):
        assert first_batches(run, step, 10 - step) == whole[step:]
    epochs = [sum((indices for indices, _ in whole[start : start + 4]), []) for start in (0, 4)]
    assert all(len(set(epoch)) == 16 for epoch in epochs) and epochs[0] != epochs[1]
    assert whole[0][1] != whole[1][1] and np.shape(whole[0][1]) == (4, 100)


def test_the_shards_of_a_batch_make_up_the_whole():
    run = new_run('--batch-size 4', FACES)
    shards = [first_batches(run, 2, 5, slice(start, start + 2)) for start in (0, 2)]
    joined = [tuple(left + right for left, right in zip(*step, strict=True)) for step in zip(*shards, strict=True)]
    assert joined == first_batches(run, 2, 5)


@pytest.fixture
def changed() -> Run:
    """A run of 20 steps with batches of 4 until step 6, in the middle of its second epoch, and of 3 from then on."""
    run = new_run('--batch-size 3 --epochs 3 --sample-epochs 1', FACES)
    run.checkpoint = Checkpoint(6, Path('step-6'))
    record_changes(run, {'settings': run.settings | {'batch_size': 4}, 'changes': []} | run.describe_data())
    return run


def test_an_epoch_continues_with_batches_of_another_size(changed):
    # 18 images: 4 batches of 4, and then 6 of 3, of which the first 3 begin within the 8 images seen.
    (change,) = changed.changes
    assert change == {'step': 6, 'position': 9, 'before': {'batch_size': 4}, 'after': {'batch_size': 3}}
    assert [changed.epoch(step) for step in (7, 9, 10, 15, 16)] == [2, 2, 3, 3, 4] and changed.last_step == 15
    assert [step for step in range(7, 16) if 'sample' in changed.due(step, last=False)] == [9, 15]
    assert changed.next_due(6) == changed.next_due(8) == 9

    before = new_run('--batch-size 4 --epochs 3', FACES)
    seen = sum((indices for indices, _ in first_batches(before, 4, 2)), [])
    rest = sum((indices for indices, _ in first_batches(changed, 6, 3)), [])
    assert len(rest) == 9 and not set(seen) & set(rest)
    whole = first_batches(changed, 6, 9)
    assert all(first_batches(changed, 6 + step, 9 - step) == whole[step:] for step in range(9))
    assert len(set(sum((indices for indices, _ in whole[3:9]), []))) == 18


def test_settings_that_leave_batches_as_they_are_leave_their_order(changed):
    later = replace(changed, settings=changed.settings | {'r1': 1.0}, checkpoint=Checkpoint(11, Path('step-11')))
    record_changes(later, {'settings': changed.settings, 'changes': list(changed.changes)} | changed.describe_data())
    assert later.changes[-1]['after'] == {'r1': 1.0} and later.shift == changed.shift
    assert first_batches(later, 11, 5) == first_batches(changed, 11, 5)


# --- the directory


def test_an_open_directory_has_its_settings_its_folders_and_an_empty_log(tmp_path):
    run = new_run('--batch-size 4', FACES, tmp_path / 'a' / 'run')
    run.open_directory()
    saved = read_run(run.directory)
    assert saved['settings'] == run.settings and saved['data_digest'] == run.dataset.digest and saved['images'] == 20
    assert sorted(path.name for path in run.directory.iterdir()) == ['checkpoints', 'log.csv', 'run.json', 'samples']
    assert (run.directory / 'log.csv').read_text() == ','.join(LOG_COLUMNS) + '\n'
    assert run.grid(12) == run.directory / 'samples' / 'step-00000012.png'


def test_what_a_run_wrote_after_its_checkpoint_is_undone(copy, capsys):
    run = new_run('', FACES, copy)
    run.checkpoint = Checkpoint(6, copy / 'checkpoints' / 'step-6')
    (copy / 'checkpoints' / 'step-11.data-00000-of-00001').touch()
    (copy / f'.{"a" * 32}.log.csv').touch()
    run.open_directory()
    assert sorted(path.stem for path in copy.glob('checkpoints/*.index')) == ['keep-5', 'step-6']
    data = 'step-11.data-00000-of-00001'
    assert not list(copy.glob('.*')) and not (copy / 'checkpoints' / data).exists()
    assert (
        copy / 'abandoned' / data
    ).exists() and f'because its .index file is missing: {data}' in capsys.readouterr().out
    with open(copy / 'log.csv', newline='') as file:
        assert [row[0] for row in csv.reader(file)] == ['step', '1', '2', '3', '4', '5', '6']


def test_only_whole_rows_of_the_log_are_kept(tmp_path):
    rows = [f'{step},1,1.3,0.7,0.6,0.4,90,' for step in (1, 2, 3)]
    path = tmp_path / 'log.csv'
    faces = np.zeros((20, 28, 28, 3), np.uint8)
    run = new_run('--batch-size 2', faces, tmp_path)
    run.checkpoint = Checkpoint(3, tmp_path / 'checkpoints' / 'step-3')
    for rest in ('', '4,2,1,1,1,1,1\n', '4,2,1,1', '\0\0\n', 'x,1,1,1,1,1,1,1\n', '²,1,1,1,1,1,1,1\n', '"'):
        path.write_text('\n'.join([','.join(LOG_COLUMNS), *rows, rest]))
        run.open_directory()
        assert path.read_text().splitlines()[1:] == rows, rest
    assert not (tmp_path / 'abandoned').exists()


def test_two_runs_begun_in_the_same_second_get_directories_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, 'load_dataset', lambda *_, **__: Dataset(FACES))
    monkeypatch.setattr(module.datetime, 'datetime', SimpleNamespace(now=lambda: datetime(2026, 1, 1)))
    names = [start('--batch-size', 2).directory.name for _ in range(2)]
    assert names == ['oreilly-20260101-000000', 'oreilly-20260101-000000-2']


def test_going_back_twice_loses_nothing(tmp_path):
    rows = [f'{step},1,1.3,0.7,0.6,0.4,90,' for step in (1, 2, 3)]
    run = new_run('--batch-size 2', np.zeros((20, 28, 28, 3), np.uint8), tmp_path)
    run.checkpoint = Checkpoint(1, tmp_path / 'checkpoints' / 'step-1')
    for folder, content in (('abandoned', 'first'), ('abandoned-2', 'second')):
        (tmp_path / 'log.csv').write_text('\n'.join([','.join(LOG_COLUMNS), *rows, '']))
        for name in ('checkpoints/step-3.index', 'samples/step-00000002.png'):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        run.open_directory()
        aside = tmp_path / folder
        assert sorted(path.name for path in aside.iterdir()) == ['log.csv', 'step-00000002.png', 'step-3.index']
        assert (aside / 'log.csv').read_text().splitlines() == [','.join(LOG_COLUMNS), *rows[1:]]
        assert (tmp_path / 'log.csv').read_text().splitlines() == [','.join(LOG_COLUMNS), rows[0]]
    assert [(tmp_path / name / 'step-3.index').read_text() for name in ('abandoned', 'abandoned-2')] == [
        'first',
        'second',
    ]


# --- which run, on which data


def test_settings_are_those_of_the_run_that_goes_on(copy):
    settings, saved = choose_run(parse_arguments(['--run-dir', str(copy), '--resume', '--steps', '99']))
    assert saved['settings'] | {'epochs': None, 'steps': 99, 'data_dir': ''} == settings | {'data_dir': ''}


def test_a_directory_that_holds_anything_is_not_overwritten(copy):
    with pytest.raises(cli.UserError, match=f'{copy} is not empty: add --resume'):
        choose_run(parse_arguments(['--run-dir', str(copy)]))


def test_a_run_that_does_not_exist_yet_is_started(tmp_path):
    args = parse_arguments(['--run-dir', str(tmp_path), '--resume'])
    assert choose_run(args) == (chosen('--hold-out none')[0], {})
    with pytest.raises(cli.UserError, match=f'{tmp_path} is not the directory of a training run'):
        choose_run(parse_arguments(['--run-dir', str(tmp_path), '--resume', '3']))


@pytest.mark.parametrize('workers', [1, 2])
def test_a_directory_that_cannot_be_written_is_an_error_before_data_are_loaded(tmp_path, monkeypatch, workers):
    def load(*_):
        raise AssertionError('data were loaded')

    monkeypatch.setattr(module, 'load_dataset', load)
    (tmp_path / 'file').write_text('')
    args = parse_arguments(['--run-dir', str(tmp_path / 'file' / 'run'), '--workers', str(workers)])
    with pytest.raises(OSError, match=f'{tmp_path}/file/run'):
        prepare_data(args) if workers > 1 else start_run(args, Replica()).__enter__()


def test_several_workers_make_one_step_a_call(pictures):
    class Several(Replica):
        count = 2

    with pytest.raises(cli.UserError, match='--steps-per-call must be 1, or unset, with several workers'):
        start('--data', pictures, '--steps-per-call', 5, replica=Several())


def test_sources_are_for_celeb_a_only():
    with pytest.raises(cli.UserError, match='--sources'):
        choose_run(parse_arguments(['--data', 'pictures.zip', '--sources', 'http://127.0.0.1:1/x']))


def test_images_are_held_out_only_where_something_compares_with_them(pictures):
    def hold_out(*flags):
        return choose_run(parse_arguments(['--data', str(pictures), *flags]))[0]['hold_out']

    assert hold_out() == 'none' and hold_out('--evaluate-every', '5') == 'images'
    assert hold_out('--hold-out', 'images') == 'images'


@pytest.fixture
def known_people(pictures, tmp_path) -> Path:
    """An archive of 44 images of 22 people, with a table of who they are beside it."""
    (tmp_path / 'identity_CelebA.txt').write_text(''.join(f'{n:06}.jpg {n // 2}\n' for n in range(44)))
    return shutil.copy(pictures, tmp_path)


def test_people_are_held_out_where_they_are_known(known_people, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = start('--data', known_people, '--batch-size', 8, '--evaluate-every', 5)
    assert run.settings['hold_out'] == 'people'
    assert len(run.dataset.held_out) == 4
    assert {index // 2 for index in run.dataset.held_out}.isdisjoint(index // 2 for index in run.dataset.training)


def test_people_that_are_not_known_are_not_held_out(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match='identity_CelebA.txt is missing, so people cannot be held out'):
        start('--data', pictures, '--batch-size', 8, '--hold-out', 'people')
    with pytest.raises(cli.UserError, match='the demo faces are synthetic and have no identities'):
        choose_run(parse_arguments(['--data', 'demo', '--hold-out', 'people']))


def test_data_are_prepared_in_silence(pictures, tmp_path, capsys):
    args = parse_arguments(['--data', str(pictures), '--data-dir', str(tmp_path)])
    prepare_data(args)
    assert len(list((tmp_path / 'prepared').glob('*.npy'))) == 1 and capsys.readouterr().out == ''


def test_a_new_run_has_a_directory_of_its_own(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = start('--data', pictures, '--system', 'sharma', '--batch-size', 8)
    assert re.fullmatch(r'runs/sharma-\d{8}-\d{6}', str(run.directory)) and run.directory.is_dir()
    assert run.checkpoint is None and len(run.dataset.faces) == 44


def test_a_run_goes_on_from_its_newest_checkpoint_or_that_of_a_step(copy):
    run = start('--run-dir', copy, '--resume', 5)
    assert run.directory == copy and run.checkpoint == Checkpoint(5, copy / 'checkpoints' / 'keep-5')
    assert start('--run-dir', copy, '--resume', '--steps', 11).checkpoint.step == 10


@pytest.mark.parametrize('flags', [('--resume', '--steps', 11), ('--batch-size', 8)])
def test_a_run_directory_is_locked_until_its_run_ends(copy, pictures, tmp_path, flags):
    new = '--resume' not in flags
    flags = '--data', pictures, '--data-dir', tmp_path, '--run-dir', tmp_path / 'new' if new else copy, *flags
    with pytest.raises(KeyError), start_run(parse_arguments([str(flag) for flag in flags]), Replica()):
        with pytest.raises(cli.UserError, match='is in use: another process trains there'):
            start(*flags)
        raise KeyError
    start(*flags)


def test_a_run_that_has_ended_says_so(copy):
    with pytest.raises(cli.UserError, match='step-10 is at the last step, 10: raise --epochs or --steps to continue'):
        start('--run-dir', copy, '--resume')


def test_a_run_does_not_go_on_with_other_faces(copy, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()
    for number in range(40):
        Image.new('RGB', (30, 30), (number, 0, 0)).save(other / f'{number}.png')
    for number in range(40, 46):
        with pytest.raises(
            cli.UserError, match=f'{other} is not the data set .* started with: check --data.*--init-from'
        ):
            start('--run-dir', copy, '--resume', '--data', other, '--epochs', 3)
        Image.new('RGB', (30, 30), (number, 0, 0)).save(other / f'{number}.png')
    with pytest.raises(cli.UserError, match='add --more-images if 2 images were added'):
        start('--run-dir', copy, '--resume', '--data', other, '--epochs', 3)
    run = start('--run-dir', copy, '--resume', '--data', other, '--epochs', 3, '--more-images')
    (change,) = run.changes
    assert change['step'] == 10 and (change['before']['images'], change['after']['images']) == (44, 46)


def test_a_run_goes_on_with_the_same_faces_in_another_place(copy, pictures, tmp_path):
    other = shutil.copy(pictures, tmp_path / 'other.zip')
    run = start('--run-dir', copy, '--resume', '--data', other, '--epochs', 3)
    assert run.settings['data'] == str(other) and run.last_step == 15


def test_too_few_images_for_a_batch_are_an_error(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cli.UserError, match='44 images do not fill a batch of 45: lower --batch-size'):
        start('--data', pictures, '--batch-size', 45)
    assert not (tmp_path / 'runs').exists()


def test_without_held_out_faces_there_is_nothing_to_compare_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'few').mkdir()
    for number in range(9):
        Image.new('RGB', (30, 30), (number, 0, 0)).save(tmp_path / 'few' / f'{number}.png')
    with pytest.raises(cli.UserError, match='--evaluate-every: none of the 9 faces'):
        start('--data', 'few', '--batch-size', 2, '--evaluate-every', 1)
    assert not (tmp_path / 'runs').exists()


# --- a replica that is not the chief


class Second(Replica):
    """The second of two replicas; the chief has broadcast `values`."""

    index, count = 1, 2

    def __init__(self, *values):
        self.values = list(values)

    def broadcast(self, value):
        return self.values.pop(0)


def test_another_replica_trains_the_run_of_the_chief_on_its_own_data(copy, pictures, tmp_path):
    saved = read_run(copy)
    settings = json.loads(json.dumps(saved['settings'] | {'data': '/on/the/chief', 'data_dir': '/there'}))
    replica = Second(settings, [saved['data_digest'], 0, 0])
    flags = '--data', pictures, '--data-dir', tmp_path / 'mine', '--run-dir', copy, '--resume'
    run = start(*flags, *NARROW, replica=replica)
    assert run.settings == saved['settings'] | {'data': str(pictures), 'data_dir': str(tmp_path / 'mine')}
    assert run.directory != copy and run.checkpoint is None and replica.values == []


def test_replicas_with_different_attributes_do_not_train(copy, pictures, tmp_path):
    saved = read_run(copy)
    with pytest.raises(cli.UserError, match="the attributes of .* differ from the chief's; check --attribute-table"):
        start(
            '--data', pictures, '--data-dir', tmp_path, replica=Second(saved['settings'], [saved['data_digest'], 1, 0])
        )


def test_replicas_with_different_data_do_not_train(copy, pictures, tmp_path):
    settings = read_run(copy)['settings']
    with pytest.raises(cli.UserError, match="differs from the chief's data set; check --data"):
        start('--data', pictures, '--data-dir', tmp_path, replica=Second(settings, ['another digest', 0, 0]))
