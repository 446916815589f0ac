"""The image's files and its entrypoint, without Docker: building the image takes minutes."""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import forkserver
import pytest
import requests
from conftest import ROOT

import evaluate
import generate
import train

DOCKERFILE = (ROOT / 'Dockerfile').read_text()
COMMENTS = re.sub(r'\\\n#', ' ', DOCKERFILE.split('\n\n')[0])  # at the top
DOCUMENTED = [shlex.split(command)[2:] for command in re.findall('docker run .*', COMMENTS)]
COMMANDS = {'train': train, 'generate': generate, 'evaluate': evaluate}
# Stands in for `python`: writes its arguments to a file. It makes an empty page, and serves it on $PORT.
PYTHON = f"""#!/bin/sh
printf '%s\\n' "$@" > arguments
case "$1 $2" in
  "generate.py --page") [ "$5" != runs/missing ] || exit 2; mkdir "$3"; echo '<html>' > "$3/index.html" ;;
  "-m http.server") shift 3; exec {sys.executable} -m http.server "$PORT" "$@" ;;
  *) exit "$STATUS" ;;
esac
"""


def instruction(name):
    """The last instruction of this name in the Dockerfile, on one line."""
    return re.findall(rf'^{name} (.*)$', DOCKERFILE.replace('\\\n', ' '), re.MULTILINE)[-1]


@pytest.fixture(scope='module')
def image(tmp_path_factory) -> Path:
    """The files that .dockerignore lets in, with the permissions that the Dockerfile gives."""
    app = tmp_path_factory.mktemp('image') / 'app'
    ignore = shutil.ignore_patterns('__pycache__')
    for line in (ROOT / '.dockerignore').read_text().splitlines():
        for path in ROOT.glob(line[1:]) if line.startswith('!') else ():
            target = app / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(path, target, ignore=ignore) if path.is_dir() else shutil.copy(path, target)
    _, _, steps = instruction('RUN').partition('&&')  # after useradd
    subprocess.run(['sh', '-ec', steps], cwd=app, check=True)
    return app


@pytest.fixture
def start(image, tmp_path):
    """A function that starts the entrypoint with PYTHON, in tmp_path."""
    (tmp_path / 'python').write_text(PYTHON)
    (tmp_path / 'python').chmod(0o755)
    shutil.copytree(image / 'docker', tmp_path / 'docker')
    with contextlib.ExitStack() as stack:

        def start(*arguments, **variables):
            process = subprocess.Popen(
                [*json.loads(instruction('ENTRYPOINT')), *arguments], cwd=tmp_path, text=True, start_new_session=True,
                env=os.environ | {'PATH': f'{tmp_path}:{os.environ["PATH"]}'} | variables, stdout=subprocess.PIPE,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(end, process)
            return process

        yield start


def end(process: subprocess.Popen):
    """Kill a process and those that it has started, as a container ends with its process 1."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def test_every_user_can_read_the_image(image):
    for path in image.rglob('*'):
        assert path.stat().st_mode & 0o5 == 0o5 if path.is_dir() else path.stat().st_mode & 0o4, path


def test_the_commands_find_their_files_in_the_image(image, tmp_path):
    for arguments in (
        ['train.py', '--list-systems'],
        ['evaluate.py', '--help'],
        ['generate.py', '--page', tmp_path / 'page'],
    ):
        result = forkserver.run([image / arguments[0], *arguments[1:]], cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, ''), arguments


@pytest.mark.parametrize('command', DOCUMENTED, ids=shlex.join)
def test_a_documented_command_has_flags_of_its_script_and_writable_volumes(start, tmp_path, monkeypatch, command):
    options, (name, *flags) = command[: command.index('faces')], command[command.index('faces') + 1 :]
    writable = re.findall(r'chmod 1777 (.*)', instruction('RUN'))[0].split()
    for flag, value in itertools.pairwise(options):
        assert flag != '-v' or value.split(':/app/')[1] in writable
    if name == 'page':
        monkeypatch.setattr(sys, 'argv', ['generate.py', '--page', 'page', *flags])
        assert generate.parse_arguments().page
        return
    assert start(name, *flags, STATUS='7').wait(60) == 7
    script, *arguments = (tmp_path / 'arguments').read_text().splitlines()
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    assert script == f'{name}.py' and arguments == flags and COMMANDS[name].parse_arguments()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_page_is_served_until_a_signal(start, number):
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    process = start('page', '--checkpoint', 'runs/NAME', PORT=str(port))
    assert 'http://localhost:8000' in process.stdout.readline()
    for attempt in itertools.count():
        with contextlib.suppress(requests.ConnectionError):
            assert requests.get(f'http://127.0.0.1:{port}/', timeout=60).text == '<html>\n'
            break
        assert attempt < 600 and process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == 0


def test_an_error_ends_the_page(start):
    assert start('page', '--checkpoint', 'runs/missing').wait(60) == 2
