import argparse
import io
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT, assert_one_line

from common import cli


def run_code(code, **options):
    """Run Python code that imports the modules of the project."""
    command = [sys.executable, '-c', code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, **options)


# --- arguments


@pytest.mark.parametrize(
    ('kind', 'text', 'value'),
    [(int, '1', 1), (int, '10', 10), (int, ' 5 ', 5), (int, '1_0', 10), (float, '1', 1.0), (float, '2.5e0', 2.5)],
)
def test_a_number_in_the_range_is_taken(kind, text, value):
    parsed = cli.number(kind, 1, 10)(text)
    assert parsed == value and type(parsed) is kind


@pytest.mark.parametrize(
    ('kind', 'text'),
    [(int, '0'), (int, '11'), (int, '1.5'), (int, 'nan'), (int, ''), (int, '9' * 5000), (float, '0.99'),
     (float, '10.01'), (float, 'nan'), (float, 'inf'), (float, '-inf'), (float, 'x')],
)  # fmt: skip
def test_a_number_out_of_the_range_is_refused_with_the_range(kind, text):
    with pytest.raises(argparse.ArgumentTypeError, match=r'is not a (whole )?number from 1 to 10$'):
        cli.number(kind, 1, 10)(text)


def test_the_lower_end_of_a_range_may_be_excluded():
    parse = cli.number(float, 0, 1, exclusive=True)
    assert parse('1e-9') == 1e-9 and parse('1') == 1
    with pytest.raises(argparse.ArgumentTypeError, match='above 0 to 1'):
        parse('0')


def test_a_path_is_not_empty():
    assert cli.path('runs/x') == Path('runs/x')
    with pytest.raises(argparse.ArgumentTypeError, match='empty'):
        cli.path('')


def test_flags_are_not_abbreviated_and_errors_are_raised():
    parser = cli.Parser('A command.')
    parser.add_argument('--count')
    assert parser.parse_args(['--count', '1']).count == '1'
    with pytest.raises(cli.UserError, match='--cou'):
        parser.parse_args(['--cou', '1'])


# --- folders for results


def test_results_go_into_a_folder_without_files_that_is_gone_if_it_stays_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'faces').mkdir()
    (tmp_path / 'faces' / 'mine').touch()
    with cli.output_folder(None, 'faces') as out:
        assert out == Path('faces-2') and out.is_dir()
    with cli.output_folder(Path('new/x'), 'faces') as out:
        (out / 'result').touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['faces', 'new'] and Path('new/x/result').exists()
    with pytest.raises(cli.UserError, match='faces is not empty: choose another folder with --out'):
        cli.output_folder(Path('faces'), 'faces').__enter__()
    with pytest.raises(NotADirectoryError, match='faces/mine/x'):
        cli.output_folder(Path('faces/mine/x'), 'faces').__enter__()


def test_two_commands_at_once_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with cli.output_folder(None, 'faces') as first, cli.output_folder(None, 'faces') as second:
        assert (first, second) == (Path('faces'), Path('faces-2'))
        with pytest.raises(cli.UserError, match='another command is writing to faces'):
            cli.output_folder(first, '').__enter__()


def test_an_empty_folder_of_the_user_stays(tmp_path):
    with pytest.raises(cli.UserError), cli.output_folder(tmp_path, ''):
        raise cli.UserError('the checkpoint is damaged')
    assert tmp_path.is_dir()


# --- the end of a command


@pytest.mark.parametrize(
    ('error', 'status', 'message'),
    [
        (None, 0, ''),
        (SystemExit(), 0, ''),
        (SystemExit(3), 3, ''),
        (KeyboardInterrupt(), 130, ''),
        (cli.UserError('two\nlines'), 2, 'train.py: error: two lines\n'),
        (OSError(28, 'No space left on device', 'x'), 2, "train.py: error: [Errno 28] No space left on device: 'x'\n"),
    ],
)
def test_every_error_has_an_exit_status_and_at_most_one_line(monkeypatch, capsys, error, status, message):
    monkeypatch.setattr(sys, 'argv', ['some/where/train.py'])
    assert cli.exit_status(error) == status
    assert capsys.readouterr() == ('', message)


def test_an_error_of_the_program_itself_is_shown_with_its_traceback(capsys):
    assert cli.exit_status(ZeroDivisionError('by zero')) == 1
    assert 'ZeroDivisionError: by zero' in capsys.readouterr().err


