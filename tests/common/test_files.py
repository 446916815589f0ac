import errno
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from common import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- files that appear once complete


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / 'grid.png'
    target.write_text('old')
    with files.replacing(target) as temporary:
        temporary.write_text('new')
        assert target.read_text() == 'old' and temporary.parent == tmp_path
    assert target.read_text() == 'new' and names(tmp_path) == ['grid.png']


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / 'grid.png'
    target.write_text('old')
    with pytest.raises(ZeroDivisionError), files.replacing(target) as temporary:
        temporary.write_text('half')
        raise ZeroDivisionError
    assert target.read_text() == 'old' and names(tmp_path) == ['grid.png']


def test_files_of_killed_processes_are_removed_and_those_of_running_ones_stay(tmp_path):
    code = (
        'import pathlib, sys, time\n'
        'from common import files\n'
        'with files.replacing(pathlib.Path(sys.argv[1])) as temporary, open(temporary, "wb") as file:\n'
        '    file.write(b"half")\n'
        '    print(temporary.name, flush=True)\n'
        '    time.sleep(600)\n'
    )
    (tmp_path / '.hidden.npy').touch()
    command = [sys.executable, '-c', code, str(tmp_path / 'array.npy')]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        half = other.stdout.readline().strip()
        assert re.fullmatch(r'\.[0-9a-f]{32}\.array\.npy', half)
        for running, expected in ((True, [half, '.hidden.npy', 'grid.png']), (False, ['.hidden.npy', 'grid.png'])):
            if not running:
                other.kill()
                other.wait()
            with files.replacing(tmp_path / 'grid.png') as temporary:
                temporary.write_bytes(b'complete')
            assert names(tmp_path) == sorted(expected)


def test_an_error_of_the_operating_system_names_the_file(tmp_path):
    with pytest.raises(OSError, match='No space left') as raised, files.naming(tmp_path / 'x'):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raised.value.filename == str(tmp_path / 'x')
    with pytest.raises(FileNotFoundError) as raised, files.naming(tmp_path / 'x'):
        (tmp_path / 'missing').read_text()
    assert raised.value.filename == str(tmp_path / 'missing')


# --- locks


def test_a_lock_keeps_others_out_until_the_file_is_closed(tmp_path):
    (tmp_path / 'x').touch()
    with open(tmp_path / 'x') as first, open(tmp_path / 'x') as second:
        files.lock(first)
        with pytest.raises(BlockingIOError):
            files.lock(second)
        first.close()
        files.lock(second)


def test_a_file_system_without_locks_is_used_without_them(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    monkeypatch.setattr(files.fcntl, 'flock', flock)
    with open(tmp_path / 'x', 'w') as file:
        files.lock(file)


def test_without_locks_files_are_still_replaced_and_none_is_taken_for_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(files, 'fcntl', None)
    other = f'.{"a" * 32}.x'
    (tmp_path / other).touch()
    with files.replacing(tmp_path / 'x') as temporary:
        temporary.write_text('new')
    assert names(tmp_path) == [other, 'x']


# --- folders that can be written


def test_a_check_whether_a_folder_can_be_written_leaves_nothing(tmp_path):
    files.check_writable(tmp_path)
    files.check_writable(tmp_path / 'new' / 'newer')
    assert names(tmp_path) == []


@pytest.mark.parametrize('name', ['file', 'file/below'])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, name):
    (tmp_path / 'file').touch()
    with pytest.raises(OSError, match=f"'{tmp_path / name}'$"):
        files.check_writable(tmp_path / name)


# --- folders that are not overwritten


def test_a_folder_with_hidden_files_only_counts_as_empty(tmp_path):
    assert not files.has_files(tmp_path / 'missing') and not files.has_files(tmp_path)
    (tmp_path / '.hidden').touch()
    assert not files.has_files(tmp_path)
    (tmp_path / 'x').touch()
    assert files.has_files(tmp_path)


def test_a_new_folder_gets_the_first_number_that_is_free(tmp_path):
    made = [files.make_unused(tmp_path / 'runs' / 'new') for _ in range(3)]
    assert [path.name for path in made] == ['new', 'new-2', 'new-3'] and all(path.is_dir() for path in made)
