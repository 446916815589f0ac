"""Faults injected for real: processes killed, disks that are full or read-only, files damaged."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import NARROW, ROOT, assert_one_line, chosen, log, run_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cli
import evaluate
import generate
import record
import rundir
import train
from settings import NEWEST, OVERRIDES, check_settings, flag


def tensors(checkpoint):
    from runtime import tf

    saved = tf.train.load_checkpoint(str(checkpoint))
    return {name: saved.get_tensor(name).tobytes() for name in saved.get_variable_to_shape_map()}


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a disk of so many MB, or again with other options; skips the test without the right to."""
    folder = tmp_path / 'disk'

    def mount(options):
        again = 'remount,' if folder.exists() else ''
        folder.mkdir(exist_ok=True)
        command = ['mount', '-t', 'tmpfs', '-o', again + options, 'tmpfs', str(folder)]
        if shutil.which('mount') is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip('a small disk can be mounted by root alone')
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(['umount', '--lazy', str(folder)], check=True)


def kill_while_saving(process, run_dir):
    """Kill a training while it writes a checkpoint: it is stopped first, and goes on where that came too late."""
    while True:
        assert process.poll() is None, 'no checkpoint was caught'
        if list(run_dir.glob('checkpoints/*.tempstate*')):
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if list(run_dir.glob('checkpoints/*.tempstate*')):
                return process.kill()
            process.send_signal(signal.SIGCONT)


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path, pictures):
    # Everything that draws random numbers in a step: dropout and noise of the labels.
    flags = ['--system', 'sharma', '--label-noise', 0.1, '--width', 0.0625, '--data', pictures, '--data-dir', tmp_path]
    flags += ['--batch-size', 2, '--checkpoint-every', 10, '--sample-every', 50, '--steps', 100]
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    result = run_command('train.py', *flags, '--run-dir', whole, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rng = random.Random(0)
    for moment in ('while saving', 'between'):
        resume = ['--resume'] if killed.exists() else []
        command = [sys.executable, ROOT / 'train.py', *flags, '--run-dir', killed, *resume]
        before = rundir.find_checkpoints(killed)[-1:]
        with subprocess.Popen(list(map(str, command)), cwd=tmp_path, stdout=subprocess.PIPE) as process:
            if moment == 'while saving':
                kill_while_saving(process, killed)
            else:
                while rundir.find_checkpoints(killed)[-1:] == before:
                    assert process.poll() is None
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 0.1))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        if moment == 'while saving':  # what it leaves, and what a kill while a grid is drawn would
            (killed / 'samples' / f'.{"0" * 32}.step-00000010.png').touch()
            assert list(killed.glob('checkpoints/*.tempstate*'))
    result = run_command('train.py', *flags, '--run-dir', killed, '--resume', cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert log(killed) == log(whole) and len(log(whole)) == 101
    expected = tensors(whole / 'checkpoints' / 'step-100')
    assert {'global_step', 'd_optimizer/beta1_power'} < set(expected)
    assert any('Adam_1' in name for name in expected) and any('ExponentialMoving' in name for name in expected)
    assert tensors(killed / 'checkpoints' / 'step-100') == expected
    names = [path.name for folder in ('checkpoints', 'samples') for path in (killed / folder).glob('*')]
    finished = r'(step|keep)-\d+\.(index|png|data-00000-of-00001)|start\.png|abandoned'
    assert all(re.fullmatch(finished, name) for name in names)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES = {
    f'{damage.__name__} {suffix}': (damage, suffix)
    for damage in (cut, flip, type(ROOT).unlink)
    for suffix in ('data-00000-of-00001', 'index')
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(copy, capsys, damage):
    spoil, suffix = DAMAGES[damage]
    for name in ('step-10', 'keep-10'):
        spoil(copy / 'checkpoints' / f'{name}.{suffix}')
    assert rundir.find_step(copy, NEWEST) == copy / 'checkpoints' / 'step-9'
    if damage != 'unlink index':  # then there is no such checkpoint any more
        assert capsys.readouterr().out.count('step-10 is damaged: going back to the one before\n') == 1
    with pytest.raises(cli.UserError, match='no checkpoint of step 10|no whole checkpoint of step 10'):
        rundir.find_step(copy, 10)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_ends_the_same(trained, copy, tmp_path):
    for name in ('step-10', 'keep-10'):
        flip(copy / 'checkpoints' / f'{name}.data-00000-of-00001')
    result = run_command('train.py', '--run-dir', copy, '--resume', cwd=tmp_path)
    assert result.returncode == 0 and 'step-10 is damaged: going back' in result.stdout
    assert tensors(copy / 'checkpoints' / 'step-10') == tensors(trained / 'checkpoints' / 'step-10')
    assert log(copy) == log(trained)


def test_without_a_whole_checkpoint_the_run_is_not_begun_again(copy, tmp_path):
    for file in (copy / 'checkpoints').glob('*.data*'):
        cut(file)
    assert_one_line(run_command('train.py', '--run-dir', copy, '--resume', cwd=tmp_path), 'no whole checkpoint')
    assert len(log(copy)) == 11


def test_only_what_was_never_finished_is_removed(copy):
    folder = copy / 'checkpoints'
    before = {path.name for path in folder.iterdir()}
    for name in (
        'step-11.data-00000-of-00001',
        'step-12.index.tempstate123',
        'step-12.data-00000-of-00001.tempstate123',
    ):
        (folder / name).touch()
    (folder / 'mine.txt').touch()
    (copy / f'.{"a" * 32}.log.csv').touch()
    rundir.go_back(copy, 10)
    assert {path.name for path in folder.iterdir()} == before | {'mine.txt'}
    assert not list(copy.glob('.*'))


def test_the_last_healthy_checkpoint_is_not_deleted(tmp_path):
    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    for step in range(1, 9):
        for suffix in ('index', 'data-00000-of-00001'):
            (folder / f'step-{step}.{suffix}').touch()
    (folder / 'keep-1.index').touch()
    rundir.delete_old(tmp_path, healthy=3)
    names = [path.name for _, path in rundir.find_checkpoints(tmp_path)]
    assert names == ['keep-1', 'step-3', 'step-6', 'step-7', 'step-8']
    assert len(list(folder.iterdir())) == 9


def test_a_run_directory_is_in_use_until_its_process_dies(copy, tmp_path):
    code = f'import pathlib, time, rundir; rundir.lock(pathlib.Path({str(copy)!r})); print(flush=True); time.sleep(99)'
    with subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        result = run_command('train.py', '--run-dir', copy, '--resume', '--epochs', 3, cwd=tmp_path)
        assert_one_line(result, str(copy), 'in use')
        process.kill()
    result = run_command('train.py', '--run-dir', copy, '--resume', cwd=tmp_path)
    assert_one_line(result, 'has all of 10 steps')


def test_a_disk_that_is_full_while_saving_costs_no_checkpoint(disk, tmp_path, pictures):
    run_dir = disk('size=9m') / 'run'  # a checkpoint of this width has 6 MB
    flags = ['--width', 0.25, '--data', pictures, '--data-dir', tmp_path, '--batch-size', 2]
    flags += ['--checkpoint-every', 2, '--steps', 4]
    result = run_command('train.py', *flags, '--run-dir', run_dir, cwd=tmp_path)
    assert_one_line(result, 'no checkpoint of step 4', str(run_dir))
    assert [path.name for path in sorted((run_dir / 'checkpoints').iterdir())] == [
        'step-2.data-00000-of-00001',
        'step-2.index',
    ]
    assert len(next(generate.draw_faces(run_dir, 3, 0))) == 3
    disk('size=40m')
    result = run_command('train.py', '--run-dir', run_dir, '--resume', cwd=tmp_path)
    assert result.returncode == 0 and log(run_dir)[-1][0] == '4'


def test_a_disk_that_is_full_while_a_grid_is_written_ends_in_one_line(disk, tmp_path, pictures):
    folder = disk('size=2m')
    with open(folder / 'filler', 'wb') as filler:
        filler.write(bytes(2 * 2**20 - 20_480))
    flags = ['--data', pictures, '--data-dir', tmp_path, '--batch-size', 2, '--steps', 9, '--sample-every', 1]
    result = run_command('train.py', *NARROW, *flags, '--run-dir', folder / 'run', cwd=tmp_path)
    assert_one_line(result, str(folder / 'run'), 'space')


def test_a_read_only_run_directory_ends_in_one_line(disk, trained, tmp_path):
    folder = disk('size=40m')
    shutil.copytree(trained, folder / 'run')
    disk('ro')
    result = run_command('train.py', '--run-dir', folder / 'run', '--resume', '--epochs', 3, cwd=tmp_path)
    assert_one_line(result, str(folder / 'run'), 'Read-only')
    assert_one_line(run_command('generate.py', '--out', folder / 'out', cwd=tmp_path), 'Read-only')


def test_settings_in_run_json_that_are_none_are_named(copy):
    saved = json.loads((copy / 'run.json').read_text())['settings']
    check_settings(saved)
    check_settings(saved | {'data': '/elsewhere', 'epochs': None, 'steps': 7, 'xla': True, 'ema': 0.0})
    wrong = [('batch_size', 'many'), ('batch_size', -8), ('batch_size', None), ('batch_size', True), ('ema', [1])]
    wrong += [('learning_rate', float('nan')), ('data', 5), ('data', None), ('epochs', None), ('xla', 'yes')]
    wrong += [('seed', 1.5), ('unknown', 1), ('run_dir', 'x')]
    for name, value in wrong:
        with pytest.raises(cli.UserError, match=f'run.json.*{name.replace("_", ".")}'):
            check_settings(saved | {name: value})
    del saved['ema']
    with pytest.raises(cli.UserError, match='ema'):
        check_settings(saved)


@pytest.mark.parametrize('text', ['', '[]', '{"settings": []}', '{"settings": "oreilly"}', '[' * 100_000, '\0', '5'])
def test_a_run_json_of_anything_else_is_an_error(tmp_path, text):
    (tmp_path / 'run.json').write_text(text)
    with pytest.raises(cli.UserError, match='damaged'):
        rundir.read_run(tmp_path)


# The least loss is the entropy of both labels; of 0.9 it is -0.9 ln 0.9 - 0.1 ln 0.1 = 0.3251, of 0 and 1 nothing.
# Noise of 0.05 moves 0 and 1 by 0.025 on average, and -0.025 ln 0.025 - 0.975 ln 0.975 = 0.1169 is of each.
@pytest.mark.parametrize(
    ('flags', 'd_loss', 'drawn', 'sign'),
    [
        ('', 0.9, 40, None),
        ('', 0.34, 40, None),
        ('', 0.326, 40, 'at least 0.3251'),
        ('--real-label 1', 0.005, 40, 'at least 0.0000'),
        ('--real-label 0 --fake-label 1', 0.005, 40, 'at least 0.0000'),
        ('--real-label 0 --fake-label 1', 0.011, 40, None),
        ('--real-label 0.1 --fake-label 1', 0.326, 40, 'at least 0.3251'),
        ('--system kdnuggets', 0.243, 40, 'at least 0.2338'),
        ('--system kdnuggets', 0.244, 40, None),
        ('--real-label 1 --label-noise 0.05', 0.243, 40, 'at least 0.2338'),
        ('', 0.9, 4.9, 'all the same'),
        ('', 0.9, 5.1, None),
    ],
)
def test_signs_of_failure(flags, d_loss, drawn, sign):
    found = record.sign_of_failure(chosen(flags)[1], d_loss, drawn, real=50)
    assert found is None if sign is None else sign in found


def test_a_training_that_fails_is_reported_once_with_the_way_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, 'stop_on_signals', threading.Event)  # the signals of the tests stay as they are
    monkeypatch.setattr(record, 'FAILING_STEPS', 300)
    faces = np.random.default_rng(0).integers(96, 160, (64, 28, 28, 3), dtype=np.uint8)
    run_dir = tmp_path / 'my run'
    flags = '--width 0.05 --batch-size 4 --steps 500 --sample-every 100 --checkpoint-every 50 --ema 0'
    # A generator that wants its images to be told apart: soon all are.
    train.train(chosen(f'{flags} --learning-rate 0.001 --real-label 1 --wanted-label 0')[0], faces, run_dir)
    (warning,) = re.findall('Warning: .*', capsys.readouterr().out)
    assert (run_dir / 'warnings.log').read_text().endswith(f'{warning}\n')
    assert len((run_dir / 'warnings.log').read_text().splitlines()) == 1
    assert 'since step 100 the discriminator tells all faces apart' in warning
    command = shlex.split(warning.split('to go back: ')[1])
    assert command == ['python', 'train.py', '--resume', '100', '--run-dir', str(run_dir)]
    assert (100, run_dir / 'checkpoints' / 'step-100') in rundir.find_checkpoints(run_dir)


def test_without_a_healthy_checkpoint_the_way_back_is_to_start_again(tmp_path):
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'checkpoints' / 'step-200.index').touch()
    way_back = rundir.way_back(tmp_path, healthy=100)
    assert '--learning-rate' in way_back and '--resume' not in way_back


