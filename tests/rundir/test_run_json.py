import contextlib
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, assert_one_line, chosen, run_command

from common import cli
from rundir import run_json
from rundir.run_json import FORMAT, read_run, write_run

DATA = {'images': 44, 'data_digest': 'a1b2'}


def test_what_is_written_is_read(tmp_path):
    settings, _ = chosen('--system sharma --width 0.3')
    write_run(tmp_path, settings, DATA, [])
    run = read_run(tmp_path)
    assert (run['format'], run['settings'], run['images'], run['data_digest']) == (FORMAT, settings, 44, 'a1b2')
    assert set(run['versions']) == {'python', 'tensorflow', 'numpy'}
    assert [path.name for path in tmp_path.iterdir()] == ['run.json']


def test_paths_of_a_run_made_in_any_locale_are_those_of_this_one(tmp_path):
    settings, _ = chosen('--steps 1')
    for name in ('/K\udcc3\udcb6ln', '/Köln'):  # as Python has it in locale C, and in one with UTF-8
        write_run(tmp_path, settings | {'data': name, 'data_dir': name}, DATA, [])
        saved = read_run(tmp_path)['settings']
        assert saved['data'] == saved['data_dir'] == os.fsdecode('/Köln'.encode())


def test_a_directory_without_run_json_is_no_run(tmp_path):
    with pytest.raises(cli.UserError, match='not the directory of a training run'):
        read_run(tmp_path)


@pytest.mark.parametrize(
    'text', ['', '[]', '{}', '{"settings": []}', '{"settings": "oreilly"}', '{"format": "2"}', '[' * 100_000, '\0', '5']
)
def test_a_run_json_of_anything_else_is_damaged(tmp_path, text):
    (tmp_path / 'run.json').write_text(text)
    with pytest.raises(cli.UserError, match='run.json.*damaged'):
        read_run(tmp_path)


def test_bytes_that_are_no_text_are_damaged(tmp_path):
    (tmp_path / 'run.json').write_bytes(b'\xff\xfe{')
    with pytest.raises(cli.UserError, match='damaged'):
        read_run(tmp_path)


def test_a_run_without_the_digest_of_its_data_is_damaged(tmp_path):
    (tmp_path / 'run.json').write_text(json.dumps({'settings': chosen('')[0]}))
    with pytest.raises(cli.UserError, match='damaged'):
        read_run(tmp_path)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_an_editor_may_have_added_a_byte_order_mark(tmp_path, encoding):
    settings, _ = chosen('')
    write_run(tmp_path, settings, DATA, [])
    path = tmp_path / 'run.json'
    path.write_text(path.read_text(), encoding)
    assert read_run(tmp_path)['settings'] == settings


CHANGES = [
    {'step': 4, 'position': 4, 'before': {'learning_rate': 0.1}, 'after': {'learning_rate': 0.2}},
    {'step': 9, 'position': 5, 'before': {'batch_size': 8, 'images': 40}, 'after': {'batch_size': 16, 'images': 44}},
]


def test_a_run_is_read_as_of_a_step(tmp_path):
    settings = chosen('--learning-rate 0.2 --batch-size 16')[0]
    write_run(tmp_path, settings, DATA, CHANGES)
    for step, rate, size, images in ((3, 0.1, 8, 40), (4, 0.2, 8, 40), (8, 0.2, 8, 40), (9, 0.2, 16, 44)):
        run = read_run(tmp_path, step)
        assert run['settings'] == settings | {'learning_rate': rate, 'batch_size': size} and run['images'] == images
        assert run['changes'] == [change for change in CHANGES if change['step'] <= step]
    assert read_run(tmp_path)['changes'] == CHANGES


@pytest.mark.parametrize(
    'damage', [{'step': '4'}, {'before': {'learning_rate': 'x'}}, {'before': 5}, {'position': None}]
)
def test_changes_of_any_other_form_are_damaged(tmp_path, damage):
    write_run(tmp_path, chosen('')[0], DATA, [CHANGES[0] | damage])
    with pytest.raises(cli.UserError, match='damaged'):
        read_run(tmp_path, 3)


@pytest.mark.parametrize('written', [{}, {'format': 2}])
def test_recommended_in_an_older_run_has_the_networks_it_had_then(tmp_path, written):
    settings = chosen('--system oreilly --learning-rate 4e-4 --flip 0.5')[0]
    run = written | DATA | {'settings': settings | {'system': 'recommended'}}
    (tmp_path / 'run.json').write_text(json.dumps(run))
    assert read_run(tmp_path)['settings'] == settings
    write_run(tmp_path, run['settings'], DATA, [])
    assert read_run(tmp_path)['settings']['system'] == 'recommended'


@pytest.mark.parametrize('script', [['train.py', '--resume', '--run-dir'], ['generate.py', '--checkpoint']])
def test_a_run_in_a_newer_format_is_refused_in_one_line(copy, tmp_path, script):
    run = json.loads((copy / 'run.json').read_text())
    # Whatever else a newer version changes.
    (copy / 'run.json').write_text(json.dumps({'format': FORMAT + 1, 'settings': run}))
    result = run_command(*script, copy, cwd=tmp_path)
    assert_one_line(result, str(copy / 'run.json'), 'newer version')


def test_a_run_directory_is_in_use_until_its_process_dies(tmp_path):
    code = (
        'import contextlib, pathlib, sys, time\n'
        'from rundir import run_json\n'
        'run_json.lock(pathlib.Path(sys.argv[1]), contextlib.ExitStack())\n'
        'print(flush=True)\n'
        'time.sleep(600)\n'
    )
    command = [sys.executable, '-c', code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(cli.UserError, match=f'{tmp_path} is in use'), contextlib.ExitStack() as stack:
            run_json.lock(tmp_path, stack)
        process.kill()
    with contextlib.ExitStack() as stack:
        run_json.lock(tmp_path, stack)
        with pytest.raises(cli.UserError, match=f'{tmp_path} is in use'):
            run_json.lock(tmp_path, stack)
    with contextlib.ExitStack() as stack:
        run_json.lock(tmp_path, stack)


def test_without_locks_a_directory_is_used_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(run_json.files, 'fcntl', None)
    with contextlib.ExitStack() as stack:
        run_json.lock(tmp_path, stack)
        run_json.lock(tmp_path, stack)
