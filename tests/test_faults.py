"""Faults injected for real: killed processes, full and read-only disks, damaged files, impossible arguments."""

import os
import re
import shutil
import signal
import subprocess
import sys

import forkserver
import pytest
from conftest import NARROW, ROOT, assert_one_line, checkpoint_names, cut, flip_bit, log, read_events, run_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import evaluate
import generate
import train
from common import cli
from config.settings import OVERRIDES, flag
from graph.session import tf
from sampling.generator import draw_faces


def tensors(checkpoint):
    """The bytes of all tensors in a checkpoint, by name."""
    saved = tf.train.load_checkpoint(str(checkpoint))
    return {name: saved.get_tensor(name).tobytes() for name in saved.get_variable_to_shape_map()}


# --- killed processes


# Trainings that end themselves at a certain step, by a signal that nothing can catch or delay.
KILLED_WHILE_SAVING = """
import resource, signal, train
from common import cli
from rundir import checkpoints

def save(session, saver, run_dir, kind, step, healthy):
    if step == 20:  # the kernel kills a process whose file grows beyond the limit: here, that of the weights
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    original(session, saver, run_dir, kind, step, healthy)

original, checkpoints.save = checkpoints.save, save
cli.run(train.main)
"""
KILLED_BETWEEN_CHECKPOINTS = """
import os, signal, train
from common import cli
from training.log import Log

def add_steps(self, step, *args):
    original(self, step, *args)
    if step >= 37:
        os.kill(os.getpid(), signal.SIGKILL)

original, Log.add_steps = Log.add_steps, add_steps
cli.run(train.main)
"""


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(tmp_path, pictures):
    # Dropout and label noise draw random numbers in every step.
    flags = ['--system', 'sharma', '--label-noise', 0.1, '--width', 0.0625, '--data', pictures, '--data-dir', tmp_path]
    flags += ['--hold-out', 'images', '--batch-size', 2, '--checkpoint-every', 10, '--sample-every', 50, '--steps', 100]
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    result = run_command('train.py', *flags, '--run-dir', whole, cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    def train_until_killed(code, number, *more):
        command = ['-c', code, *flags, '--run-dir', killed, *more]
        result = forkserver.run(command, cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(ROOT)})
        assert result.returncode == -number, result.stderr

    train_until_killed(KILLED_WHILE_SAVING, signal.SIGXFSZ)
    assert log(killed)[-1][0] == '20' and checkpoint_names(killed) == ['step-10']
    assert list(killed.glob('checkpoints/step-20.*.tempstate*'))
    (killed / 'samples' / f'.{"0" * 32}.step-00000010.png').touch()  # as if it had been killed while writing a grid
    train_until_killed(KILLED_BETWEEN_CHECKPOINTS, signal.SIGKILL, '--resume', '--steps-per-call', '7')
    assert 37 <= int(log(killed)[-1][0]) < 40
    assert checkpoint_names(killed) == ['keep-20', 'step-10', 'step-20', 'step-30']
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


def test_a_run_whose_settings_change_on_resume_is_exact_from_then_on(copy, tmp_path):
    # Batches of 8, 5 in an epoch, become batches of 4, 10 in an epoch: step 6 ends the first batch of the second epoch.
    changes = '--learning-rate 1e-3 --batch-size 4 --r1 1 --r1-every 2 --flip 0.5 --label-noise 0.1 --clip-value 1'
    flags = '--resume', '6', *changes.split(), '--epochs', '2', '--checkpoint-every', '5'
    result = run_command('train.py', '--run-dir', copy, *flags, cwd=tmp_path)
    assert result.returncode == 0 and 'From step 7: ' in result.stdout, result.stderr
    assert 'batch_size 4 (was 8)' in result.stdout and 'learning_rate 0.001 (was 0.0002)' in result.stdout
    assert log(copy)[-1][:2] == ['14', '2']

    again = shutil.copytree(copy, tmp_path / 'again')
    result = run_command('train.py', '--run-dir', again, '--resume', '10', cwd=tmp_path)
    assert result.returncode == 0 and 'From step' not in result.stdout, result.stderr
    assert log(again) == log(copy)
    assert tensors(again / 'checkpoints' / 'step-14') == tensors(copy / 'checkpoints' / 'step-14')


# --- damaged files


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_ends_the_same(trained, copy, tmp_path):
    for name in ('step-10', 'keep-10'):
        flip_bit(copy / 'checkpoints' / f'{name}.data-00000-of-00001')
    result = run_command('train.py', '--run-dir', copy, '--resume', cwd=tmp_path)
    assert result.returncode == 0 and 'step-10 is damaged, falling back' in result.stdout
    assert tensors(copy / 'checkpoints' / 'step-10') == tensors(trained / 'checkpoints' / 'step-10')
    assert log(copy) == log(trained)


