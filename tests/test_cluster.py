"""Several workers for real: processes of this machine that train together, are killed and are stopped."""

import contextlib
import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, run_command

import cli
import cluster
import train
from settings import choose_settings, chosen_system, parse_arguments
from systems import SYSTEMS

STEPS = 20
# Dropout, augmentation, batch normalisation; one seed, with which no activation lies so near 0 that rounding decides
# its sign.
FLAGS = ['--system', 'sharma', '--width', 0.05, '--batch-size', 8, '--sample-every', STEPS, '--checkpoint-every', 10]
FLAGS += ['--augment', 'color-translation', '--flip', 0.5, '--instance-noise', 0.1]
# A weight moves by 2e-4 a step; Adam divides a rounding error of its gradient by the gradient.
TOLERANCE = 2e-5


@contextlib.contextmanager
def started(*flags, cwd, members=None):
    """A running train.py: a worker of TF_CONFIG with `members` (rank, addresses), else what starts workers itself."""
    environment = dict(os.environ)
    if members:
        rank, addresses = members
        task = {'cluster': {'worker': addresses}, 'task': {'type': 'worker', 'index': rank}}
        environment['TF_CONFIG'] = json.dumps(task)
    command = [sys.executable, ROOT / 'train.py', *FLAGS, *flags]
    cwd.mkdir(exist_ok=True)
    process = subprocess.Popen(
        list(map(str, command)), cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def children(process) -> list[int]:
    """The workers that a process has started, the chief first."""
    tasks = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    return [int(pid) for pid in tasks if b'spawn_main' in Path(f'/proc/{pid}/cmdline').read_bytes()]


def wait_for(step, log):
    """Wait until a training that runs has made so many steps."""
    end = time.monotonic() + 120
    while not log.exists() or log.read_bytes().count(b'\n') <= step:
        assert time.monotonic() < end
        time.sleep(0.05)


def tensors(run_dir, step=STEPS):
    from runtime import tf

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


@pytest.fixture(scope='module')
def alone(tmp_path_factory, pictures) -> Path:
    """The run of a single process."""
    folder = tmp_path_factory.mktemp('alone')
    result = run_command(
        'train.py', *FLAGS, '--data', pictures, '--steps', STEPS, '--seed', 1, '--run-dir', 'run', cwd=folder
    )
    assert result.returncode == 0, result.stderr
    return folder / 'run'


def test_two_workers_follow_one_process(alone, pictures, tmp_path):
    flags = ['--data', pictures, '--steps', STEPS, '--seed', 1, '--workers', 2, '--run-dir', tmp_path / 'run']
    with started(*flags, cwd=tmp_path) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0 and errors == '' and 'Workers: 2.' in output
    assert output.count('Done') == output.count('Devices') == output.count('discriminator loss') == 1
    assert distance(tmp_path / 'run', alone) < TOLERANCE
    losses = [
        np.loadtxt(folder / 'log.csv', delimiter=',', skiprows=1, usecols=range(6))
        for folder in (tmp_path / 'run', alone)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_with_statistics_of_their_own_two_workers_go_another_way(alone, pictures, tmp_path):
    flags = ['--data', pictures, '--steps', STEPS, '--seed', 1, '--workers', 2, '--run-dir', tmp_path / 'run']
    with started(*flags, '--local-batch-norm', '--reduce-precision', 'bf16', cwd=tmp_path) as process:
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0 and errors == ''
    assert distance(tmp_path / 'run', alone) > 20 * TOLERANCE


def test_a_run_goes_on_with_more_workers_that_have_no_checkpoint_and_start_in_any_order(alone, pictures, tmp_path):
    run_dir = shutil.copytree(alone, tmp_path / 'run')
    addresses = cluster.free_addresses(2)
    flags = ['--data', pictures, '--resume', 10, '--run-dir', 'run']
    with started(*flags, cwd=tmp_path / 'other', members=(1, addresses)) as worker:
        time.sleep(3)
        with started(*flags, cwd=tmp_path, members=(0, addresses)) as chief:
            output, errors = chief.communicate(timeout=240)
            assert chief.returncode == 0 and errors == ''
        assert worker.communicate(timeout=240) == ('', '') and worker.returncode == 0
    assert distance(run_dir, alone) < TOLERANCE and steps(run_dir) == list(range(1, STEPS + 1))
    assert not (tmp_path / 'other' / 'run').exists()


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_of_this_machine_that_dies_or_hangs_ends_the_others(pictures, tmp_path, number):
    run_dir = tmp_path / 'run'
    flags = ['--data', pictures, '--workers', 2, '--run-dir', run_dir, '--resume', '--worker-timeout', 10]
    with started(*flags, '--epochs', 999_999, cwd=tmp_path) as process:
        wait_for(12, run_dir / 'log.csv')
        workers = children(process)
        os.kill(workers[1], number)
        _, errors = process.communicate(timeout=240)
    what = 'was killed by SIGKILL' if number == signal.SIGKILL else 'did not answer for 10 s'
    assert process.returncode == 2 and errors.count('\n') == 1 and f'worker 1 {what}' in errors
    assert not any(Path(f'/proc/{pid}').exists() for pid in workers)
    if number == signal.SIGKILL:  # the same command goes on
        with started(*flags, '--steps', steps(run_dir)[-1] + 2, cwd=tmp_path) as process:
            _, errors = process.communicate(timeout=240)
        assert process.returncode == 0 and errors == '' and steps(run_dir) == list(range(1, len(steps(run_dir)) + 1))


def test_a_worker_that_ends_while_it_is_asked_is_waited_for(monkeypatch):
    class Ending:
        sentinel = 'ending'
        statuses = iter([None, 3, 3])
        exitcode = property(lambda self: next(self.statuses))

    waited_for = []
    monkeypatch.setattr(cluster.connection, 'wait', waited_for.append)
    cluster.wait_until_one_fails([Ending(), SimpleNamespace(sentinel='other', exitcode=None)])
    assert waited_for == [['ending', 'other']]


@pytest.mark.parametrize(('number', 'victim'), [(signal.SIGKILL, 0), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)])
def test_a_worker_that_dies_or_hangs_ends_those_of_other_machines(pictures, tmp_path, number, victim):
    addresses = cluster.free_addresses(2)
    flags = ['--data', pictures, '--run-dir', tmp_path / 'run', '--worker-timeout', 10, '--epochs', 999_999]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(started(*flags, cwd=tmp_path, members=(rank, addresses))) for rank in range(2)]
        wait_for(2, tmp_path / 'run' / 'log.csv')
        workers[victim].send_signal(number)
        _, errors = workers[1 - victim].communicate(timeout=240)
        assert workers[1 - victim].returncode == 2 and errors.count('\n') == 1, errors
        who = f'worker {victim}, {addresses[victim]} has ended' if number == signal.SIGKILL else 'another worker hangs'
        assert f'worker {1 - victim}: {who}' in errors


