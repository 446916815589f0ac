import io
import tracemalloc

import numpy as np
import pytest
from conftest import log, new_run, read_events, read_log
from PIL import Image

from dcgan import Losses
from graph.session import tf
from rundir.log_csv import LOG_COLUMNS
from training import log as module
from training.curves import MAX_POINTS
from training.log import Log, summary

RNG = np.random.default_rng(0)
FACES = RNG.integers(0, 256, (20, 28, 28, 3), dtype=np.uint8)


def image_of(value):
    return np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))


def values_by_tag(events):
    """The steps and values of each tag."""
    values = {}
    for event in events:
        for value in event.summary.value:
            values.setdefault(value.tag, []).append((event.step, value))
    return values


@pytest.fixture
def run(tmp_path):
    """A run of 4 steps an epoch whose directory is open."""
    run = new_run('--batch-size 4 --epochs 2', FACES, tmp_path)
    run.open_directory()
    return run


def scores(*values):
    return np.array(values, np.float32).reshape(1, -1, 1)


def add_step(logger, step, losses, *args):
    """Add one step, with two losses and `scores`."""
    d_loss, g_loss, *of_images = losses
    logger.add_steps(step, Losses(np.float32([d_loss]), np.float32([g_loss]), *of_images), *args)


# --- one step after the other


def test_a_step_is_logged_at_once_with_six_digits(run, tmp_path):
    with Log(run, 0) as logger:
        add_step(logger, 1, (1.23456789, 0.5, scores(0.25, 0.75), scores(0.125)), 90.0, None)
        add_step(logger, 5, (1e-9, 0.5, scores(1, 0), scores(1)), 90.123456789, 12.3456789)
        assert [list(row.values()) for row in read_log(tmp_path)] == [
            ['1', '1', '1.23457', '0.5', '0.5', '0.125', '90', ''],
            ['5', '2', '1e-09', '0.5', '0.5', '1', '90.1235', '12.3457'],
        ]
    assert log(tmp_path)[0] == [name for name in LOG_COLUMNS if name != 'images_per_second']


def test_the_steps_of_a_call_are_logged_as_if_one_by_one(run, tmp_path):
    d_loss, g_loss, d_real, d_fake = RNG.uniform(0, 1, (4, 3)).astype(np.float32)
    d_real, d_fake = (np.stack([each, each / 2], axis=1)[..., np.newaxis] for each in (d_real, d_fake))
    with Log(run, 0) as together:
        together.add_steps(7, Losses(d_loss, g_loss, d_real, d_fake), 90.0, 2.5)
        together.print_losses(7, FACES[:4])
    whole, events = log(tmp_path), values_by_tag(read_events(tmp_path))
    for path in tmp_path.glob('events.*'):
        path.unlink()
    run.open_directory()
    with Log(run, 0) as one_by_one:
        for n in range(3):
            losses = d_loss[n], g_loss[n], d_real[n : n + 1], d_fake[n : n + 1]
            add_step(one_by_one, 5 + n, losses, 90.0, 2.5 if n == 2 else None)
        one_by_one.print_losses(7, FACES[:4])
    assert log(tmp_path) == whole and [row[0] for row in whole[1:]] == ['5', '6', '7'] and whole[-1][-1] == '2.5'
    for tag, [(step, value)] in values_by_tag(read_events(tmp_path)).items():
        assert step == 7 and value == events[tag][0][1], tag


def test_a_grid_is_recorded_with_the_means_since_the_last_one(run, tmp_path, capsys):
    with Log(run, 0) as logger:
        add_step(logger, 1, (1.0, 0.5, scores(0.2, 0.4), scores(0.1, 0.1)), 30.0, None)
        add_step(logger, 2, (2.0, 1.5, scores(0.6, 0.8), scores(0.3, 0.3)), 60.0, None)
        assert logger.print_losses(2, FACES[:4])['d_loss'] == 1.5
        add_step(logger, 3, (7.0, 9.0, scores(0.5, 0.5), scores(0.5, 0.5)), 10.0, None)
        assert logger.print_losses(3, FACES[:4])['d_loss'] == 7
    line, _ = capsys.readouterr().out.splitlines()
    assert line == (
        'Epoch 1/2, step 2: discriminator loss 1.5000, generator loss 1.0000, D(x) 0.500, D(G(z)) 0.200, '
        f'40.0 images/s, samples {tmp_path}/samples/step-00000002.png'  # 40: the time for both steps, in all
    )
    values = values_by_tag(read_events(tmp_path))
    assert [(step, value.simple_value) for step, value in values['losses/discriminator']] == [(2, 1.5), (3, 7.0)]
    assert [step for step, _ in values['scores/mean D(x)']] == [2, 3]
    np.testing.assert_allclose([value.simple_value for _, value in values['scores/mean D(G(z))']], [0.2, 0.5])
    assert image_of(values['faces/generated'][0][1]).shape == (56, 56, 3)
    assert (tmp_path / 'losses.png').exists()