RANGES = {
    'train.py': {
        '--epochs': ('0', '-1', '1.5', 'x', '', '1000001', '٣', '1_0', ' 5 ', '9' * 5000),
        '--steps': ('0', '1e9', '1000000001'),
        '--batch-size': ('1', '65537', 'nan'),
        '--learning-rate': ('0', '1.1', 'inf', 'nan', '-0.1', '1e400', 'x'),
        '--learning-rate-ratio': ('0', '1001', 'inf'),
        '--flip': ('-0.1', '1.1'),
        '--augment': ('color', ''),
        '--instance-noise': ('-0.1', '11'),
        '--evaluate-every': ('0', '1e9'),
        '--beta1': ('1', '-1'),
        '--learning-rate-decay': ('-1e-8', '1.1'),
        '--optimizer': ('sgd',),
        '--clip-value': ('-1', '1e10'),
        '--real-label': ('-0.1', '1.01'),
        '--fake-label': ('-0.1', '1.01'),
        '--wanted-label': ('-0.1', '1.01'),
        '--label-noise': ('-0.1', '1.01'),
        '--latent-size': ('0', '65537', '10.0'),
        '--latent': ('gaussian',),
        '--leaky-slope': ('-0.1', '1.1'),
        '--dropout': ('-0.1', '1'),
        '--weight-stddev': ('-0.1', '11'),
        '--ema': ('1', '-0.1'),
        '--crop': ('0', '179', '10.5'),
        '--samples': ('0', '4097'),
        '--width': ('0', '17', 'nan'),
        '--seed': ('-1', '2147483648'),
        '--resume': ('0', '-1', 'newer', '²', ''),
        '--sample-every': ('0',),
        '--sample-epochs': ('0',),
        '--checkpoint-every': ('0',),
        '--keep-every': ('0',),
        '--system': ('x',),
        '--update-order': ('x\ny',),
        '--precision': ('fp16',),
        '--data': ('',),
        '--data-dir': ('',),
        '--run-dir': ('',),
    },
    'generate.py': {
        '--count': ('0', '10000001', 'x'),
        '--seed': ('-1', str(2**63 + 1)),
        '--scale': ('0', '65'),
        '--truncate': ('0', '1.01', 'nan'),
        '--interpolate': ('1', '1001'),
        '--format': ('jpg',),
        '--out': ('',),
        '--checkpoint': ('',),
        '--export': ('',),
    },
    'evaluate.py': {
        '--data': ('',),
        '--data-dir': ('',),
        '--seed': ('-1', str(2**63 + 1)),
        '--truncate': ('0', '1.01', 'nan'),
        '--out': ('',),
    },
}


