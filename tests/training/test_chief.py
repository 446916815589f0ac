"""What the chief does next to training."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import checkpoint_names, new_run, read_log

import train
from common import cli
from dcgan import Losses
from graph.replica import Replica
from training.chief import Chief

FACES = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 3), dtype=np.uint8)


@pytest.fixture
def chief(tmp_path):
    """The chief of a run that evaluates nothing, in place of whose session the weights are finite."""
    run = new_run('--batch-size 4 --sample-every 7', FACES, tmp_path)
    run.open_directory()
    model = SimpleNamespace(store_statistics='statistics', input_z='z', weights_finite='finite', saver=None)
    session = SimpleNamespace(run=lambda fetch, feed=None: fetch == 'finite')
    times = itertools.count(step=100)  # each look at the clock is 100 seconds after the last
    with Chief(run, session, model, step=3, clock=lambda: next(times)) as chief:
        yield chief


def losses_of(count):
    """Losses of `count` steps with two images each."""
    return Losses(*np.ones((2, count)), *np.full((2, count, 2, 1), 0.5))


@pytest.mark.parametrize('name', Losses._fields)
@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_the_first_step_whose_losses_are_not_finite_is_named(chief, name, value):
    losses = losses_of(4)
    chief.check_finite(9, losses, weights=True)
    for index in (2, 1):  # steps 8 and 7
        getattr(losses, name)[index] = value
    with pytest.raises(cli.UserError, match='the training diverged: not finite at step 7'):
        chief.check_finite(9, losses, weights=True)


def test_weights_are_checked_only_if_something_is_due(chief):
    chief.session.run = lambda fetch, feed=None: False
    chief.check_finite(9, losses_of(1), weights=False)
    with pytest.raises(cli.UserError, match='not finite at step 9'):
        chief.check_finite(9, losses_of(1), weights=True)


def test_checkpoints_are_also_saved_by_time(chief, monkeypatch):
    saved = []
    monkeypatch.setattr('rundir.checkpoints.save', lambda *args: saved.append(args[3:5]))
    monkeypatch.setattr(chief.run, 'due', lambda step, last: {'keep'} if step == 20 else set())
    for step in range(4, 32):  # 100 seconds each, and 100 more to save
        assert not chief.after_steps(step, losses_of(1), 90.0, last=False)
    # After 300 seconds, then after 900 each since the last one, be it due by time or by the schedule.
    assert saved == [('step', 6), ('step', 15), ('keep', 20), ('step', 29)]


def test_a_grid_is_due_when_the_schedule_or_the_end_wants_one(chief, monkeypatch):
    saved = []
    monkeypatch.setattr('rundir.checkpoints.save', lambda *args: saved.append(args[3:5]))
    chief.save_time = math.inf
    due = [chief.after_steps(step, losses_of(1), 90.0, last=step == 9) for step in (6, 7, 8, 9)]
    assert due == [False, True, False, True] and saved == [('keep', 8), ('step', 9)]
    assert [int(row['step']) for row in read_log(chief.run.directory)] == [6, 7, 8, 9]


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    # The losses of the last step are still finite: only its update breaks the weights.
    run = new_run('--width 0.05 --batch-size 4 --steps 1 --samples 4', FACES, tmp_path / 'run')
    monkeypatch.setitem(vars(run), 'system', replace(run.system, learning_rate=math.nan))
    with pytest.raises(cli.UserError, match='not finite at step 1'):
        train.train(run, Replica())
    assert checkpoint_names(run.directory) == [] and read_log(run.directory) == []
