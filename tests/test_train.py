"""train.py: the graph and the loop, and whole runs as a user starts them."""

import contextlib
import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import forkserver
import numpy as np
import pytest
from conftest import (
    NARROW,
    ROOT,
    assert_one_line,
    checkpoint_names,
    chosen,
    log,
    new_run,
    read_events,
    read_log,
    run_command,
)
from PIL import Image

import train
from common import cli, files
from config.settings import parse_arguments, system_of
from graph.replica import Replica
from graph.session import open_session, tf
from helper import Dataset, images_square_grid
from metrics.swd import swd
from rundir.checkpoints import best_distance, find, find_best, find_grids, find_later_files
from rundir.log_csv import LOG_COLUMNS
from rundir.run_json import read_run
from sampling.generator import PRETRAINED, restored_generator
from sampling.latents import sample_latents
from systems import SYSTEMS
from training import calls
from training.data import load_dataset
from training.monitor import Evaluator
from training.run import Run, start_run

FACES = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 3), dtype=np.uint8)


# --- the graph and the loop, in this process


def test_the_graph_does_not_grow_with_the_samples(tmp_path):
    model = train.build_graph(chosen('--width 0.05')[0], Replica())
    assert model.graph.finalized
    operations = len(model.graph.get_operations())
    latents = np.zeros((4, 100), np.float32)
    with open_session(model.graph) as session:
        session.run(model.initializer)
        for index in range(10):
            train.show_generator_output(session, model, latents, tmp_path / f'{index}.png')
    assert len(model.graph.get_operations()) == operations


def test_a_run_is_trained_by_a_function(tmp_path, capsys):
    settings, _ = chosen('--width 0.05 --batch-size 4 --steps 6 --sample-every 3 --samples 4')
    run, shown = Run(settings, Dataset(FACES), tmp_path / 'run'), []
    handler = signal.getsignal(signal.SIGTERM)
    assert train.train(run, Replica(), on_samples=shown.append) == 6
    assert signal.getsignal(signal.SIGTERM) == handler
    assert [int(row['step']) for row in read_log(run.directory)] == [1, 2, 3, 4, 5, 6]
    assert checkpoint_names(run.directory) == ['keep-4', 'step-6']
    assert [path.stem for path in find_grids(run.directory)] == ['step-00000000', 'step-00000003', 'step-00000006']
    for path, faces in zip(find_grids(run.directory), shown, strict=True):
        assert faces.shape == (4, 28, 28, 3) and faces.dtype == np.uint8
        np.testing.assert_array_equal(Image.open(path), images_square_grid(faces))
    assert read_run(run.directory)['settings'] == settings
    assert re.findall(r'step (\d+): discriminator loss', capsys.readouterr().out) == ['3', '6']


@pytest.mark.parametrize(
    'more',
    ['--augment color-translation-cutout', '--augment translation --xla', '--augment translation --augment-target 0.1'],
)
def test_steps_in_one_call_are_those_of_one_call_each(tmp_path, few_layers, more):
    # Everything that draws random numbers, and what is not done in each step.
    flags = '--system sharma --batch-size 4 --steps 11 --samples 4 --sample-every 9 --label-noise 0.1'
    flags += f' --flip 0.5 --instance-noise 0.1 --r1 1 --r1-every 4 {more}'
    ends = []
    for directory, steps_per_call in (('one', 1), ('many', 6)):
        run = new_run(f'{flags} --steps-per-call {steps_per_call}', FACES, tmp_path / directory)
        train.train(run, Replica())
        saved = tf.train.load_checkpoint(str(find(run.directory)[1].prefix))
        weights = {name: saved.get_tensor(name) for name in saved.get_variable_to_shape_map()}
        ends.append((log(run.directory), weights, run.grid(11).read_bytes()))
    np.testing.assert_equal(*ends)
    assert len(ends[0][0]) == 12


