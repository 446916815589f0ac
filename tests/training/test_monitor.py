import os
import re
import shlex
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import chosen, new_run

import train
from graph.replica import Replica
from graph.session import open_session, tf
from rundir.checkpoints import Checkpoint, find_all
from training import monitor
from training.monitor import Contents, Evaluator, FailureMonitor, contents, sign_of_failure

RNG = np.random.default_rng(0)
FACES = RNG.integers(96, 160, (64, 28, 28, 3), dtype=np.uint8)


class FakeLog:
    """Keeps the lines and the distances that it gets."""

    def __init__(self):
        self.printed, self.distances = [], {}

    def print(self, text):
        self.printed.append(text)

    def add_distances(self, step, distances):
        self.distances[step] = distances


# --- the distance to held-out faces


@pytest.fixture
def evaluator(tmp_path) -> Evaluator:
    (tmp_path / 'log.csv').write_text('step,swd\n')
    return Evaluator(new_run('', RNG.integers(0, 256, (100, 28, 28, 3), dtype=np.uint8), tmp_path))


def distance_of(evaluator, images, step=1):
    """The distance that is measured of a generator that always draws `images`, uint8 (n, 28, 28, 3)."""
    log = FakeLog()
    with tf.Graph().as_default() as graph, open_session(graph) as session:
        z = tf.placeholder(tf.float32, [None, 100])
        samples = tf.gather(tf.constant(images / 127.5 - 1, tf.float32), tf.range(tf.shape(z)[0]) % len(images))
        samples.set_shape([None, 28, 28, 3])
        distance = evaluator.evaluate(session, SimpleNamespace(input_z=z, samples=samples), step, log)
    return distance, log


def test_samples_like_the_held_out_faces_have_the_distance_0(evaluator):
    distance, log = distance_of(evaluator, evaluator.run.dataset.faces[9::10])
    assert distance == 0 and set(log.distances) == {1}
    assert log.printed == ['Step 1: distance to held-out faces 0.00']


def test_the_distance_is_the_mean_over_the_levels(evaluator):
    distance, log = distance_of(evaluator, evaluator.run.dataset.faces[:10] // 2, step=7)
    levels = log.distances[7]
    assert (
        set(levels) == {'28x28', '14x14'} and distance == pytest.approx(np.mean(list(levels.values()))) and distance > 1
    )


def test_a_smaller_distance_is_the_best(evaluator):
    assert [evaluator.is_best(distance) for distance in (5.0, 6.0, 5.0, 4.0, 4.5)] == [True, False, False, True, False]
    _, log = distance_of(evaluator, evaluator.run.dataset.faces[9::10])
    assert 'best so far 4.00' in log.printed[0]


def test_a_run_that_goes_on_knows_its_best_distance(tmp_path):
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'checkpoints' / 'best-2.index').touch()
    (tmp_path / 'log.csv').write_text('step,swd\n1,\n2,3.5\n3,2\n')
    evaluator = Evaluator(new_run('', FACES, tmp_path))
    assert not evaluator.is_best(3.5) and evaluator.is_best(3.4)


def test_a_run_without_held_out_faces_may_have_an_evaluator(tmp_path):
    (tmp_path / 'log.csv').write_text('step,swd\n')
    Evaluator(new_run('', FACES[:9], tmp_path))


# --- signs of failure


def test_contents_are_the_deviation_between_faces_and_the_share_of_values_between_black_and_white():
    assert contents(np.stack([FACES[0]] * 5)) == (0, 1)
    pair = np.stack([np.zeros((4, 4, 3)), np.full((4, 4, 3), 10)]).astype(np.uint8)
    assert contents(pair) == (5, 0.5) and contents(255 - pair) == (5, 0.5)


# The lowest loss is the entropy of both labels: of 0.9 it is -0.9 ln 0.9 - 0.1 ln 0.1 = 0.3251, of 0 and of 1 nothing.
# Noise of 0.05 moves 0 and 1 by 0.025 on average, and -0.025 ln 0.025 - 0.975 ln 0.975 = 0.1169 for each of the two.
@pytest.mark.parametrize(
    ('flags', 'd_loss', 'generated', 'sign'),
    [
        ('', 0.9, 40, None),
        ('', 0.34, 40, None),
        ('', 0.326, 40, '0.3251'),
        ('--real-label 1', 0.005, 40, '0.0000'),
        ('--real-label 0 --fake-label 1', 0.005, 40, '0.0000'),
        ('--real-label 0 --fake-label 1', 0.011, 40, None),
        ('--real-label 0.1 --fake-label 1', 0.326, 40, '0.3251'),
        ('--system kdnuggets', 0.243, 40, '0.2338'),
        ('--system kdnuggets', 0.244, 40, None),
        ('--real-label 1 --label-noise 0.05', 0.243, 40, '0.2338'),
        ('', 0.9, 4.9, 'hardly differ'),
        ('', 0.9, 5.1, None),
    ],
)
def test_a_loss_near_the_lowest_possible_one_and_equal_faces_are_signs_of_failure(flags, d_loss, generated, sign):
    found = sign_of_failure(chosen(flags)[1], d_loss, 1, Contents(generated, 1), Contents(50, 1))
    assert found is None if sign is None else sign in found