def test_a_process_that_goes_on_hides_what_was_recorded_of_later_steps(run, tmp_path):
    for step in (0, 7):
        Log(run, step).__exit__(None, None, None)
    starts = {event.step for event in read_events(tmp_path) if event.session_log.status == tf.SessionLog.START}
    assert starts == {1, 8}


def test_events_stay_in_order_if_the_clock_is_set_back(run, tmp_path, monkeypatch):
    for step, seconds in ((0, 2e9), (5, 1e9), (10, 1e9), (20, 5.0)):
        monkeypatch.setattr(module.time, 'time', lambda seconds=seconds: seconds)
        Log(run, step).__exit__(None, None, None)
    events = read_events(tmp_path)
    assert [event.step for event in events if event.session_log.status] == [1, 6, 11, 21]
    times = [event.wall_time for event in events]
    assert times == sorted(times) and times[0] == 2e9


def test_a_process_that_goes_on_plots_the_whole_run(run):
    with Log(run, 0) as whole:
        for step in range(1, 2 * MAX_POINTS + 2):
            add_step(whole, step, (step / 8, 0.5, scores(0.25), scores(0.125)), 90.0, 2.5 if step % 2 else None)
    with Log(run, 2 * MAX_POINTS + 1) as resumed:
        np.testing.assert_allclose(resumed.losses.points, whole.losses.points)
        np.testing.assert_allclose(resumed.distances.points, whole.distances.points)
    assert len(whole.losses.points) == MAX_POINTS and len(whole.distances.points) == MAX_POINTS + 1


def test_memory_does_not_grow_between_grids_that_are_far_apart(run):
    with Log(run, 0) as logger:
        values = 1.0, 0.5, np.full((1, 64, 1), 0.5), np.full((1, 64, 1), 0.5)
        tracemalloc.start()
        for step in range(1, 2 * MAX_POINTS + 2001):
            add_step(logger, step, values, 90.0, None)
            if step == 2 * MAX_POINTS:  # from here on the curves have as many points as they ever have
                before, _ = tracemalloc.get_traced_memory()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert after - before < 100_000  # the scores of 2,000 steps are 2 MB


def test_distances_are_recorded_by_their_level(run, tmp_path):
    with Log(run, 0) as logger:
        logger.add_distances(3, {'28x28': 4.5, '14x14': 2.5})
    values = values_by_tag(read_events(tmp_path))
    assert {tag: value.simple_value for tag, [(_, value)] in values.items()} == {
        'quality/SWD x1000, 28x28': 4.5,
        'quality/SWD x1000, 14x14': 2.5,
    }


def test_a_disk_that_takes_no_more_is_noticed(run):
    run.directory /= 'missing'
    with pytest.raises(OSError, match='missing'), Log(run, 0):
        pass


# --- a whole run


def test_tensorboard_gets_the_means_that_are_printed(trained):
    events = read_events(trained)
    logged = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    assert {step for step, tag in logged if tag == 'losses/discriminator'} == {4, 8, 10}
    (start,) = [event.step for event in events if event.session_log.status]
    assert start == 1
    expected = np.mean([float(row['d_loss']) for row in read_log(trained)[4:8]])
    np.testing.assert_allclose(logged[8, 'losses/discriminator'], expected, rtol=1e-4)


def test_tensorboard_gets_the_graph_the_real_faces_and_each_grid(trained):
    events = read_events(trained)
    (graph,) = [event.graph_def for event in events if event.graph_def]
    names = {node.name for node in tf.GraphDef.FromString(graph).node}
    assert {'input_real', 'input_z', 'generator/layer1/dense/kernel'} <= names
    values = values_by_tag(events)
    assert [step for step, _ in values['faces/generated']] == [0, 4, 8, 10]
    assert [step for step, _ in values['faces/real']] == [0]
    for step, value in values['faces/generated']:
        np.testing.assert_array_equal(image_of(value), Image.open(trained / 'samples' / f'step-{step:08}.png'))


def test_a_run_starts_with_generated_and_real_faces_side_by_side(trained):
    start = np.asarray(Image.open(trained / 'samples' / 'start.png'))
    generated = np.asarray(Image.open(trained / 'samples' / 'step-00000000.png'))
    assert (start[: generated.shape[0], : generated.shape[1]] == generated).all()
    real = start[-6 * 28 :, -7 * 28 :]  # the 40 pictures there are, in a square of 7
    assert real[: 5 * 28].std() > 20 and (real[-28:, 5 * 28 :] == 0).all()


# --- summaries


def test_a_summary_holds_scalars_and_images():
    scalar, image = summary({'loss': 0.5}, {'faces': Image.fromarray(FACES[0])}).value
    assert (scalar.tag, scalar.simple_value) == ('loss', 0.5)
    assert image.tag == 'faces' and (image_of(image) == FACES[0]).all()
    assert (image.image.width, image.image.height, image.image.colorspace) == (28, 28, 3)