@pytest.mark.parametrize('whom', ['all', 'worker'])
def test_a_signal_to_any_worker_stops_all_after_the_same_step_and_saves(pictures, tmp_path, whom):
    run_dir = tmp_path / 'run'
    flags = ['--data', pictures, '--workers', 2, '--run-dir', run_dir, '--epochs', 999_999]
    with started(*flags, cwd=tmp_path) as process:
        wait_for(2, run_dir / 'log.csv')
        if whom == 'all':
            process.send_signal(signal.SIGINT)
        else:
            os.kill(children(process)[1], signal.SIGTERM)
        output, errors = process.communicate(timeout=240)
    last = steps(run_dir)[-1]
    assert process.returncode == 0 and errors == '' and output.count(f'Stopped and saved at step {last}') == 1
    assert tensors(run_dir, last)['global_step'] == last


def test_an_error_of_the_chief_is_said_once(alone, pictures, tmp_path):
    run_dir = shutil.copytree(alone, tmp_path / 'run')
    with started('--data', pictures, '--workers', 2, '--resume', '--run-dir', run_dir, cwd=tmp_path) as process:
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 2 and errors.count('\n') == 1 and f'all of {STEPS} steps' in errors


def test_a_worker_that_is_never_reached_is_named(pictures, tmp_path):
    addresses = cluster.free_addresses(2)
    with started('--data', pictures, '--worker-timeout', 0.1, cwd=tmp_path, members=(0, addresses)) as process:
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 2 and errors.count('\n') == 1
    assert f'worker 1, {addresses[1]}, cannot be reached' in errors


def test_a_batch_that_cannot_be_shared_out_equally_is_an_error(pictures, tmp_path):
    result = run_command('train.py', '--data', pictures, '--batch-size', 16, '--workers', 3, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.count('\n') == 1 and '--batch-size 15 or 18' in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_parts_of_all_workers_are_an_epoch_once():
    system = SYSTEMS['oreilly']._replace(batch_size=6)
    faces = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)  # 18 and two that are held out
    for size in (1, 2, 3, 6):
        members = [cluster.Cluster(rank, ('',) * size) for rank in range(size)]
        parts = [train.batches(system, faces, 7, 0, each.part(6)) for each in members]
        together = [[next(part) for part in parts] for _ in range(3)]
        whole = train.batches(system, faces, 7, 0)
        for some in together:
            images, latents = next(whole)
            np.testing.assert_array_equal(np.concatenate([part[0] for part in some]), images)
            np.testing.assert_array_equal(np.concatenate([part[1] for part in some]), latents)
        assert sorted(number for some in together for part in some for number in part[0].ravel()) == [
            *range(9),
            *range(10, 19),
        ]