def test_a_run_without_an_intact_checkpoint_is_not_started_again(copy, tmp_path):
    for file in (copy / 'checkpoints').glob('*.data*'):
        cut(file)
    assert_one_line(run_command('train.py', '--run-dir', copy, '--resume', cwd=tmp_path), 'no intact checkpoint')
    assert len(log(copy)) == 11


# --- locales

EVERY_COMMAND = """
import os, pathlib, sys
import evaluate, generate, train
from common import cli

def main():
    os.chdir(sys.argv[1])
    run, data = pathlib.Path('run').absolute(), pathlib.Path('pictures.zip').absolute()
    new = '--width', '0.0625', '--batch-size', '8', '--data-dir', 'data', '--data'
    for command, *arguments in (
        (train, '--run-dir', run, *new, data, '--steps', '2', '--hold-out', 'images'),
        (train, '--run-dir', run, '--resume', '--steps', '4', '--evaluate-every', '2'),
        (train, '--run-dir', run.with_name('second'), *new, data, '--steps', '1', '--init-from', run),
        (generate, '--checkpoint', run, '--out', run.with_name('faces')),
        (generate, '--checkpoint', run, '--export', run.with_name('exported')),
        (generate, '--checkpoint', run, '--export', run.with_name('model'), '--format', 'saved_model'),
        (evaluate, run.with_name('exported'), '--data', data, '--out', run.with_name('evaluation')),
    ):
        sys.argv[1:] = map(str, arguments)
        command.main()

cli.run(main)
"""


def test_every_command_takes_paths_in_any_encoding_in_a_locale_of_ascii(tmp_path, pictures):
    folder = tmp_path / os.fsdecode('Köln in UTF-8, '.encode() + 'Köln in Latin-1, [1e-4]*'.encode('latin-1'))
    folder.mkdir()
    shutil.copy(pictures, folder)
    environment = os.environ | {'PYTHONPATH': str(ROOT), 'LC_ALL': 'C', 'PYTHONUTF8': '0'}
    command = [sys.executable, '-c', EVERY_COMMAND, folder]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr.count('\n') == 1, result.stderr  # few are held out
    assert {'pictures.zip', 'data', 'run', 'second', 'faces', 'exported', 'model', 'evaluation'} == {
        path.name for path in folder.iterdir()
    }
    run = (folder / 'run').rename(tmp_path / 'run')  # TensorFlow's own reader of events takes only UTF-8
    assert log(run)[-1][0] == '4' and checkpoint_names(run)[-1] == 'step-4' and len(read_events(run)) > 4