def parse(script, arguments, monkeypatch, capsys):
    """What a command makes of arguments: None if it takes them, else the line on stderr that it ends with."""
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    sys.stderr.reconfigure(errors='backslashreplace')  # as the real one is
    previous = signal.getsignal(signal.SIGTERM)
    try:
        cli.run({'train.py': train, 'generate.py': generate, 'evaluate.py': evaluate}[script].parse_arguments)
    except SystemExit as exit:
        error = capsys.readouterr().err
        if exit.code == 0:
            assert {'--help', '-h'} & set(arguments) or any(text.startswith('-h') for text in arguments)
            return None
        assert exit.code == 2 and len(error.splitlines()) == 1 and error.endswith('\n')
        return error
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert capsys.readouterr() == ('', '')
    return None


@pytest.mark.parametrize(
    ('script', 'flag', 'value'),
    [(script, flag, value) for script, flags in RANGES.items() for flag in flags for value in flags[flag]],
)
def test_a_value_out_of_range_is_named_with_its_flag_and_the_range(script, flag, value, monkeypatch, capsys):
    error = parse(script, [f'{flag}={value}'], monkeypatch, capsys)
    assert error.startswith(f'{script}: error: ') and flag in error
    assert re.search(r'from \S+ to|above 0 to|choose from|is empty', error)