def test_a_path_that_the_terminal_cannot_show_is_printed_escaped():
    code = "from common import cli; cli.run(lambda: print('\\udcff\\u2580'))"
    result = run_code(code, env={'PYTHONIOENCODING': 'ascii', 'PATH': ''})
    assert result.returncode == 0 and result.stdout == '\\udcff\\u2580\n', result.stderr


def test_a_terminated_command_removes_its_temporary_files(tmp_path):
    code = (
        'import os, pathlib, signal\n'
        'from common import cli, files\n'
        'def main():\n'
        f'    with files.replacing(pathlib.Path({str(tmp_path / "x")!r})):\n'
        '        os.kill(os.getpid(), signal.SIGTERM)\n'
        'cli.run(main)\n'
    )
    result = run_code(code)
    assert result.returncode == 143 and result.stderr == '' and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('error', 'status'),
    [(None, 0), (cli.UserError('x'), 2), (SystemExit(75), 75), (KeyboardInterrupt(), 130), (KeyError(), 1)],
)
def test_streams_and_signals_are_as_before_after_a_command(monkeypatch, error, status):
    def state():
        return [sys.stdin, sys.stdout, sys.stderr, *map(signal.getsignal, cli.stop_signals())]

    def main():
        print('a line')
        print('another', file=sys.stderr)
        assert state() != before
        if error:
            raise error

    monkeypatch.setattr(sys, 'stdout', io.StringIO())  # as in a notebook: it cannot be configured
    monkeypatch.setattr(sys, 'stderr', None)
    before = state()
    with pytest.raises(SystemExit) as exit:
        cli.run(main)
    assert exit.value.code == status and state() == before and sys.stdout.getvalue() == 'a line\n'


# --- streams


@pytest.mark.parametrize('closed', ['<&-', '>&-', '2>&-', '<&- >&- 2>&-'])
def test_a_stream_closed_by_the_caller_does_no_harm(tmp_path, closed):
    code = (
        'import os, subprocess, sys\n'
        'from common import cli\n'
        'def main():\n'
        '    print("out")\n'
        '    print("err", file=sys.stderr)\n'
        '    with open(sys.argv[1], "w") as file:\n'
        '        child = "import sys; sys.exit(None in (sys.stdin, sys.stdout, sys.stderr))"\n'
        '        print(file.fileno() > 2, subprocess.call([sys.executable, "-c", child]), file=file)\n'
        'cli.run(main)\n'
    )
    command = ['sh', '-c', f'exec "$0" "$@" {closed}', sys.executable, '-c', code, tmp_path / 'file']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout in ('out\n', '') and result.stderr in ('err\n', '')
    assert (tmp_path / 'file').read_text() == 'True 0\n'


READER_GONE = (
    'import os, sys\n'
    'from common import cli\n'
    'def main():\n'
    '    with cli.progress(total=9) as bar:\n'
    '        for _ in range(9):\n'
    '            bar.update()\n'
    '            bar.write("a line")\n'
    '            print("err", file=sys.stderr)\n'
    '    sys.stdout.write("unfinished")\n'
    '    sys.exit(7)\n'
    'cli.run(main)\n'
)


@pytest.mark.parametrize('stream', ['stdout', 'stderr'])
def test_a_command_whose_reader_goes_away_goes_on_silently_to_its_usual_status(stream):
    reader, writer = os.pipe()
    os.close(reader)
    other = 'stderr' if stream == 'stdout' else 'stdout'
    options = {stream: writer, other: subprocess.PIPE}
    result = subprocess.run([sys.executable, '-c', READER_GONE], cwd=ROOT, text=True, **options)
    os.close(writer)
    expected = {'stdout': 'a line\n' * 9 + 'unfinished', 'stderr': 'err\n' * 9}
    assert result.returncode == 7 and getattr(result, other) == expected[other]


def test_a_command_whose_terminal_goes_away_goes_on_silently_to_its_usual_status():
    terminal, writer = os.openpty()
    os.close(terminal)
    result = subprocess.run([sys.executable, '-c', READER_GONE], cwd=ROOT, stdout=writer, stderr=writer)
    os.close(writer)
    assert result.returncode == 7


