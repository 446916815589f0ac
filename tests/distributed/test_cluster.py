"""Workers of a TF_CONFIG: how it is read, and real processes that train together, are killed and hang."""

import contextlib
import json
import signal
import socket
import threading
import time
from types import SimpleNamespace

import forkserver
import numpy as np
import pytest
from conftest import ROOT

from common import cli
from distributed.cluster import LAUNCHED, Worker, answers, from_environment, shard_size
from distributed.launch import free_addresses
from graph.replica import Replica
from graph.session import tf

WORKERS = {'worker': ['a:1', 'b:2']}


@pytest.mark.parametrize(
    ('config', 'index', 'addresses', 'launched'),
    [
        ({'cluster': WORKERS, 'task': {'type': 'worker', 'index': 1}}, 1, ['a:1', 'b:2'], False),
        ({'cluster': WORKERS, 'task': {'type': 'worker', 'index': '1'}}, 1, ['a:1', 'b:2'], False),
        (
            {'cluster': WORKERS | {'chief': ['[::1]:3']}, 'task': {'type': 'worker', 'index': 0}},
            1,
            ['[::1]:3', 'a:1', 'b:2'],
            False,
        ),
        (
            {'cluster': WORKERS, 'task': {'type': 'worker', 'index': 0}, 'environment': 'cloud'},
            0,
            ['a:1', 'b:2'],
            False,
        ),
        (
            {'cluster': WORKERS, 'task': {'type': 'worker', 'index': 0}, 'environment': LAUNCHED},
            0,
            ['a:1', 'b:2'],
            True,
        ),
    ],
)
def test_tf_config_names_the_workers(monkeypatch, config, index, addresses, launched):
    monkeypatch.setenv('TF_CONFIG', json.dumps(config))
    worker = from_environment(timeout=7)
    assert (worker.index, worker.addresses, worker.timeout, worker.launched) == (index, addresses, 7, launched)
    assert worker.count == len(addresses) and worker.is_chief == (index == 0)