@pytest.mark.parametrize(
    ('d_loss', 'g_loss', 'drawn', 'real', 'sign'),
    [
        (20, 99, 1, 1, None),
        (101, 1, 1, 1, r'losses explode \(discriminator 101, generator 1\)'),
        (1, 4.5e12, 1, 1, r'generator 4.5e\+12'),
        (1, -101, 1, 1, 'losses explode'),
        (1, 1, 0.05, 0.9, r'95.0% of all pixels are 0 or 255 \(real faces 10.0%\)'),
        (1, 1, 0.1, 0.9, None),
        (1, 1, 0, 0, None),  # drawings in black and white
    ],
)
def test_exploding_losses_and_saturated_faces_are_signs_of_failure(d_loss, g_loss, drawn, real, sign):
    found = sign_of_failure(chosen('')[1], d_loss, g_loss, Contents(50, drawn), Contents(50, real))
    assert found is None if sign is None else re.search(sign, found)


def check(run, steps, failing, log):
    """Check faces at each of `steps`; those in `failing` are all the same."""
    watch = FailureMonitor(run, 0)
    for step in steps:
        watch.check(step, 0.9, 1, np.repeat(FACES[:1], 9, axis=0) if step in failing else FACES[:9], log)
    return watch


@pytest.mark.parametrize(
    ('every', 'failing', 'warned'),
    [
        (500, range(0, 10_000), 1500),  # at least three grids in a row
        (100, range(0, 10_000), 1000),  # and at least 1000 steps
        (100, range(300, 10_000), 1200),  # since the last grid without a sign
        (100, range(300, 1101), None),
        (100, range(300, 4000), 1200),  # the run has recovered at its end
        (2000, range(2000, 4001), None),
    ],
)
def test_a_run_that_has_been_failing_for_long_is_reported_once(tmp_path, every, failing, warned):
    log = FakeLog()
    watch = check(new_run('', FACES, tmp_path), range(every, 5000, every), failing, log)
    assert len(log.printed) == (0 if warned is None else 1)
    assert watch.run.warning == (log.printed[0] if warned and failing[-1] > 5000 else '')
    if warned is None:
        assert not (tmp_path / 'warnings.log').exists()
    else:
        assert (tmp_path / 'warnings.log').read_text() == f'Step {warned}. {log.printed[0]}\n'
        last = max(step for step in range(0, warned, every) if step not in failing or step == 0)
        assert f'since step {last} the faces hardly differ' in log.printed[0]


def test_a_warning_can_name_a_run_that_is_not_in_utf_8(tmp_path):
    run_dir = tmp_path / os.fsdecode('Köln'.encode('latin-1'))
    (run_dir / 'checkpoints').mkdir(parents=True)
    (run_dir / 'checkpoints' / 'step-0.index').touch()
    check(new_run('', FACES, run_dir), range(500, 5000, 500), range(10_000), FakeLog())
    assert os.fsencode(run_dir) in (run_dir / 'warnings.log').read_bytes()


def test_a_training_that_fails_is_reported_with_the_way_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(monitor, 'FAILING_STEPS', 80)
    run_dir = tmp_path / 'my run'
    flags = '--width 0.05 --batch-size 4 --steps 130 --sample-every 40 --checkpoint-every 20 --ema 0'
    # A generator that wants its images to be told apart: soon all are.
    flags += ' --learning-rate 0.002 --real-label 1 --wanted-label 0'
    train.run_training(new_run(flags, FACES, run_dir), Replica())
    output = capsys.readouterr().out
    warning = output.splitlines()[-1]
    assert re.findall('Warning: .*', output) == [warning] * 2  # when it is noticed, and as the last word
    assert (run_dir / 'warnings.log').read_text().endswith(f'{warning}\n')
    assert len((run_dir / 'warnings.log').read_text().splitlines()) == 1
    assert 'since step 40 the discriminator separates real from generated faces' in warning
    command = shlex.split(warning.rpartition(': ')[2])
    assert command == ['python', 'train.py', '--resume', '40', '--run-dir', str(run_dir)]
    assert Checkpoint(40, run_dir / 'checkpoints' / 'step-40') in find_all(run_dir)
