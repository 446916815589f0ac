"""The launcher: on workers that only pretend to train, and on real ones, which are killed, hang and are stopped."""

import csv
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_command

from common import cli
from distributed import launch
from distributed.cluster import LAUNCHED, LOST
from graph.session import tf

# Launches two workers; each runs the argument with its index as Python code.
SCRIPT = f"""
import os, signal, sys, time
sys.path.insert(0, {str(ROOT)!r})
from common import cli
from distributed.cluster import from_environment
from distributed.launch import is_launcher, launch

def main():
    if is_launcher(2):
        launch(2, 10, lambda: print('prepared'))
        print('launched')
    else:
        exec(sys.argv[1 + from_environment(10).index])

cli.run(main)
"""
HANG = 'time.sleep(600)'
FAIL = 'raise OSError("disk full")'
LOSE = f'time.sleep(1); sys.exit({LOST})'


@pytest.fixture
def launch_workers(start, tmp_path):
    """A function that launches two workers, which run Python code."""
    script = tmp_path / 'train.py'
    script.write_text(SCRIPT)
    return lambda *code, **variables: start(script, *code, **variables)


def wait_until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(process) -> list[int]:
    """The workers that a process has started, the chief first."""
    pids = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    return [int(pid) for pid in pids if b'--workers' in Path(f'/proc/{pid}/cmdline').read_bytes()]


# --- who launches


def test_a_process_launches_several_workers_unless_it_is_one_of_them(monkeypatch):
    config = {'cluster': {'worker': ['a:1', 'b:2']}, 'task': {'type': 'worker', 'index': 0}, 'environment': LAUNCHED}
    monkeypatch.delenv('TF_CONFIG', raising=False)
    assert launch.is_launcher(2) and not launch.is_launcher(1)
    monkeypatch.setenv('TF_CONFIG', json.dumps(config))
    assert not launch.is_launcher(2)


def test_workers_of_this_machine_and_of_tf_config_exclude_each_other(monkeypatch):
    config = {'cluster': {'worker': ['a:1', 'b:2']}, 'task': {'type': 'worker', 'index': 0}}
    monkeypatch.setenv('TF_CONFIG', json.dumps(config))
    assert not launch.is_launcher(1)
    with pytest.raises(cli.UserError, match='use either --workers or the environment variable TF_CONFIG, not both'):
        launch.is_launcher(2)
    config['cluster'] = {'worker': ['a:1']}
    monkeypatch.setenv('TF_CONFIG', json.dumps(config))
    assert launch.is_launcher(2)


# --- what each worker gets


def gpu_machine(folder, *uuids):
    """A PATH with the nvidia-smi of a machine with GPUs of these UUIDs, the first with a MIG partition."""
    lines = [f'GPU {index}: NVIDIA A (UUID: {uuid})' for index, uuid in enumerate(uuids)]
    lines[1:1] = ['  MIG 1g.5gb Device 0: (UUID: MIG-1)']
    program = folder / 'nvidia-smi'
    program.write_text(f'#!{sys.executable}\nprint({chr(10).join(lines)!r})\n')
    program.chmod(0o755)
    return f'{folder}:{os.environ["PATH"]}'


@pytest.mark.parametrize(
    ('names', 'gpus'),
    [
        (None, ['0', '1']),
        ('', []),
        ('-1', []),
        ('NoDevFiles', []),
        ('1', ['1']),
        ('1, 0', ['1', '0']),
        ('0,2,1', ['0']),  # like CUDA: nothing after the first that does not exist
        ('1,1', ['1']),
        ('GPU-ab,GPU-b', ['GPU-ab', 'GPU-b']),
        ('GPU-,1', []),  # of two
        ('MIG-1,GPU-c', ['MIG-1']),
    ],
)
def test_the_gpus_are_those_of_the_machine_that_the_environment_leaves(monkeypatch, tmp_path, names, gpus):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setenv('PATH', gpu_machine(tmp_path, 'GPU-abc', 'GPU-bcd'))
    if names is not None:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', names)
    assert launch.visible_gpus() == gpus


@pytest.mark.parametrize('names', ['0', '0,1', 'foo', 'NoDevFiles', 'GPU-abc'])
def test_a_machine_without_gpus_has_none_even_if_the_environment_names_some(monkeypatch, tmp_path, names):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', names)
    assert launch.visible_gpus() == []


