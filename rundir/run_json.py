"""run.json, which is enough to resume a run, draw with it and evaluate it; and the lock of a run directory."""

import contextlib
import json
import math
import os
import platform
from dataclasses import replace
from pathlib import Path

import numpy as np

from common import cli, files
from config.settings import PATHS, read_settings, system_of
from graph.session import tf
from systems import System

# Version of run.json. Version 1 had no such number. Up to version 2, `recommended` had the networks of `oreilly`; all
# other values of a system are in the settings. Up to version 3, there were no `changes`.
FORMAT = 4


def read_run(run_dir: Path, step: float = math.inf) -> dict:
    """The contents of run.json as of a step, with settings that are complete and valid. Raises UserError.

    `changes`: see `training.run.record_changes`. Changes after `step` are undone and left out.
    """
    path = run_dir / 'run.json'
    try:
        run = json.loads(path.read_bytes())  # perhaps with a byte order mark
        if run.get('format', 1) > FORMAT:
            raise cli.UserError(f'{path} was written by a newer version of this project: update to use it')
        if run.get('format', 1) < 3 and run['settings']['system'] == 'recommended':
            run['settings']['system'] = 'oreilly'
        changes = run.setdefault('changes', [])
        if any(type(change[name]) is not int for change in changes for name in ('step', 'position')):
            raise ValueError
        while changes and changes[-1]['step'] > step:
            for name, value in changes.pop()['before'].items():
                (run if name in run else run['settings'])[name] = value
        run['settings'] = read_settings(run['settings'])
        for name in PATHS:  # which may have been other strings in the locale of the run
            if run['settings'][name] is not None:
                run['settings'][name] = os.fsdecode(run['settings'][name].encode('utf-8', 'surrogateescape'))
        run['data_digest'], int(run['images'])
        system = system_of_run(run)
        if any(len(each) != len(system.attributes) or set(each) - set('01') for each in system.combinations):
            raise ValueError
        if system.attributes and not system.combinations:
            raise ValueError
        return run
    except FileNotFoundError:
        raise cli.UserError(f'{run_dir} is not the directory of a training run: it has no run.json') from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise cli.UserError(f'{path} is damaged') from None


def system_of_run(run: dict) -> System:
    """The system of a run, from what `read_run` returns."""
    return replace(system_of(run['settings']), combinations=tuple(run.get('combinations', '').split()))


def write_run(run_dir: Path, settings: dict, data: dict, changes: list[dict]) -> None:
    """Write run.json. data: see `training.run.Run.describe_data`; changes: see `training.run.record_changes`."""
    run = {
        'format': FORMAT,
        'settings': settings,
        **data,
        'changes': changes,
        'versions': {'python': platform.python_version(), 'tensorflow': tf.__version__, 'numpy': np.__version__},
    }
    with files.replacing(run_dir / 'run.json') as temporary:
        temporary.write_text(json.dumps(run, indent=2) + '\n')


def lock(run_dir: Path, stack: contextlib.ExitStack) -> None:
    """Keep other trainings out of `run_dir` until `stack` is closed, or this process ends. Raises UserError."""
    try:
        files.lock_folder(run_dir, stack)
    except BlockingIOError:
        raise cli.UserError(f'{run_dir} is in use: another process trains there') from None