@pytest.mark.parametrize(
    'config',
    [
        '',
        '{}',
        '{"cluster": {}}',
        '{"task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_without_several_addresses_a_process_trains_alone(monkeypatch, config):
    monkeypatch.setenv('TF_CONFIG', config)
    assert type(from_environment(timeout=7)) is Replica


@pytest.mark.parametrize(
    'config',
    [
        '{',
        '5',
        '[]',
        {'cluster': WORKERS},
        {'cluster': WORKERS, 'task': {'type': 'worker', 'index': 2}},
        {'cluster': WORKERS, 'task': {'type': 'worker', 'index': -1}},
        {'cluster': WORKERS, 'task': {'type': 'worker', 'index': 'x'}},
        {'cluster': WORKERS, 'task': {'type': 'chief', 'index': 0}},
        {'cluster': WORKERS | {'ps': ['c:3']}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': WORKERS | {'chief': ['c:3', 'd:4']}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': {'worker': ['a:1', 'a:1']}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': {'worker': ['a:1', 'b']}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': {'worker': ['a:1', 'b:99999']}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': {'worker': ['a:1', 5]}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': {'worker': 5}, 'task': {'type': 'worker', 'index': 0}},
        {'cluster': ['a:1'], 'task': {'type': 'worker', 'index': 0}},
    ],
)
def test_a_malformed_tf_config_is_an_error(monkeypatch, config):
    monkeypatch.setenv('TF_CONFIG', config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(cli.UserError, match='environment variable TF_CONFIG .* unset TF_CONFIG$') as error:
        from_environment(timeout=7)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('count', [1, 2, 3, 6])
def test_shards_are_equal_and_make_up_the_batch(count):
    batch = np.arange(6)
    shards = [batch[Worker(index, ['a:1'] * count, 1.0).shard(6)] for index in range(count)]
    assert {len(shard) for shard in shards} == {6 // count}
    np.testing.assert_array_equal(np.concatenate(shards), batch)


@pytest.mark.parametrize(('size', 'advice'), [(16, '--batch-size 15 or 18'), (2, '--batch-size 3')])
def test_a_batch_that_cannot_be_divided_equally_is_an_error(size, advice):
    with pytest.raises(cli.UserError, match=f'{advice}$'):
        shard_size(size, 3)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_random_numbers_are_shards_of_those_of_one_process(dtype):
    def draw(replica, rows):
        with tf.Graph().as_default(), tf.Session() as session:
            return session.run(replica.random(tf.random.stateless_uniform, tf.constant([rows, 3]), [1, 2], dtype))

    shards = [draw(Worker(index, ['a:1'] * 3, 1.0), 2) for index in range(3)]
    np.testing.assert_array_equal(np.concatenate(shards), draw(Replica(), 6))


def assert_close(result, other, tolerance):
    for name in ('losses', 'moments', 'weights'):
        for value, expected in zip(result[name], other[name], strict=True):
            np.testing.assert_allclose(value, expected, rtol=tolerance, atol=tolerance, err_msg=name)


def test_workers_started_in_any_order_train_as_one_process(start_small_training, finish):
    addresses = free_addresses(2)
    other = start_small_training('--seed', 5, worker=(1, addresses))
    alone = finish(start_small_training())
    chief = finish(start_small_training('--seed', 1, worker=(0, addresses)))
    assert other.communicate(timeout=240) == ('', '') and other.returncode == 0
    assert chief['settings'] == alone['settings']
    assert_close(chief, alone, 1e-4)


@pytest.mark.parametrize(('number', 'victim'), [(signal.SIGKILL, 0), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)])
def test_a_worker_that_dies_or_hangs_ends_the_others(start_small_training, number, victim):
    addresses = free_addresses(2)
    flags = '--worker-timeout', 2, '--steps', 999_999, '--pause', 0.1
    workers = [start_small_training(*flags, worker=(index, addresses)) for index in range(2)]
    assert workers[0].stdout.readline() and workers[0].stdout.readline()
    workers[victim].send_signal(number)
    _, errors = workers[1 - victim].communicate(timeout=240)
    assert workers[1 - victim].returncode == 2 and errors.count('\n') == 1, errors
    assert f'worker {1 - victim}: another worker has ended, hangs or cannot be reached; ' in errors


def test_workers_wait_for_one_that_works_for_longer_than_the_timeout(start_small_training, finish):
    addresses = free_addresses(2)
    flags = '--worker-timeout', 1.5, '--hold', 2.5
    workers = [start_small_training(*flags, worker=(index, addresses)) for index in range(2)]
    assert not finish(workers[0])['stopped']
    assert workers[1].communicate(timeout=240) == ('', '') and workers[1].returncode == 0


def listen(alive):
    """A listening socket that answers whoever speaks HTTP/2; if not `alive`, it is like that of a stopped process."""
    server = socket.create_server(('127.0.0.1', 0))

    def greet():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                if connection.recv(3) == b'PRI':
                    connection.sendall(b'settings')

    if alive:
        threading.Thread(target=greet, daemon=True).start()
    return server


def test_a_worker_is_alive_if_it_answers():
    with listen(alive=True) as working, listen(alive=False) as stopped:
        addresses = [f'127.0.0.1:{server.getsockname()[1]}' for server in (working, stopped)]
        assert answers(addresses[0], timeout=60) and not answers(addresses[1], timeout=0.1)
    assert not answers(addresses[1], timeout=60)


def test_a_worker_that_is_silent_for_the_timeout_ends_the_others_wherever_they_are(monkeypatch):
    worker = Worker(0, ['a:1', 'b:2'], timeout=0.1)
    monkeypatch.setattr(worker, '_end', worker._finished.set)
    with listen(alive=False) as stopped:
        worker._watch(f'127.0.0.1:{stopped.getsockname()[1]}')
    assert worker._finished.is_set()


def test_a_worker_that_has_finished_may_leave(monkeypatch):
    worker = Worker(0, ['a:1', *free_addresses(1)], timeout=0.1)
    worker._barrier = None
    worker.barrier(SimpleNamespace(run=lambda _: None))
    monkeypatch.setattr(worker, '_end', lambda: pytest.fail('a worker that left was missed'))
    worker._watch(worker.addresses[1])


ALL_THREADS_END = """
import threading, time
from common import cli
from distributed.cluster import Worker

def report(error, report=cli.exit_status):
    status = report(error)
    time.sleep(0.2)
    return status

cli.exit_status = report
worker = Worker(1, ['a:1', 'b:2'], timeout=60)
for _ in range(4):
    threading.Thread(target=worker._end).start()
worker._end()
"""


def test_a_worker_that_loses_several_others_reports_it_once():
    result = forkserver.run(['-c', ALL_THREADS_END], cwd=ROOT)
    assert result.returncode == 2 and result.stderr.count('\n') == 1, result.stderr


@pytest.mark.parametrize('name', ['Unavailable', 'DeadlineExceeded', 'Aborted', 'Cancelled', 'FailedPrecondition'])
def test_errors_that_a_lost_worker_causes_end_the_others(monkeypatch, name):
    ended = threading.Event()
    worker = Worker(0, ['a:1', 'b:2'], timeout=60)
    monkeypatch.setattr(worker, '_end', ended.set)
    with worker._end_if_others_are_lost():
        raise getattr(tf.errors, f'{name}Error')(None, None, 'lost')
    assert ended.is_set()


def test_other_errors_are_raised():
    worker = Worker(0, ['a:1', 'b:2'], timeout=60)
    with pytest.raises(tf.errors.ResourceExhaustedError), worker._end_if_others_are_lost():
        raise tf.errors.ResourceExhaustedError(None, None, 'out of memory')


def test_a_worker_that_never_listens_is_named(start_small_training):
    addresses = free_addresses(2)
    process = start_small_training('--worker-timeout', 0.1, worker=(0, addresses))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2 and errors.count('\n') == 1
    assert f'worker 0: cannot reach worker 1 ({addresses[1]}); ' in errors


def test_a_port_that_is_in_use_is_an_error(start_small_training):
    addresses = free_addresses(2)
    with socket.create_server(('127.0.0.1', int(addresses[0].split(':')[1]))):
        process = start_small_training(worker=(0, addresses))
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 2 and errors.count('\n') == 1
    assert f'cannot listen on {addresses[0]}' in errors


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_worker_that_waits_for_another_can_be_stopped(start_small_training, number, status):
    addresses = free_addresses(2)
    process = start_small_training(worker=(0, addresses))
    deadline = time.monotonic() + 120
    while not answers(addresses[0], timeout=1):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    output, errors = process.communicate(timeout=240)
    assert (process.returncode, output, errors) == (status, '', '')


def test_an_error_in_one_worker_is_reported_by_it_and_ends_the_others(start_small_training):
    addresses = free_addresses(2)
    workers = [start_small_training('--fail-on', 1, worker=(index, addresses)) for index in range(2)]
    (_, chief), (_, other) = (worker.communicate(timeout=240) for worker in workers)
    assert [worker.returncode for worker in workers] == [2, 2]
    assert chief.count('\n') == 1 and 'another worker has ended' in chief
    assert other.count('\n') == 1 and 'this worker fails' in other