# --- disks


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a disk with some options, or remounts it with others; skips the test where it may not."""
    folder = tmp_path / 'disk'

    def mount(options):
        again = 'remount,' if folder.exists() else ''
        folder.mkdir(exist_ok=True)
        command = ['mount', '-t', 'tmpfs', '-o', again + options, 'tmpfs', str(folder)]
        if shutil.which('mount') is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip('only root can mount a small disk')
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(['umount', '--lazy', str(folder)], check=True)


def test_a_disk_that_fills_up_while_saving_costs_no_checkpoint(disk, tmp_path, pictures):
    run_dir = disk('size=9m') / 'run'  # a checkpoint of this width has 6 MB
    flags = ['--width', 0.25, '--data', pictures, '--data-dir', tmp_path, '--batch-size', 2]
    flags += ['--checkpoint-every', 2, '--steps', 4]
    result = run_command('train.py', *flags, '--run-dir', run_dir, cwd=tmp_path)
    assert_one_line(result, 'no checkpoint of step 4', str(run_dir))
    assert [path.name for path in sorted((run_dir / 'checkpoints').iterdir())] == [
        'step-2.data-00000-of-00001',
        'step-2.index',
    ]
    assert len(next(draw_faces(run_dir, 3, 0))) == 3
    disk('size=40m')
    result = run_command('train.py', '--run-dir', run_dir, '--resume', cwd=tmp_path)
    assert result.returncode == 0 and log(run_dir)[-1][0] == '4'


def test_a_disk_that_fills_up_while_a_grid_is_written_ends_the_run_in_one_line(disk, tmp_path, pictures):
    folder = disk('size=2m')
    with open(folder / 'filler', 'wb') as filler:
        filler.write(bytes(2 * 2**20 - 20_480))
    flags = ['--data', pictures, '--data-dir', tmp_path, '--batch-size', 2, '--steps', 9, '--sample-every', 1]
    result = run_command('train.py', *NARROW, *flags, '--run-dir', folder / 'run', cwd=tmp_path)
    assert_one_line(result, str(folder / 'run'), 'space')


def test_a_read_only_folder_ends_a_command_in_one_line(disk, trained, tmp_path):
    folder = disk('size=40m')
    shutil.copytree(trained, folder / 'run')
    disk('ro')
    result = run_command('train.py', '--run-dir', folder / 'run', '--resume', '--epochs', 3, cwd=tmp_path)
    assert_one_line(result, str(folder / 'run'), 'Read-only')
    assert_one_line(run_command('generate.py', '--out', folder / 'out', cwd=tmp_path), 'Read-only')


# --- arguments

COMMANDS = {'train.py': train, 'generate.py': generate, 'evaluate.py': evaluate}
# Values that each flag refuses.
RANGES = {
    'train.py': {
        '--epochs': ('0', '-1', '1.5', 'x', '', '1000001', '9' * 5000),
        '--steps': ('0', '1e9', '1000000001'),
        '--batch-size': ('1', '65537', 'nan'),
        '--learning-rate': ('0', '1.1', 'inf', 'nan', '-0.1', '1e400', 'x'),
        '--learning-rate-ratio': ('0', '1001', 'inf'),
        '--discriminator-batch-norm': ('yes',),
        '--r1': ('-1', '1e7'),
        '--r1-every': ('0', '1.5'),
        '--hold-out': ('faces',),
        '--steps-per-call': ('0', '10001'),
        '--flip': ('-0.1', '1.1'),
        '--augment': ('color', ''),
        '--augment-target': ('-0.1', '1.1'),
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
        '--image-size': ('15', '1025', '64x', '64x8', 'x', ''),
        '--channels': ('2', '0'),
        '--init-from': ('',),
        '--freeze-discriminator': ('-1', '101'),
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
        '--workers': ('0', '1025', '1.5'),
        '--worker-timeout': ('0', '86401', 'inf', 'nan'),
        '--data': ('',),
        '--data-dir': ('',),
        '--run-dir': ('',),
        '--attribute-table': ('',),
    },
    'generate.py': {
        '--count': ('0', '1000001', 'x'),
        '--seed': ('-1', str(2**63 + 1)),
        '--scale': ('0', '65'),
        '--truncate': ('0', '1.01', 'nan'),
        '--interpolate': ('1', '1001'),
        '--attribute-grid': ('0', '65'),
        '--latents': ('',),
        '--project': ('',),
        '--directions': ('0', '101'),
        '--arithmetic': ('', '1000000', '1,', '-', 'a + b'),
        '--format': ('jpg',),
        '--out': ('',),
        '--size': ('27', '65'),
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
    """The line on stderr that a command ends with because of its arguments, or None if it accepts them."""
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(sys, 'argv', [script, *arguments])
        for stream in ('stdout', 'stderr'):  # `cli.run` replaces them
            patch.setattr(sys, stream, getattr(sys, stream))
        try:
            with pytest.raises(SystemExit) as exit:
                cli.run(COMMANDS[script].parse_arguments)
        finally:
            signal.signal(signal.SIGTERM, handler)
    output, error = capsys.readouterr()
    if exit.value.code == 0:
        assert error == '' and (output == '' or output.startswith('usage: '))
        return None
    assert exit.value.code == 2 and output == '' and len(error.splitlines()) == 1 and error.endswith('\n')
    return error


@pytest.mark.parametrize(
    ('script', 'flag', 'value'),
    [(script, flag, value) for script, flags in RANGES.items() for flag in flags for value in flags[flag]],
)
def test_a_value_out_of_range_is_refused_with_its_flag_and_the_range(script, flag, value, monkeypatch, capsys):
    error = parse(script, [f'{flag}={value}'], monkeypatch, capsys)
    assert error.startswith(f'{script}: error: ') and flag in error
    assert re.search(r'from \S+ to|above 0 to|choose from|is empty|explicit argument', error)


def test_every_value_of_a_system_has_a_range():
    assert {flag(name) for name in OVERRIDES} < set(RANGES['train.py'])


CONTRADICTIONS = {
    'train.py --resume': '--run-dir',
    'train.py --gif': '--run-dir',
    'generate.py --export mine --count 20': '--count',
    'generate.py --export mine --out faces': '--out',
    'generate.py --with Male Young --without Young': '--with and --without both name Young',
}


@pytest.mark.parametrize('command', CONTRADICTIONS)
def test_flags_that_contradict_each_other_are_an_error(command, monkeypatch, capsys):
    script, *arguments = command.split()
    error = parse(script, arguments, monkeypatch, capsys)
    assert error.startswith(f'{script}: error: ') and CONTRADICTIONS[command] in error


SWITCHES = (
    '--xla', '--deterministic', '--no-discriminator-batch-norm',
    '--gif', '--devices', '--list-systems', '--local-batch-norm', '--sources', '--help', '-h',
    '--', '-', '--unknown', '@file', '-1', '%s',
)  # fmt: skip
WORDS = st.one_of(
    st.sampled_from([flag for flags in RANGES.values() for flag in flags]),
    st.sampled_from(SWITCHES),
    st.integers().map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_categories=[]), max_size=9),
)
ARGUMENTS = st.lists(WORDS | st.tuples(WORDS, WORDS).map('='.join), max_size=6)


@pytest.mark.parametrize('script', RANGES)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(arguments=ARGUMENTS)
def test_any_arguments_are_accepted_or_refused_in_one_line(script, arguments, monkeypatch, capsys):
    parse(script, arguments, monkeypatch, capsys)
