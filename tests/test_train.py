import csv
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import NARROW, ROOT, assert_one_line, run_command
from PIL import Image

import generate
import helper
import metrics
import record
import rundir
import runtime
import train
from settings import chosen_system
from systems import SYSTEMS


def rows(run_dir):
    with open(run_dir / 'log.csv', newline='') as file:
        return list(csv.DictReader(file))


def checkpoints(run_dir):
    return sorted(path.stem for path in (run_dir / 'checkpoints').glob('*.index'))


def test_a_run_directory_holds_everything(trained):
    log = rows(trained)
    assert list(log[0]) == ['step', 'epoch', 'd_loss', 'g_loss', 'd_real', 'd_fake', 'images_per_second', 'swd']
    assert [(int(row['step']), int(row['epoch'])) for row in log] == [(n, 1 + (n > 5)) for n in range(1, 11)]
    assert all(0 < float(row['d_real']) < 1 and 0 < float(row['d_loss']) < 50 for row in log)
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
        plot.verify()


def test_the_last_checkpoints_and_one_a_kept_epoch_stay(trained):
    assert checkpoints(trained) == ['keep-10', 'keep-5', 'step-10', 'step-6', 'step-9']


def test_a_run_says_its_devices_its_faces_and_its_losses_and_is_calm(tmp_path, pictures):
    result = run_command(
        'train.py', *NARROW, '--data', pictures, '--batch-size', 8, '--steps', 2, '--sample-every', 1, cwd=tmp_path
    )
    assert result.returncode == 0 and result.stderr == ''
    (run_dir,) = (tmp_path / 'runs').iterdir()
    for part in ('Devices: CPU:0', 'Faces: 40', 'step 1: discriminator loss', 'D(G(z))', 'images/s', str(run_dir.name)):
        assert part in result.stdout
    assert len(rows(run_dir)) == 2 and checkpoints(run_dir) == ['step-2']


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(tmp_path, pictures, trained):
    common = ('train.py', '--run-dir', tmp_path / 'run', '--data-dir', tmp_path)
    first = run_command(*common, *NARROW, '--data', pictures, '--batch-size', 8, '--steps', 7, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    with open(tmp_path / 'run' / 'log.csv', 'a') as log:
        log.write('8,2,1,1,1,1,1\n9,2,1,1')  # what a crash can leave behind
    second = run_command(*common, '--resume', '--epochs', 2, cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    names = ('d_loss', 'g_loss', 'd_real', 'd_fake')
    resumed, whole = (
        [[float(row[name]) for name in names] for row in rows(run)] for run in (tmp_path / 'run', trained)
    )
    assert len(resumed) == 10
    np.testing.assert_allclose(resumed, whole, rtol=1e-3)


def test_batches_of_a_resumed_run_are_those_of_the_whole_one():
    system = SYSTEMS['oreilly']._replace(batch_size=4)
    faces = np.arange(18, dtype=np.uint8).reshape(18, 1, 1, 1)  # 4 batches an epoch

    def some(step, count):
        taken = itertools.islice(train.batches(system, faces, 7, step), count)
        return [(images.ravel().tolist(), latents.tolist()) for images, latents in taken]

    whole = some(0, 10)
    assert some(3, 7) == whole[3:] and some(4, 6) == whole[4:]
    assert whole[0] != whole[4] and whole[0][1] != whole[1][1]


def test_the_next_batch_is_made_while_the_last_is_in_use():
    made, more = [], threading.Event()

    def items():
        for number in range(3):
            made.append(number)
            more.set()
            yield number
        raise OSError('the disk is gone')

    ready = train.prefetch(items())
    assert next(ready) == 0
    more.clear()
    assert more.wait(10) and made == [0, 1]
    assert next(ready) == 1 and next(ready) == 2
    with pytest.raises(OSError, match='the disk is gone'):
        next(ready)


@pytest.mark.parametrize('flags', [('--precision', 'bf16'), ('--xla', *NARROW)])
def test_a_run_may_be_fast_in_other_ways(tmp_path, pictures, flags):
    result = run_command(
        'train.py', '--data', pictures, '--run-dir', 'run', '--batch-size', 8, '--steps', 3, *flags, cwd=tmp_path
    )
    assert result.returncode == 0 and result.stderr == '' and len(rows(tmp_path / 'run')) == 3
    settings = json.loads((tmp_path / 'run' / 'run.json').read_text())['settings']
    assert (settings['precision'], settings['xla']) == (('bf16', False) if 'bf16' in flags else ('fp32', True))


def test_the_graph_does_not_grow_with_the_samples(tmp_path):
    built = train.build_graph(SYSTEMS['oreilly'], 0)
    assert built.graph.finalized
    operations = len(built.graph.get_operations())
    latents = np.zeros((4, 100), np.float32)
    with runtime.open_session(built.graph) as session:
        session.run(built.initializer)
        for number in range(10):
            record.show_generator_output(session, built, latents, tmp_path / f'{number}.png')
    assert len(built.graph.get_operations()) == operations


def test_resume_goes_back_to_a_named_step_and_sets_later_ones_aside(copy, tmp_path):
    result = run_command('train.py', '--run-dir', copy, '--resume', 5, '--steps', 6, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [int(row['step']) for row in rows(copy)] == [1, 2, 3, 4, 5, 6]
    assert checkpoints(copy) == ['keep-5', 'step-6']
    aside = copy / 'checkpoints' / 'abandoned'
    assert sorted(path.stem for path in aside.glob('*.index')) == ['keep-10', 'step-10', 'step-6', 'step-9']
    grids = ['step-00000000.png', 'step-00000004.png', 'step-00000006.png']
    assert [path.name for path in rundir.find_grids(copy)] == grids
    assert len(list((copy / 'samples' / 'abandoned').iterdir())) == 2  # of steps 8 and 10
    assert str(aside) in result.stdout


def test_resume_of_a_run_without_a_checkpoint_begins_again(copy, tmp_path):
    shutil.rmtree(copy / 'checkpoints')
    result = run_command('train.py', '--run-dir', copy, '--resume', '--steps', 2, cwd=tmp_path)
    assert result.returncode == 0 and len(rows(copy)) == 2


def test_a_kept_checkpoint_can_be_the_newest(copy):
    for path in (copy / 'checkpoints').glob('step-*'):
        path.unlink()
    assert rundir.find_checkpoint(copy) == (copy, copy / 'checkpoints' / 'keep-10')


def test_the_checkpoint_with_the_least_distance_is_kept_and_drawn_from(tmp_path, pictures):
    flags = *NARROW, '--data', pictures, '--run-dir', 'run', '--batch-size', 8, '--keep-every', 100
    result = run_command('train.py', *flags, '--evaluate-every', 3, '--steps', 9, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    run_dir = tmp_path / 'run'
    distances = {int(row['step']): float(row['swd']) for row in rows(run_dir) if row['swd']}
    assert list(distances) == [3, 6, 9] and len(set(distances.values())) == 3
    best = min(distances, key=distances.get)
    assert [name for name in checkpoints(run_dir) if name.startswith('best-')] == [f'best-{best}']
    assert rundir.find_checkpoint(run_dir)[1].name == f'best-{best}'
    # What was logged is what the faces of that checkpoint give, drawn from the same latents.
    settings = json.loads((run_dir / 'run.json').read_text())['settings']
    faces = helper.load_faces(pictures, 28, tmp_path / 'data' / 'prepared')
    _, held_out = helper.split(len(faces))
    latents = generate.draw_latents(chosen_system(settings), np.random.default_rng((3, 0)), len(held_out))
    with generate.restored_generator(run_dir) as (_, _, session, z, drawn):
        drawn = np.concatenate(list(generate.draw(session, z, drawn, latents)))
    assert np.mean(list(metrics.swd(drawn, faces[held_out]).values())) == pytest.approx(distances[best], rel=0.02)
    # Only a smaller distance takes its place, in a process that goes on, too; going back before it forgets it.
    forged = (run_dir / 'log.csv').read_text().replace(f'{distances[best]:.6g}\n', '0.001\n')
    (run_dir / 'log.csv').write_text(forged)
    result = run_command('train.py', '--run-dir', 'run', '--resume', '--steps', 12, cwd=tmp_path)
    assert result.returncode == 0 and 'the least before 0.00' in result.stdout
    assert [name for name in checkpoints(run_dir) if name.startswith('best-')] == [f'best-{best}']
    assert rundir.find_best(run_dir)[0] == best and rundir.least_distance(run_dir) == 0.001
    rundir.go_back(run_dir, best - 1)
    assert rundir.find_best(run_dir) is None and rundir.least_distance(run_dir) == math.inf


def test_distances_are_in_the_plot_and_in_tensorboard(tmp_path, pictures, copy):
    from runtime import tf

    with Image.open(copy / 'losses.png') as plot:
        assert plot.size == (1000, 400)
    result = run_command('train.py', '--run-dir', copy, '--resume', '--steps', 13, '--evaluate-every', 3, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with Image.open(copy / 'losses.png') as plot:
        assert plot.size == (1500, 400)
    events = [event for path in copy.glob('events.*') for event in tf.train.summary_iterator(str(path))]
    logged = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    levels = [logged[12, f'SWD x1000, {side}x{side}'] for side in (28, 14)]
    (row,) = [row for row in rows(copy) if row['step'] == '12']
    assert float(row['swd']) == pytest.approx(np.mean(levels), rel=1e-5)


def test_without_held_out_faces_nothing_is_compared(tmp_path, pictures):
    (tmp_path / 'few').mkdir()
    for number in range(9):
        Image.new('RGB', (30, 30), (number, 0, 0)).save(tmp_path / 'few' / f'{number}.png')
    flags = '--data', 'few', '--batch-size', 2, '--evaluate-every', 1
    assert_one_line(run_command('train.py', *flags, cwd=tmp_path), '--evaluate-every', '9 faces')
    assert not (tmp_path / 'runs').exists()


def test_tensorboard_events_hold_the_means_that_are_printed(trained):
    from runtime import tf

    (path,) = trained.glob('events.out.tfevents.*')
    events = list(tf.train.summary_iterator(str(path)))
    logged = {(event.step, value.tag): value.simple_value for event in events for value in event.summary.value}
    assert {step for step, tag in logged if tag == 'd_loss'} == {4, 8, 10}
    (start,) = [event.step for event in events if event.session_log.status]
    assert start == 1  # TensorBoard forgets what was written before of this step and later ones
    expected = np.mean([float(row['d_loss']) for row in rows(trained)[4:8]])
    np.testing.assert_allclose(logged[8, 'd_loss'], expected, rtol=1e-4)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_ends(tmp_path, pictures, number):
    command = [sys.executable, ROOT / 'train.py', *NARROW, '--data', pictures, '--run-dir', tmp_path / 'run']
    command += ['--epochs', '999999', '--batch-size', '8', '--sample-every', '2']
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while 'step 2:' not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(number)
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0 and errors == ''
    step = int(rows(tmp_path / 'run')[-1]['step'])
    assert checkpoints(tmp_path / 'run') == [f'step-{step}']
    assert f'Stopped and saved at step {step}' in output


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing(copy, tmp_path):
    from runtime import tf

    newest = str(copy / 'checkpoints' / 'step-10')
    saved = tf.train.load_checkpoint(newest)
    with tf.Graph().as_default(), tf.Session() as session:
        for name in saved.get_variable_to_shape_map():
            value = saved.get_tensor(name)
            tf.get_variable(name, initializer=value * np.nan if name == 'discriminator/layer4/bias' else value)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, newest)
    before = checkpoints(copy)
    result = run_command('train.py', '--run-dir', copy, '--resume', '--epochs', 4, cwd=tmp_path)
    assert_one_line(result, 'not finite at step 11')
    assert checkpoints(copy) == before and len(rows(copy)) == 10


BAD_ARGUMENTS = {
    '--batch-size 0': '--batch-size',
    '--batch-size many': '--batch-size',
    '--learning-rate 0': '--learning-rate',
    '--learning-rate nan': '--learning-rate',
    '--beta1 1': '--beta1',
    '--real-label 2': '--real-label',
    '--width 0': '--width',
    '--ema 1': '--ema',
    '--precision fp16': '--precision',
    '--epochs -1': '--epochs',
    '--system unknown': '--system',
    '--resume': '--run-dir',
    '--run-dir x --resume newer': '--resume',
    '--run-dir . --resume': 'run.json',
    '--data missing.zip': 'missing.zip',
    '--unknown': '--unknown',
    '--run-dir x --resume ²': '--resume',
}


@pytest.mark.parametrize('arguments', BAD_ARGUMENTS)
def test_bad_arguments_end_in_one_line_and_write_nothing(tmp_path, arguments):
    result = run_command('train.py', *arguments.split(), cwd=tmp_path)
    assert_one_line(result, BAD_ARGUMENTS[arguments])
    assert result.stderr.startswith('train.py: error: ') and result.stdout == '' and list(tmp_path.iterdir()) == []


def test_what_a_run_is_made_of_cannot_change_on_resume(copy, tmp_path):
    result = run_command('train.py', '--run-dir', copy, '--resume', '--batch-size', 4, cwd=tmp_path)
    assert_one_line(result, '--batch-size is 8 in this run')


def test_a_run_is_not_resumed_with_other_faces(copy, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()
    for number in range(40):
        Image.new('RGB', (30, 30), (number, 0, 0)).save(other / f'{number}.png')
    result = run_command('train.py', '--run-dir', copy, '--resume', '--data', other, '--epochs', 3, cwd=tmp_path)
    assert_one_line(result, 'does not hold the faces')


def test_a_run_that_is_over_says_so(copy, tmp_path):
    result = run_command('train.py', '--run-dir', copy, '--resume', cwd=tmp_path)
    assert_one_line(result, 'all of 10 steps')


def test_a_directory_with_a_run_in_it_is_not_written_over(copy, pictures, tmp_path):
    result = run_command('train.py', '--run-dir', copy, '--data', pictures, cwd=tmp_path)
    assert_one_line(result, '--resume')


def test_too_few_images_for_a_batch_are_an_error(tmp_path, pictures):
    result = run_command('train.py', '--data', pictures, '--batch-size', 41, cwd=tmp_path)
    assert_one_line(result, '40 images do not fill a batch of 41')


def test_without_celeb_a_the_error_names_the_demo(tmp_path):
    result = run_command('train.py', '--sources', 'http://127.0.0.1:1/dead', cwd=tmp_path)
    message = result.stderr.splitlines()[-1]
    assert result.returncode == 2 and 'http://127.0.0.1:1/dead' in message and '--data demo' in message
    assert str(generate.PRETRAINED) not in message and not (tmp_path / 'runs').exists()