def test_each_worker_has_a_gpu_and_the_launcher_none(launch_workers, tmp_path):
    code = "open(os.environ['CUDA_VISIBLE_DEVICES'], 'x').close()"
    path = gpu_machine(tmp_path, 'GPU-a', 'GPU-b')
    process = launch_workers(code, code, PATH=path, CUDA_VISIBLE_DEVICES='1,GPU-a')
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0 and errors == ''
    assert (tmp_path / '1').exists() and (tmp_path / 'GPU-a').exists()


def test_too_few_gpus_are_an_error_before_anything_is_done(launch_workers, tmp_path):
    process = launch_workers('', '', PATH=gpu_machine(tmp_path, 'GPU-a'), CUDA_VISIBLE_DEVICES='0')
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 2 and errors.count('\n') == 1 and output == ''
    assert '--workers 2 needs 2 GPUs, but only 1 can be used' in errors


@pytest.mark.skipif(not hasattr(os, 'sched_getaffinity'), reason='cores are assigned on Linux only')
def test_workers_without_gpus_divide_the_cores(launch_workers, tmp_path):
    code = "open('cores{}', 'w').write(' '.join(map(str, os.sched_getaffinity(0))))"
    process = launch_workers(code.format(0), code.format(1), CUDA_VISIBLE_DEVICES='')
    assert process.wait(240) == 0
    shards = [set(map(int, (tmp_path / f'cores{index}').read_text().split())) for index in range(2)]
    cores = os.sched_getaffinity(0)
    assert shards[0] | shards[1] == cores
    assert len(cores) == 1 or (not shards[0] & shards[1] and abs(len(shards[0]) - len(shards[1])) <= 1)


def test_each_worker_gets_its_gpu_or_an_equal_share_of_the_cores():
    assert launch.share_of_devices(1, 2, ['a', 'b'], [0, 1]) == ({'CUDA_VISIBLE_DEVICES': 'b'}, [0, 1])
    shares = [launch.share_of_devices(index, 3, [], [0, 1, 4, 5, 6, 7])[1] for index in range(3)]
    assert shares == [[0, 1], [4, 5], [6, 7]]
    shares = [launch.share_of_devices(index, 2, [], [3])[1] for index in range(2)]
    assert shares == [[3], [3]]  # too few cores
    assert launch.share_of_devices(0, 2, [], []) == ({}, [])


def test_only_the_chief_talks(launch_workers):
    code = "print('{0} prints'); print('{0} warns', file=sys.stderr)"
    process = launch_workers(code.format('chief'), code.format('other'))
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0
    assert (output, errors) == ('prepared\nchief prints\nlaunched\n', 'chief warns\n')


# --- how workers end


@pytest.mark.parametrize('index', [0, 1])
def test_a_worker_that_is_killed_is_named(launch_workers, index):
    code = [LOSE, LOSE]
    code[index] = 'os.kill(os.getpid(), signal.SIGKILL)'
    process = launch_workers(*code)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2
    assert errors == (
        f'train.py: error: worker {index} was killed by SIGKILL; all workers have stopped. '
        'Resume with --resume --run-dir RUN\n'
    )


@pytest.mark.parametrize(
    ('code', 'who'), [((LOSE, HANG), 'worker 1'), ((HANG, LOSE), 'worker 0'), ((LOSE, LOSE), 'a worker')]
)
def test_a_worker_that_hangs_is_named_when_the_others_have_noticed(launch_workers, code, who):
    process = launch_workers(*code)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2 and errors.count('\n') == 1
    assert f'{who} did not answer for 10 s; all workers have stopped' in errors


@pytest.mark.parametrize('code', [(FAIL, LOSE), (LOSE, FAIL)])
def test_the_error_of_a_worker_is_shown_once_and_ends_the_others(launch_workers, code):
    process = launch_workers(*code)
    _, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (2, 'train.py: error: disk full\n')


def test_a_worker_that_does_not_end_is_killed(launch_workers, tmp_path):
    process = launch_workers('sys.exit(7)', f"open('pid', 'w').write(str(os.getpid())); {HANG}")
    assert process.wait(240) == 7
    assert not (tmp_path / 'pid').exists() or not is_running((tmp_path / 'pid').read_text())