WORKERS = {'worker': ['a:1', 'b:2']}


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        ({'cluster': WORKERS, 'task': {'type': 'worker', 'index': 1}}, (1, ('a:1', 'b:2'))),
        ({'cluster': WORKERS, 'task': {'type': 'worker', 'index': '1'}}, (1, ('a:1', 'b:2'))),
        ({'cluster': WORKERS | {'chief': ['[::1]:3']}, 'task': {'type': 'worker'}}, (1, ('[::1]:3', 'a:1', 'b:2'))),
        ({'cluster': {'worker': ['a:1']}, 'task': {'type': 'worker'}, 'environment': 'cloud'}, (0, ('a:1',))),
    ],
)  # fmt: skip
def test_tf_config_names_the_workers(monkeypatch, config, expected):
    config['task'].setdefault('index', 0)
    monkeypatch.setenv('TF_CONFIG', json.dumps(config))
    members = cluster.from_environment(60)
    assert (members.rank, members.addresses) == expected and members.chief == (members.rank == 0)


@pytest.mark.parametrize(
    'config',
    [
        '{',
        '5',
        '{}',
        {'cluster': WORKERS},
        {'cluster': WORKERS, 'task': {'type': 'worker', 'index': 2}},
        {'cluster': WORKERS, 'task': {'type': 'worker', 'index': 'x'}},
        {'cluster': WORKERS, 'task': {'type': 'chief', 'index': 0}},
        {'cluster': WORKERS | {'ps': ['c:3']}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': WORKERS | {'chief': ['c:3', 'd:4']}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': {'worker': ['a:1', 'a:1']}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': {'worker': ['a:1', 'b']}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': {'worker': ['a:1', 'b:99999']}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': {'worker': ['a:1', 5]}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': {'worker': 5}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': [], 'task': {'type': 'worker', 'index': 0}},
    ],
)
def test_a_malformed_tf_config_is_an_error(monkeypatch, config):
    monkeypatch.setenv('TF_CONFIG', config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(cli.UserError, match='TF_CONFIG') as error:
        cluster.from_environment(60)
    assert '\n' not in str(error.value)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='a socket filter of Linux')
def test_a_socket_on_all_interfaces_hears_only_what_is_sent_to_its_address():
    with socket.create_server(('0.0.0.0', 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(('127.0.0.2', port), timeout=5).close()
        cluster.listen_only_on('127.0.0.1', port)
        socket.create_connection(('127.0.0.1', port), timeout=5).close()
        with pytest.raises(TimeoutError):
            socket.create_connection(('127.0.0.2', port), timeout=0.5)


def test_gradients_are_packed_into_few_buffers_from_the_end(monkeypatch):
    import replication
    from runtime import tf

    sent = []

    def all_reduce(x, replicas):
        sent.append(x)
        return x * tf.cast(replicas.count, x.dtype)

    monkeypatch.setattr(replication, 'all_reduce', all_reduce)
    monkeypatch.setattr(replication, 'BUFFER_BYTES', 40)
    values = [np.arange(n, dtype=np.float32).reshape(-1, 2) + n for n in (2, 6, 30, 4, 6)]
    with tf.Graph().as_default(), tf.Session() as session:
        means = replication.mean_gradients(list(map(tf.constant, values)), replication.Replicas(3, 0, 1.0))
        results, buffers = session.run([means, sent])
    for result, value in zip(results, values, strict=True):
        np.testing.assert_allclose(result, value)
    assert [len(buffer) for buffer in buffers] == [10, 30, 8]


def test_one_process_reduces_nothing_and_two_reduce_few_buffers(monkeypatch):
    import replication

    monkeypatch.setattr(replication, 'BUFFER_BYTES', replication.BUFFER_BYTES / 16)  # layers are a quarter as wide
    system = chosen_system(choose_settings(parse_arguments(['--width', '0.25'])))

    def operations(replicas):
        graph = train.build_graph(system, 0, replicas=replicas).graph
        return [operation for operation in graph.get_operations() if operation.type == 'CollectiveReduceV2']

    assert operations(None) == []
    inputs = [operation.inputs[0].shape for operation in operations(replication.Replicas(2, 0, 1.0))]
    sizes = [shape.num_elements() for shape in inputs if shape.is_fully_defined()]
    gradients = [size for size in sizes if 10**4 < size < 4 * 10**5]
    assert 2 <= len(gradients) <= 5 and sizes.count(max(sizes)) == 1