def test_every_value_of_a_system_has_a_range():
    assert {flag(name) for name in OVERRIDES} < set(RANGES['train.py'])


CONTRADICTIONS = {
    'train.py --data pictures.zip --sources http://127.0.0.1:1/x': '--sources',
    'train.py --resume': '--run-dir',
    'train.py --sample-every 9 --sample-epochs 9': '--sample-epochs',
    'train.py --gif': '--run-dir',
    'generate.py --export mine --count 20': '--count',
    'generate.py --export mine --out faces': '--out',
}


@pytest.mark.parametrize('command', CONTRADICTIONS)
def test_flags_that_contradict_each_other_are_an_error(tmp_path, command):
    assert_one_line(run_command(*command.split(), cwd=tmp_path), CONTRADICTIONS[command])
    assert list(tmp_path.iterdir()) == []


WORDS = st.one_of(
    st.sampled_from([flag for flags in RANGES.values() for flag in flags]),
    st.sampled_from(
        [
            '--xla',
            '--gif',
            '--preview',
            '--devices',
            '--list-systems',
            '--sources',
            '--help',
            '-h',
            '--',
            '-',
            '--export',
            '--unknown',
            '@file',
            '-1',
            '%s',
        ]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_categories=[]), max_size=9),
)
ARGUMENTS = st.lists(WORDS | st.tuples(WORDS, WORDS).map('='.join), max_size=6)


@pytest.mark.parametrize('script', RANGES)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(arguments=ARGUMENTS)
def test_any_arguments_are_taken_or_end_in_one_line(script, arguments, monkeypatch, capsys):
    parse(script, arguments, monkeypatch, capsys)