@pytest.mark.parametrize('number', cli.stop_signals())
def test_signals_are_passed_on_to_all_workers(launch_workers, tmp_path, number):
    handler = f'signal.signal({int(number)}, lambda *_: (open("stopped{{0}}", "x"), sys.exit(0))); '
    code = handler + 'open("ready{0}", "x").close(); ' + HANG
    process = launch_workers(code.format(0), code.format(1))
    wait_until(lambda: all((tmp_path / f'ready{index}').exists() for index in range(2)))
    process.send_signal(number)
    assert process.wait(240) == 0
    assert all((tmp_path / f'stopped{index}').exists() for index in range(2))


def test_workers_that_a_signal_ends_without_saving_give_its_status(launch_workers, tmp_path):
    code = 'signal.signal(signal.SIGTERM, signal.SIG_DFL); open("ready{}", "x"); ' + HANG
    process = launch_workers(code.format(0), code.format(1))
    wait_until(lambda: all((tmp_path / f'ready{index}').exists() for index in range(2)))
    process.terminate()
    assert process.wait(240) == 128 + signal.SIGTERM


def test_a_stopped_worker_may_take_its_time_after_the_others_have_ended(launch_workers):
    code = f'sys.exit({cli.STOPPED})'
    process = launch_workers(f'time.sleep({launch.GRACE_SECONDS + 1}); {code}', code)
    output, errors = process.communicate(timeout=240)
    assert (process.returncode, output, errors) == (cli.STOPPED, 'prepared\n', '')


def test_workers_save_and_end_when_the_launcher_is_killed(start_small_training):
    process = start_small_training('--workers', 2, '--steps', 999_999, '--pause', 0.1)
    assert process.stdout.readline()
    workers = children(process)
    process.kill()
    assert json.loads(process.stdout.read().splitlines()[-1])['stopped']
    wait_until(lambda: not any(map(is_running, workers)))


# --- real trainings

STEPS = 12
FLAGS = ['--width', 0.05, '--batch-size', 16, '--sample-every', STEPS, '--checkpoint-every', 6]
# Dropout, augmentation, batch normalisation, R1 with it; a seed with which no activation lies so near 0 that rounding
# decides its sign.
EVERYTHING = ['--system', 'sharma', '--augment', 'color-translation', '--flip', 0.5, '--instance-noise', 0.1]
EVERYTHING += ['--r1', 0.03, '--r1-every', 4, '--steps', STEPS, '--seed', 3]
# A weight moves by 2e-4 a step; Adam divides a rounding error of its gradient by the gradient.
TOLERANCE = 2e-5


@pytest.fixture
def start_training(start, pictures):
    """A function that starts train.py with more flags than FLAGS."""
    return lambda *flags, **options: start(ROOT / 'train.py', *FLAGS, '--data', pictures, *flags, **options)


@pytest.fixture(scope='module')
def alone(tmp_path_factory, pictures) -> Path:
    """The run of a single process."""
    folder = tmp_path_factory.mktemp('alone')
    flags = [*FLAGS, *EVERYTHING, '--data', pictures, '--run-dir', 'run']
    run_command('train.py', *flags, cwd=folder).check_returncode()
    return folder / 'run'


def tensors(run_dir, step=STEPS):
    saved = tf.train.load_checkpoint(str(run_dir / 'checkpoints' / f'step-{step}'))
    return {name: saved.get_tensor(name) for name in saved.get_variable_to_shape_map()}


def distance(run_dir, other):
    """The largest difference of any weight of two runs, or of its average."""
    ours, theirs = tensors(run_dir), tensors(other)
    assert ours.keys() == theirs.keys() and ours['global_step'] == theirs['global_step'] == STEPS
    names = [name for name in ours if not name.endswith(('Adam', 'Adam_1', 'power'))]
    return max(np.abs(ours[name] - theirs[name]).max() for name in names)


def steps(run_dir):
    with open(run_dir / 'log.csv', newline='') as file:
        return [int(row['step']) for row in csv.DictReader(file)]


def wait_for_step(step, run_dir):
    log = run_dir / 'log.csv'
    wait_until(lambda: log.exists() and log.read_bytes().count(b'\n') > step)