def test_a_stream_on_a_full_disk_is_an_error_of_one_line():
    with open('/dev/full', 'w') as full:
        command = [sys.executable, '-c', 'from common import cli; cli.run(lambda: print("a line"))']
        result = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert_one_line(result, 'No space left on device')


# --- signals

STOP = (
    'import os, signal\n'
    'from common import cli\n'
    'signal.signal(signal.SIG{0}, signal.{1})\n'  # whatever the tests were started with
    'with cli.stop_on_signals() as stop:\n'
    '    os.kill(os.getpid(), signal.SIG{0})\n'
    '    print(stop.is_set(), flush=True)\n'
    '    os.kill(os.getpid(), signal.SIG{0})\n'
    'print("still here")\n'
)


@pytest.mark.parametrize('name', ['INT', 'TERM', 'HUP'])
def test_the_first_signal_asks_to_stop_and_the_second_ends_the_program(name):
    result = run_code(STOP.format(name, 'SIG_DFL'))
    assert result.stdout == 'True\n' and result.returncode == -signal.Signals[f'SIG{name}']


def test_the_second_signal_does_not_end_a_notebook(monkeypatch):
    monkeypatch.setattr(sys, 'ps1', 'In : ', raising=False)
    with pytest.raises(KeyboardInterrupt), cli.stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize('name', ['USR1', 'USR2', 'XCPU'])
def test_a_warning_of_a_scheduler_asks_to_stop_however_often_it_comes(name):
    result = run_code(STOP.format(name, 'SIG_DFL'))
    assert result.stdout == 'True\nstill here\n' and result.returncode == 0


def test_a_limit_of_the_processor_time_asks_to_stop_only_once():
    code = (
        'import resource, time\n'
        'from common import cli\n'
        'used = time.process_time()\n'
        'resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 1, int(used) + 60))\n'
        'with cli.stop_on_signals() as stop:\n'
        '    while not stop.is_set(): pass\n'
        'while time.process_time() < used + 3: pass\n'  # the kernel would repeat the signal
        'print("still here")\n'
    )
    result = run_code(code)
    assert result.stdout == 'still here\n' and result.returncode == 0


def test_signals_are_left_alone_outside_the_main_thread():
    before = [signal.getsignal(number) for number in cli.stop_signals()]

    def enter_and_leave():
        with cli.stop_on_signals() as stop:
            return stop.is_set(), [signal.getsignal(number) for number in cli.stop_signals()]

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(enter_and_leave).result() == (False, before)


def test_a_signal_that_is_ignored_stays_ignored():
    result = run_code(STOP.format('HUP', 'SIG_IGN'))
    assert result.stdout == 'False\nstill here\n' and result.returncode == 0


def test_signals_are_handled_as_before_afterwards():
    number = signal.SIGTERM
    before = signal.getsignal(number)
    for ends in ('by itself', 'by a signal'):
        with pytest.raises(KeyError), cli.stop_on_signals() as stop:
            assert signal.getsignal(number) != before
            if ends == 'by a signal':
                signal.raise_signal(number)
            assert stop.is_set() == (ends == 'by a signal')
            raise KeyError
        assert signal.getsignal(number) == before


# --- progress bars


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self):
        return True


def test_a_bar_shows_progress_and_unit_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', Terminal())
    with cli.progress(total=4, initial=1, unit=' steps', mininterval=0) as bar:
        bar.update()
    assert '2/4' in sys.stderr.getvalue() and 'steps/s' in sys.stderr.getvalue()


def test_a_bar_is_silent_elsewhere_if_the_work_is_short(capsys):
    with cli.progress(total=4) as bar:
        bar.update()
        bar.write('a line')
    assert capsys.readouterr() == ('a line\n', '')


def test_a_bar_prints_lines_elsewhere_if_the_work_takes_long(monkeypatch, capsys):
    clock = [0.0]
    with cli.progress(desc='Drawing', total=4000, unit=' faces', unit_scale=True) as bar:
        monkeypatch.setattr(bar, '_time', lambda: bar.start_t + clock[0])
        for clock[0] in (1, 61, 62, 122):
            bar.update(1000)
            bar.write('a line')
    out, err = capsys.readouterr()
    assert out == 'a line\n' * 4
    assert [line.rpartition(', ')[0] for line in err.splitlines()] == [
        'Drawing: 2.00k of 4.00k faces, 50%',
        'Drawing: 4.00k of 4.00k faces, 100%',
    ]
