"""The commands documented in the Dockerfile, run by its users in a copy of the image's files.

Not in a container: building the image takes minutes, and most machines that run tests have no Docker daemon.
"""

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
import tempfile
import time
from pathlib import Path

import pytest
import requests
from conftest import ROOT

DOCKERFILE = (ROOT / 'Dockerfile').read_text()
COMMENTS = re.sub(r'\\\n#', ' ', DOCKERFILE.split('\n\n')[0])  # at the top
DOCUMENTED = [shlex.split(command)[2:] for command in re.findall('docker run .*', COMMENTS)]
PAGES = [command for command in DOCUMENTED if 'page' in command]  # they end with a signal only
APP, OTHER = 1000, 4321  # the user that the Dockerfile creates, and the one that runs `docker run`
FASTER = {'train': ['--steps', '1', '--batch-size', '2', '--width', '0.05', '--samples', '1']}


def instruction(name):
    """The last instruction of this name in the Dockerfile, on one line."""
    return re.findall(rf'^{name} (.*)$', DOCKERFILE.replace('\\\n', ' '), re.MULTILINE)[-1]


def build_image(app: Path):
    """Copy what .dockerignore lets in, with the permissions that the Dockerfile gives; of the demo, few faces."""
    ignore = shutil.ignore_patterns('__pycache__')
    for line in (ROOT / '.dockerignore').read_text().splitlines():
        for path in ROOT.glob(line[1:]) if line.startswith('!') else ():
            target = app / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(path, target, ignore=ignore) if path.is_dir() else shutil.copy(path, target)
    code = app / 'sampling' / 'demo.py'
    code.write_text(re.sub('^DEMO_FACES = .*', 'DEMO_FACES = 40', code.read_text(), flags=re.MULTILINE))
    _, _, steps = instruction('RUN').partition('&&')  # after useradd
    subprocess.run(['sh', '-ec', steps], cwd=app, check=True)


def as_user(user: int) -> list[str]:
    """What comes before a command to run it as another user, who may read all files: perhaps the Python here is root's.

    Skips the test where that is not possible.
    """
    prefix = ['setpriv', f'--reuid={user}', f'--regid={user}', '--clear-groups', '--no-new-privs']
    reads_all = [*prefix, '--inh-caps=-all,+dac_read_search', '--ambient-caps=-all,+dac_read_search']
    for possible in (prefix, reads_all):
        with contextlib.suppress(FileNotFoundError):
            if not subprocess.run([*possible, 'env', sys.executable, '-c', ''], capture_output=True).returncode:
                return possible
    pytest.skip('only root can run commands as other users')


def end(process: subprocess.Popen):
    """Kill a process and those that it has started, as a container ends with its process 1."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def docker():
    """A function that does what `docker run` does with its arguments, and returns /app as the container leaves it.

    It has attributes: `host`, the folder that it is called from; `volumes`; and `start`, which only starts the
    container, with its port 8000 at `port`, and returns the process and /app.
    """
    users = {user: as_user(user) for user in (APP, OTHER)}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:  # others may not look into tmp_path
        folder = Path(name)
        folder.chmod(0o755)
        image, host, volumes = folder / 'image', folder / 'host', folder / 'volumes'
        build_image(image)
        for created in re.findall(r'mkdir -p (\w+)', COMMENTS):
            (host / created).mkdir(parents=True)
            os.chown(host / created, OTHER, OTHER)
        containers = (folder / f'container-{number}' for number in itertools.count())

        def start(*arguments, port=8000):
            app, user = shutil.copytree(image, next(containers)), APP
            entrypoint = app / 'docker' / 'entrypoint.sh'
            entrypoint.write_text(entrypoint.read_text().replace('server 8000', f'server {port}'))
            flags = iter(arguments)
            while (flag := next(flags)) != 'faces':
                value = next(flags)
                if flag == '--user':
                    user = OTHER
                if flag != '-v':
                    continue
                source, inside = value.replace('$PWD', str(host)).split(':/app/')
                mounted = volumes / source  # or `source`, if it is absolute
                if not mounted.exists():
                    shutil.copytree(app / inside, mounted)  # a new volume gets what the image has there
                shutil.rmtree(app / inside)
                (app / inside).symlink_to(mounted)
            command, *flags = flags
            environment = dict(pair.split('=') for pair in instruction('ENV').split())
            environment['PATH'] = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
            process = subprocess.Popen(
                [*users[user], *json.loads(instruction('ENTRYPOINT')), command, *flags, *FASTER.get(command, ())],
                cwd=app, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(end, process)
            return process, app

        def run(*arguments):
            process, app = start(*arguments)
            _, errors = process.communicate(timeout=240)
            assert process.returncode == 0, errors
            return app

        run.host, run.volumes, run.start = host, volumes, start
        yield run


def test_the_documented_commands_work_for_every_user(docker):
    assert len(DOCUMENTED) == 3 + len(PAGES)
    for command in DOCUMENTED[:3]:
        docker(*command)
    assert len(list(docker.volumes.glob('faces-runs/*/run.json'))) == 1
    assert (docker.host / 'faces' / 'first' / 'grid.png').exists()
    assert (docker.host / 'evaluation' / 'first' / 'evaluation.json').exists()
    # Without --out; without a volume; another user of a volume, who needs the faces in another size.
    app = docker('-v', '$PWD/faces:/app/faces', '--user', OTHER, 'faces', 'generate')
    assert (app / 'faces-2' / 'grid.png').exists()
    assert (docker('faces', 'evaluate', '--data', 'demo') / 'evaluation' / 'evaluation.json').exists()
    volumes = '-v', 'faces-data:/app/data', '-v', 'faces-runs:/app/runs'
    docker(*volumes, '--user', OTHER, 'faces', 'train', '--data', 'demo', '--system', 'ranjan')
    assert len(list(docker.volumes.glob('faces-runs/*/run.json'))) == 2


@pytest.mark.parametrize(('command', 'number'), list(zip(PAGES, [signal.SIGTERM, signal.SIGINT], strict=True)))
def test_the_page_of_a_generator_is_served_until_a_signal(docker, trained, command, number):
    shutil.copytree(trained, docker.volumes / 'faces-runs' / 'NAME')
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    process, _ = docker.start(*command, port=port)
    assert 'http://localhost:8000' in process.stdout.readline(), process.stderr.read()
    url = f'http://127.0.0.1:{port}'
    for attempt in itertools.count():
        with contextlib.suppress(requests.ConnectionError):
            assert '<html' in requests.get(f'{url}/', timeout=60).text
            break
        assert attempt < 600 and process.poll() is None
        time.sleep(0.1)
    assert requests.get(f'{url}/weights.js', timeout=60).status_code == 200
    process.send_signal(number)
    assert process.wait(60) == 0


def test_an_error_ends_the_page(docker):
    process, _ = docker.start('faces', 'page', '--checkpoint', 'runs/missing')
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 2 and errors.count('\n') == 1 and 'runs/missing' in errors


def test_every_user_can_read_the_image(tmp_path):
    build_image(tmp_path / 'app')
    for path in (tmp_path / 'app').rglob('*'):
        assert path.stat().st_mode & 0o5 == 0o5 if path.is_dir() else path.stat().st_mode & 0o4, path