def test_two_workers_follow_one_process(start_training, alone, tmp_path):
    run_dir = tmp_path / 'run'
    process = start_training(*EVERYTHING, '--workers', 2, '--run-dir', run_dir)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0 and errors == '' and 'Workers: 2.' in output
    assert output.count('Done') == output.count('Devices') == output.count('discriminator loss') == 1
    assert distance(run_dir, alone) < TOLERANCE
    losses = [
        np.loadtxt(folder / 'log.csv', delimiter=',', skiprows=1, usecols=range(6)) for folder in (run_dir, alone)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_two_workers_with_statistics_of_their_own_follow_another_path(start_training, alone, tmp_path):
    addresses = launch.free_addresses(2)
    flags = *EVERYTHING, '--local-batch-norm', '--run-dir', tmp_path / 'run'
    workers = [start_training(*flags, worker=(index, addresses)) for index in range(2)]
    errors = [worker.communicate(timeout=240)[1] for worker in workers]
    assert errors == ['', ''] and [worker.returncode for worker in workers] == [0, 0]
    assert distance(tmp_path / 'run', alone) > 20 * TOLERANCE


def test_a_run_goes_on_with_more_workers_that_have_no_checkpoint(start_training, alone, tmp_path):
    run_dir = shutil.copytree(alone, tmp_path / 'run')
    addresses = launch.free_addresses(2)
    flags = '--resume', 6, '--run-dir', 'run'
    other = start_training(*flags, cwd=tmp_path / 'other', worker=(1, addresses))
    chief = start_training(*flags, worker=(0, addresses))
    _, errors = chief.communicate(timeout=240)
    assert chief.returncode == 0 and errors == ''
    assert other.communicate(timeout=240) == ('', '') and other.returncode == 0
    assert distance(run_dir, alone) < TOLERANCE and steps(run_dir) == list(range(1, STEPS + 1))
    assert not (tmp_path / 'other' / 'run').exists()


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_ends_the_others_and_the_same_command_goes_on(start_training, tmp_path, number):
    run_dir = tmp_path / 'run'
    flags = '--workers', 2, '--run-dir', run_dir, '--resume', '--worker-timeout', 5
    process = start_training(*flags, '--epochs', 999_999)
    wait_for_step(7, run_dir)
    workers = children(process)
    os.kill(workers[1], number)
    _, errors = process.communicate(timeout=240)
    what = 'was killed by SIGKILL' if number == signal.SIGKILL else 'did not answer for 5 s'
    assert process.returncode == 2 and errors.count('\n') == 1 and f'worker 1 {what}' in errors, errors
    assert not any(map(is_running, workers))
    if number == signal.SIGKILL:
        process = start_training(*flags, '--steps', steps(run_dir)[-1] + 2)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0 and errors == '' and steps(run_dir) == list(range(1, len(steps(run_dir)) + 1))


@pytest.mark.parametrize('receiver', ['launcher', 'worker'])
def test_a_signal_to_any_worker_stops_all_after_the_same_step_and_saves(start_training, tmp_path, receiver):
    run_dir = tmp_path / 'run'
    flags = '--run-dir', run_dir, '--epochs', 999_999
    if receiver == 'launcher':
        process = stopped = start_training(*flags, '--workers', 2)
    else:
        addresses = launch.free_addresses(2)
        process, stopped = (start_training(*flags, worker=(index, addresses)) for index in range(2))
    wait_for_step(2, run_dir)
    stopped.send_signal(signal.SIGINT if receiver == 'launcher' else signal.SIGTERM)
    output, errors = process.communicate(timeout=240)
    last = steps(run_dir)[-1]
    assert process.returncode == stopped.wait(240) == cli.STOPPED and errors == ''
    assert output.count(f'Stopped and saved at step {last}') == 1 and output.count('Training animation: ') == 1
    assert tensors(run_dir, last)['global_step'] == last


def test_an_error_of_the_chief_is_reported_once(start_training, alone, tmp_path):
    run_dir = shutil.copytree(alone, tmp_path / 'run')
    process = start_training('--workers', 2, '--resume', '--run-dir', run_dir)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2 and errors.count('\n') == 1, errors
    assert f'is at the last step, {STEPS}: raise' in errors


def test_a_batch_that_cannot_be_divided_equally_is_an_error_before_anything_is_written(start_training, tmp_path):
    process = start_training('--workers', 3)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2 and errors.count('\n') == 1 and '--batch-size 15 or 18' in errors
    assert list(tmp_path.iterdir()) == []
