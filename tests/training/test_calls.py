"""The session calls of a run: what they are fed, how many steps each makes, and whether XLA compiles them."""

import itertools
import threading
import time

import numpy as np
import pytest
from conftest import log, new_run

import graph.steps
import train
from graph.replica import Replica
from graph.session import tf
from helper import get_batch
from rundir.run_json import read_run
from training import calls
from training.calls import Calls, pad_to, prefetch

FACES = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 3), dtype=np.uint8)


class FakeModel:
    """Keys of a feed in place of placeholders."""

    count, batch, input_z, learning_rate = 'count', 'batch', 'input_z', 'learning_rate'


def feeds(run, number, steps=1):
    """The first feeds of a run whose calls make up to `steps` steps."""
    run_calls = Calls(run, Replica())
    run_calls.steps = steps
    return list(itertools.islice(run_calls.feeds(FakeModel, 0), number))


def test_a_call_gets_the_batches_of_its_steps_until_something_is_due(monkeypatch):
    faces = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1)
    run = new_run('--batch-size 4 --sample-every 6 --checkpoint-every 100 --steps 15 --steps-per-call 5', faces)
    ones = feeds(run, 15)
    whole = feeds(run, 5, steps=4)
    assert [feed['count'] for feed in ones] == [1] * 15
    assert [feed['count'] for feed in whole] == [4, 2, 2, 4, 3]  # epochs end after 4, 8 and 12, a grid is due after 6
    assert {feed['learning_rate'] for feed in ones + whole} == {2e-4}
    for key in ('batch', 'input_z'):
        fed = [part for feed in whole for part in np.split(feed[key], feed['count'])]
        np.testing.assert_array_equal(fed, [feed[key] for feed in ones])

    # A compiled program always takes the five batches that it has room for.
    run.settings['xla'] = True
    for compiled, feed in zip(feeds(run, 5, steps=4), whole, strict=True):
        for key in ('batch', 'input_z'):
            assert len(compiled[key]) == 20 and not compiled[key][4 * feed['count'] :].any()
            np.testing.assert_array_equal(compiled[key][: 4 * feed['count']], feed[key])
    run.settings['xla'] = None

    # Of faces on the device only the indices are fed.
    monkeypatch.setattr(calls, 'gpu_memory', lambda: 1 << 30)
    for indices, feed in zip(feeds(run, 5, steps=4), whole, strict=True):
        np.testing.assert_array_equal(get_batch(faces, indices['batch']), feed['batch'])


@pytest.mark.parametrize(
    ('memory', 'flags', 'max_steps', 'stored'),
    [
        (0, '', 1, False),
        (0, '--steps-per-call 7', 7, False),
        (1 << 30, '', calls.MAX_STEPS, True),
        (1 << 30, '--steps-per-call 7', 7, True),
        (4 * FACES.nbytes, '', calls.MAX_STEPS, False),  # too large for a quarter of the memory
    ],
)
def test_a_gpu_makes_many_steps_in_a_call_on_faces_in_its_memory(monkeypatch, memory, flags, max_steps, stored):
    monkeypatch.setattr(calls, 'gpu_memory', lambda: memory)
    run_calls = Calls(new_run(flags, FACES), Replica())
    assert run_calls.max_steps == max_steps and run_calls.stored_shape == (FACES.shape if stored else ())


def test_the_images_of_a_call_that_feeds_them_are_limited(monkeypatch):
    monkeypatch.setattr(calls, 'MAX_FED', 3 * 16 * 28 * 28 * 3 * 4)  # three batches of 16 float32 images
    assert Calls(new_run('--steps-per-call 7', FACES), Replica()).max_steps == 3
    monkeypatch.setattr(calls, 'gpu_memory', lambda: 1 << 30)
    assert Calls(new_run('--steps-per-call 7', FACES), Replica()).max_steps == 7


@pytest.mark.parametrize(('seconds', 'steps'), [(0.01, 100), (0.25, 16), (3, 1)])
def test_calls_make_as_many_steps_as_fit_into_a_second(monkeypatch, seconds, steps):
    clock = iter([10.0, 10.0 + 4 * seconds])
    monkeypatch.setattr(calls.time, 'perf_counter', lambda: next(clock))
    monkeypatch.setattr(calls, 'MAX_SECONDS', 4.0)
    run_calls = Calls(new_run('--batch-size 5 --steps-per-call 100', FACES), Replica())
    run_calls.model = type('Model', (FakeModel,), {'losses': train.dcgan.Losses(*'abcd')})
    run_calls.ready = iter([{'count': 4}])
    run_calls.replica.run = lambda session, losses, feed, stop: (type(losses)(*[np.arange(9.0)] * 4), False)
    losses, stopped = run_calls.run_steps(None, run_calls.next_feed(), None)
    assert run_calls.steps == steps and not stopped
    assert run_calls.images_per_second == pytest.approx(5 / seconds)
    np.testing.assert_array_equal(losses.d_fake, np.arange(4))  # without the room for more steps


def test_rows_of_zeros_fill_an_array():
    np.testing.assert_array_equal(pad_to(4, np.ones((2, 3))), [[1] * 3, [1] * 3, [0] * 3, [0] * 3])
    np.testing.assert_array_equal(pad_to(2, np.arange(1, 3)), [1, 2])


def test_the_next_batch_is_made_while_the_last_one_is_in_use():
    made, more = [], threading.Event()

    def items():
        for item in range(3):
            made.append(item)
            more.set()
            yield item
        raise OSError('the disk is gone')

    ready = prefetch(items())
    assert next(ready) == 0
    more.clear()
    assert made == [0, 1] or (more.wait(60) and made == [0, 1])
    assert next(ready) == 1 and next(ready) == 2
    with pytest.raises(OSError, match='the disk is gone'):
        next(ready)


@pytest.mark.parametrize('fails', [False, True])
def test_on_a_gpu_the_faster_of_compiled_and_not_is_chosen_and_kept(tmp_path, monkeypatch, capsys, fails, few_layers):
    def repeat(self, step, inputs, shapes, size, count, xla):
        results = graph.steps.repeat(step, inputs, shapes, max(size, 2) if xla else count, count)
        if xla and fails:
            before = tf.debugging.Assert(False, ['no libdevice'])
        else:  # the slower is the one that is not compiled
            before = tf.py_func(lambda: time.sleep(0 if xla or fails else 0.3), [], [])
        with tf.control_dependencies([before]):
            return [tf.identity(result) for result in results]

    monkeypatch.setattr(calls, 'gpu_memory', lambda: 1 << 30)
    flags = '--width 0.05 --batch-size 4 --steps 6 --samples 4'
    with monkeypatch.context() as context:
        context.setattr(Replica, 'repeat', repeat)
        run = new_run(f'{flags} --steps-per-call 3', FACES, tmp_path / 'run')
        assert train.train(run, Replica()) == 6
    assert read_run(run.directory)['settings']['xla'] is not fails
    line = capsys.readouterr().out.splitlines()[0]
    assert ('inf ms/step on; not using XLA' if fails else 'ms/step on; using XLA') in line
    # Nothing was trained by measuring.
    plain = new_run(f'{flags} --no-xla', FACES, tmp_path / 'plain')
    train.train(plain, Replica())
    assert log(run.directory) == log(plain.directory)