def test_a_data_set_on_the_device_gives_the_same_run(tmp_path, monkeypatch):
    flags = '--width 0.05 --batch-size 4 --steps 20 --samples 4 --sample-every 7 --steps-per-call 10 --no-xla'
    logs = []
    for memory in (0, 1 << 30):
        monkeypatch.setattr(calls, 'gpu_memory', lambda memory=memory: memory)
        run = new_run(flags, FACES, tmp_path / str(memory))
        train.train(run, Replica())
        logs.append(log(run.directory))
    assert logs[0] == logs[1]


def test_determinism_is_enabled_before_anything_is_computed(tmp_path, monkeypatch):
    class EnabledError(Exception):
        pass

    def enable():
        raise EnabledError

    monkeypatch.setattr(train, 'enable_determinism', enable)
    with pytest.raises(EnabledError):
        train.train(new_run('--deterministic', FACES, tmp_path / 'run'), Replica())
    assert not (tmp_path / 'run').exists()


def test_a_run_is_resumed_in_the_process_that_raised_or_was_interrupted(tmp_path, pictures):
    flags = f'--data {pictures} --data-dir {tmp_path} --run-dir {tmp_path / "run"} --width 0.05 --batch-size 4'.split()
    flags += ['--steps', '4', '--sample-every', '2', '--samples', '4', '--checkpoint-every', '1']
    handlers = [signal.getsignal(number) for number in cli.stop_signals()]

    def train_until(step, happens, *more):
        def on_samples(faces):
            if find_grids(tmp_path / 'run')[-1].stem == f'step-{step:08}':
                happens()

        with start_run(parse_arguments([*flags, *more]), Replica()) as run:
            return train.train(run, Replica(), on_samples)

    with pytest.raises(ZeroDivisionError):
        train_until(0, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_until(2, lambda: 1 / 0, '--resume')
    assert train_until(3, lambda: None, '--resume', '--steps', '3') == 3
    with pytest.raises(KeyboardInterrupt):
        train_until(4, lambda: signal.default_int_handler(signal.SIGINT, None), '--resume')
    assert [signal.getsignal(number) for number in cli.stop_signals()] == handlers
    with ThreadPoolExecutor(1) as thread:  # which cannot handle signals
        assert thread.submit(train_until, 5, lambda: None, '--resume', '--steps', '5').result() == 5
    assert [int(row['step']) for row in read_log(tmp_path / 'run')] == [1, 2, 3, 4, 5]


def test_two_runs_of_a_seed_are_equal_and_of_two_seeds_are_not(tmp_path):
    losses = []
    for directory, seed in (('a', 3), ('b', 3), ('c', 4)):
        flags = f'--width 0.05 --batch-size 4 --steps 3 --samples 4 --seed {seed}'
        train.train(new_run(flags, FACES, tmp_path / directory), Replica())
        losses.append([float(row['d_loss']) for row in read_log(tmp_path / directory)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    assert np.abs(np.subtract(losses[2], losses[0])).max() > 1e-3


def test_a_request_to_stop_saves_and_ends(tmp_path, monkeypatch):
    stop = threading.Event()
    stop.set()
    monkeypatch.setattr(cli, 'stop_on_signals', lambda: contextlib.nullcontext(stop))
    run = new_run('--width 0.05 --batch-size 4 --steps 6 --samples 4', FACES, tmp_path / 'run')
    assert train.train(run, Replica()) == 1
    assert checkpoint_names(run.directory) == ['step-1']
    assert [path.stem for path in find_grids(run.directory)] == ['step-00000000', 'step-00000001']


@pytest.mark.parametrize(
    ('steps', 'command'), [(3, 'python train.py --resume --run-dir'), (6, 'python generate.py --checkpoint')]
)
def test_the_command_that_comes_next_can_be_pasted_into_a_shell(tmp_path, monkeypatch, capsys, steps, command):
    run = new_run('--batch-size 4 --steps 6', FACES, tmp_path / "an artist's run")
    monkeypatch.setattr(train, 'train', lambda *_: steps)
    monkeypatch.setattr(train, 'training_gif', lambda directory: directory)
    with pytest.raises(SystemExit) if steps < 6 else contextlib.nullcontext():
        train.run_training(run, Replica())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if command in line]
    assert shlex.split(line[line.index(command) :]) == [*command.split(), str(run.directory)]


def test_a_run_that_was_interrupted_is_resumed_in_the_same_process(tmp_path, pictures):
    flags = [*NARROW, '--data', pictures, '--data-dir', tmp_path, '--batch-size', 8, '--steps', 6, '--sample-every', 2]
    shown = []

    def train_once(name, interrupt_after=None):
        """Start or resume a run as the notebook does. interrupt_after: the number of grids before a SIGINT."""
        run_dir = tmp_path / name
        resume = ['--resume'] if files.has_files(run_dir) else []

        def show(faces):
            shown.append(faces)
            if len(shown) == interrupt_after:
                signal.raise_signal(signal.SIGINT)

        arguments = [str(flag) for flag in [*flags, '--run-dir', run_dir, *resume]]
        with start_run(parse_arguments(arguments), Replica()) as run:
            return train.train(run, Replica(), on_samples=show)

    handler = signal.getsignal(signal.SIGINT)
    assert train_once('run', interrupt_after=2) == 3  # the step after the grids of steps 0 and 2
    assert signal.getsignal(signal.SIGINT) == handler
    assert train_once('run') == 6 and len(shown) == 5  # after steps 3, when it was stopped, 4 and 6
    assert train_once('whole') == 6
    resumed, whole = (np.float64([row[:6] for row in log(tmp_path / name)[1:]]) for name in ('run', 'whole'))
    np.testing.assert_allclose(resumed, whole, rtol=1e-3)
    with pytest.raises(cli.UserError, match='step-6 is at the last step, 6: raise --epochs or --steps to continue'):
        train_once('run')


# --- what a run leaves


def test_a_run_directory_holds_everything(trained):
    rows = read_log(trained)
    assert tuple(rows[0]) == LOG_COLUMNS
    assert [(int(row['step']), int(row['epoch'])) for row in rows] == [(n, 1 + (n > 5)) for n in range(1, 11)]
    assert all(0 < float(row['d_real']) < 1 and 0 < float(row['d_loss']) < 50 for row in rows)
    run = json.loads((trained / 'run.json').read_text())
    assert run['images'] == 44 and run['settings']['batch_size'] == 8
    assert run['settings']['learning_rate'] == 2e-4 and run['settings']['beta1'] == 0.5
    assert [path.name for path in sorted((trained / 'samples').iterdir())] == [
        'start.png',
        'step-00000000.png',
        'step-00000004.png',
        'step-00000008.png',
        'step-00000010.png',
    ]
    with Image.open(trained / 'samples' / 'step-00000010.png') as grid:
        assert grid.size == (8 * 28, 8 * 28) and np.asarray(grid).std() > 1
    with Image.open(trained / 'losses.png') as plot:
        assert plot.size == (1000, 400)
        plot.verify()


def test_the_last_checkpoints_and_one_of_each_kept_epoch_stay(trained):
    assert checkpoint_names(trained) == ['keep-10', 'keep-5', 'step-10', 'step-6', 'step-9']


def test_a_run_reports_its_devices_its_faces_and_its_losses_and_no_warnings(tmp_path, pictures):
    result = run_command(
        'train.py', *NARROW, '--data', pictures, '--batch-size', 8, '--steps', 2, '--sample-every', 1,
        cwd=tmp_path, fresh=True,
    )  # fmt: skip
    assert result.returncode == 0 and result.stderr == ''
    (run_dir,) = (tmp_path / 'runs').iterdir()
    for part in ('Devices: CPU:0', 'Faces: 44', 'step 1: discriminator loss', 'D(G(z))', 'images/s', run_dir.name):
        assert part in result.stdout
    assert len(read_log(run_dir)) == 2 and checkpoint_names(run_dir) == ['step-2']


@pytest.mark.parametrize('flags', [('--precision', 'bf16', *NARROW), ('--xla', *NARROW)])
def test_a_run_may_compute_in_bfloat16_or_with_xla(tmp_path, pictures, flags):
    result = run_command(
        'train.py', '--data', pictures, '--run-dir', 'run', '--batch-size', 8, '--steps', 3, *flags, cwd=tmp_path
    )
    assert result.returncode == 0 and result.stderr == '' and len(read_log(tmp_path / 'run')) == 3
    settings = read_run(tmp_path / 'run')['settings']
    assert (settings['precision'], settings['xla']) == (('bf16', False) if 'bf16' in flags else ('fp32', True))


def test_the_checkpoint_with_the_smallest_distance_is_kept_and_drawn_from(tmp_path, pictures):
    flags = *NARROW, '--data', pictures, '--run-dir', 'run', '--batch-size', 8, '--keep-every', 100
    result = run_command('train.py', *flags, '--evaluate-every', 3, '--steps', 9, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run_dir = tmp_path / 'run'
    distances = {int(row['step']): float(row['swd']) for row in read_log(run_dir) if row['swd']}
    assert list(distances) == [3, 6, 9] and len(set(distances.values())) == 3
    best = min(distances, key=distances.get)
    assert [name for name in checkpoint_names(run_dir) if name.startswith('best-')] == [f'best-{best}']
    assert find(run_dir)[1].prefix.name == f'best-{best}'
    # What was logged is what the faces of that checkpoint give, drawn from the same latents.
    settings = read_run(run_dir)['settings']
    dataset = load_dataset(settings)
    rng = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(0,)))
    latents = sample_latents(system_of(settings), rng, len(dataset.held_out))
    with restored_generator(run_dir) as generator:
        generated = np.concatenate(list(generator.draw(latents, len(latents))))
    levels = swd(generated, dataset.faces[dataset.held_out])
    assert np.mean(list(levels.values())) == pytest.approx(distances[best], rel=0.02)
    # The distances are in TensorBoard and in the plot, too.
    events = read_events(run_dir)
    logged = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    for step, distance in distances.items():
        levels = [logged[step, f'quality/SWD x1000, {side}x{side}'] for side in (28, 14)]
        assert distance == pytest.approx(np.mean(levels), rel=1e-5)
    with Image.open(run_dir / 'losses.png') as plot:
        assert plot.size == (1500, 400)
    # Only a smaller distance takes its place, in a process that goes on, too; going back before it forgets it.
    forged = (run_dir / 'log.csv').read_text().replace(f'{distances[best]:.6g}\n', '0.001\n')
    (run_dir / 'log.csv').write_text(forged)
    result = run_command('train.py', '--run-dir', 'run', '--resume', '--steps', 12, cwd=tmp_path)
    assert result.returncode == 0 and 'best so far 0.00' in result.stdout
    assert [name for name in checkpoint_names(run_dir) if name.startswith('best-')] == [f'best-{best}']
    assert find_best(run_dir).step == best and best_distance(run_dir) == 0.001
    for path in find_later_files(run_dir, best - 1):
        path.unlink()
    assert find_best(run_dir) is None and best_distance(run_dir) == math.inf


# --- resumed


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(tmp_path, pictures, trained):
    common, flags = ('train.py', '--run-dir', tmp_path / 'run', '--data-dir', tmp_path), ('--hold-out', 'images')
    first = run_command(*common, *NARROW, *flags, '--data', pictures, '--batch-size', 8, '--steps', 7, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    with open(tmp_path / 'run' / 'log.csv', 'a') as file:
        file.write('8,2,1,1,1,1,1\n9,2,1,1')  # what a crash can leave behind
    second = run_command(*common, '--resume', '--epochs', 2, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    names = ('d_loss', 'g_loss', 'd_real', 'd_fake')
    resumed, whole = (
        [[float(row[name]) for name in names] for row in read_log(run)] for run in (tmp_path / 'run', trained)
    )
    assert len(resumed) == 10
    np.testing.assert_allclose(resumed, whole, rtol=1e-3)


def test_a_run_goes_back_to_a_named_step_and_sets_later_ones_aside(copy, tmp_path):
    result = run_command('train.py', '--run-dir', copy, '--resume', 5, '--steps', 6, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [int(row['step']) for row in read_log(copy)] == [1, 2, 3, 4, 5, 6]
    assert checkpoint_names(copy) == ['keep-5', 'step-6']
    aside = copy / 'abandoned'
    assert sorted(path.stem for path in aside.glob('*.index')) == ['keep-10', 'step-10', 'step-6', 'step-9']
    assert [int(row['step']) for row in read_log(aside)] == [6, 7, 8, 9, 10]
    grids = ['step-00000000.png', 'step-00000004.png', 'step-00000006.png']
    assert [path.name for path in find_grids(copy)] == grids
    assert sorted(path.name for path in aside.glob('*.png')) == ['step-00000008.png', 'step-00000010.png']
    assert str(aside) in result.stdout


def test_a_run_that_ended_before_its_first_step_starts_from_the_beginning(copy, tmp_path):
    shutil.rmtree(copy / 'checkpoints')
    (copy / 'log.csv').unlink()
    result = run_command('train.py', '--run-dir', copy, '--resume', '--steps', 2, cwd=tmp_path)
    assert result.returncode == 0 and len(read_log(copy)) == 2


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_ends(tmp_path, pictures, number):
    command = [ROOT / 'train.py', *NARROW, '--data', pictures, '--run-dir', tmp_path / 'run']
    command += ['--epochs', '999999', '--batch-size', '8', '--sample-every', '2']
    with forkserver.start(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while 'step 2:' not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        output, errors = process.communicate(timeout=240)
    assert process.returncode == cli.STOPPED and errors == ''
    step = int(read_log(tmp_path / 'run')[-1]['step'])
    assert checkpoint_names(tmp_path / 'run') == [f'step-{step}']
    assert f'Stopped and saved at step {step}' in output


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(copy, tmp_path):
    newest = str(copy / 'checkpoints' / 'step-10')
    saved = tf.train.load_checkpoint(newest)
    with tf.Graph().as_default(), tf.Session() as session:
        for name in saved.get_variable_to_shape_map():
            value = saved.get_tensor(name)
            tf.get_variable(name, initializer=value * np.nan if name == 'discriminator/layer4/bias' else value)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, newest)
    before = checkpoint_names(copy)
    result = run_command('train.py', '--run-dir', copy, '--resume', '--epochs', 4, cwd=tmp_path)
    assert_one_line(result, 'not finite at step 11')
    assert checkpoint_names(copy) == before and len(read_log(copy)) == 10


# --- flags


BAD_ARGUMENTS = {
    '--batch-size 0': '--batch-size',
    '--precision fp16': '--precision',
    '--resume': '--run-dir',
    '--run-dir x --resume ²': '--resume',
    '--gif': '--run-dir',
    '--gif --run-dir .': 'has no grids',
    '--data missing.zip': 'missing.zip',
    '--data pictures.zip --sources http://127.0.0.1:1/x': '--sources',
    '--unknown': '--unknown',
}


@pytest.mark.parametrize('arguments', BAD_ARGUMENTS)
def test_bad_arguments_end_in_one_line_and_write_nothing(tmp_path, arguments):
    result = run_command('train.py', *arguments.split(), cwd=tmp_path)
    assert_one_line(result, BAD_ARGUMENTS[arguments])
    assert result.stderr.startswith('train.py: error: ') and result.stdout == '' and list(tmp_path.iterdir()) == []


def test_what_a_run_is_made_of_cannot_change_when_it_is_resumed(copy, tmp_path):
    result = run_command('train.py', '--run-dir', copy, '--resume', '--latent-size', 4, cwd=tmp_path)
    assert_one_line(result, '--latent-size is 100 in this run', '--init-from')


def test_without_celeb_a_the_error_names_the_demo(tmp_path):
    result = run_command('train.py', '--sources', 'http://127.0.0.1:1/dead', cwd=tmp_path)
    message = result.stderr.splitlines()[-1]
    assert result.returncode == 2 and 'http://127.0.0.1:1/dead' in message and '--data demo' in message
    assert str(PRETRAINED) not in message and not (tmp_path / 'runs').exists()


def test_all_systems_are_listed_side_by_side(tmp_path):
    result = run_command('train.py', '--list-systems', cwd=tmp_path)
    head, *rows = result.stdout.splitlines()
    assert result.returncode == 0 and result.stderr == '' and head.split() == list(SYSTEMS)
    listed = {re.split('  +', row)[0]: re.split('  +', row)[1:] for row in rows if not row.startswith(' ')}
    assert listed['latent'] == ['uniform', 'uniform', 'uniform', 'normal', 'uniform', 'uniform', 'uniform']
    assert listed['learning rate'] == ['0.0002', '0.0002', '0.0001', '0.0002', '0.0002', '0.0004', '0.0004']
    assert listed['generator 1'][0].startswith('dense 2x2x512, BN') and 'discriminator 6' in listed
    assert list(tmp_path.iterdir()) == []


def test_devices_are_named_and_nothing_is_trained(tmp_path):
    result = run_command('train.py', '--devices', cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == '' and result.stdout.count('\n') == 1
    assert result.stdout.startswith('Devices: CPU:0') and ('No GPU' in result.stdout or 'on the GPU' in result.stdout)
    assert list(tmp_path.iterdir()) == []


def test_the_faces_that_choose_the_best_checkpoint_are_not_those_of_any_seed_of_evaluate(tmp_path, pictures, trained):
    run = new_run('--batch-size 8 --evaluate-every 1', load_dataset(read_run(trained)['settings']).faces, trained)
    latents = Evaluator(run).latents
    for seed in (*range(10), (3, 0), 2**32 + 3):
        others = sample_latents(run.system, np.random.default_rng(seed), len(latents))
        assert (latents != others).any(axis=1).all()


# --- a run from the weights of another


def test_a_run_begins_with_the_weights_of_another_and_needs_it_no_more(copy, pictures, tmp_path):
    other = tmp_path / 'other'
    copy.rename(other)
    before = tf.train.NewCheckpointReader(str(find(other)[1].prefix)).get_tensor('discriminator/layer1/conv2d/kernel')
    flags = [*NARROW, '--data', pictures, '--batch-size', 8, '--run-dir', 'run', '--checkpoint-every', 1, '--resume']
    result = run_command(
        'train.py', *flags[:-1], '--init-from', other, '--freeze-discriminator', 1, '--steps', 1, cwd=tmp_path
    )
    assert result.returncode == 0 and result.stderr == '', result.stderr
    assert f'Initial weights from {find(other)[1].prefix}: generator copied; discriminator copied\n' in result.stdout
    shutil.rmtree(other)
    result = run_command('train.py', *flags, '--steps', 2, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == '', result.stderr
    assert read_run(tmp_path / 'run')['settings']['init_from'] == str(other)
    after = tf.train.NewCheckpointReader(str(tmp_path / 'run' / 'checkpoints' / 'step-2'))
    np.testing.assert_array_equal(after.get_tensor('discriminator/layer1/conv2d/kernel'), before)
    shutil.rmtree(tmp_path / 'run' / 'checkpoints')
    (tmp_path / 'run' / 'log.csv').unlink()
    result = run_command('train.py', *flags, '--steps', 2, cwd=tmp_path)
    assert_one_line(result, f'{other}: no such run directory or checkpoint')
