"""What is kept of a run, and how does one go on with it, or back?

A run directory: run.json, log.csv, checkpoints. Weights live in TensorFlow's checkpoints, all else is text.
"""

import csv
import itertools
import json
import math
import os
import platform
import re
import shlex
from pathlib import Path

import numpy as np

import cli
import helper
from settings import NEWEST, check_settings, choose_settings

try:
    import fcntl
except ModuleNotFoundError:  # Windows: a run directory is not locked there
    fcntl = None

LAST_CHECKPOINTS = 3
LOG_COLUMNS = ('step', 'epoch', 'd_loss', 'g_loss', 'd_real', 'd_fake', 'images_per_second', 'swd')


def read_run(run_dir: Path) -> dict:
    """The run.json of a run directory, with settings that can be used. Raises UserError."""
    try:
        run = json.loads((run_dir / 'run.json').read_text())
        check_settings(run['settings'])
        run['data_digest']
        return run
    except FileNotFoundError:
        raise cli.UserError(f'{run_dir} is not the directory of a training run: it has no run.json') from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise cli.UserError(f'{run_dir / "run.json"} is damaged, or of another version') from None


def find_run(args, several) -> tuple[dict, dict]:
    """The settings of the run that the flags mean, and its run.json, {} if it is to begin. Raises UserError.

    several: whether several workers train together. Then a run that has not begun is resumed by beginning it, so
    that what restarts a job that failed can use the same command.
    """
    run = {}
    there = bool(args.run_dir) and holds_something(args.run_dir)
    if args.resume and (there or not several or args.resume != NEWEST):
        run = read_run(args.run_dir)
    elif there:
        raise cli.UserError(f'{args.run_dir} is not empty: add --resume to go on, or name another --run-dir')
    settings = choose_settings(args, run.get('settings'))
    if args.sources and settings['data'] != 'celeba':
        raise cli.UserError('--sources is about --data celeba, and not about other data')
    return settings, run


def open_run(run_dir: Path, settings, faces):
    """Make the directories of a run, and write run.json, with all it takes to go on with it."""
    from runtime import tf

    run_dir.mkdir(parents=True, exist_ok=True)
    run = {
        'settings': settings,
        'images': len(faces),
        'data_digest': helper.digest(faces),
        'versions': {'python': platform.python_version(), 'tensorflow': tf.__version__, 'numpy': np.__version__},
    }
    with helper.replacing(run_dir / 'run.json') as temporary:
        temporary.write_text(json.dumps(run, indent=2) + '\n')
    for folder in ('checkpoints', 'samples'):
        (run_dir / folder).mkdir(exist_ok=True)


def unused(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that is not there yet, or empty."""
    numbered = (path.with_name(f'{path.name}-{number}') for number in itertools.count(2))
    return next(folder for folder in itertools.chain([path], numbered) if not holds_something(folder))


def holds_something(folder: Path) -> bool:
    """Whether there is anything in `folder` but hidden files, such as a killed process leaves."""
    return folder.exists() and not all(path.name.startswith('.') for path in folder.iterdir())


def lock(run_dir: Path):
    """Keep other processes from `run_dir` as long as this one lives, however it ends. Raises UserError."""
    if fcntl is None:
        return
    try:
        fcntl.flock(os.open(run_dir, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)  # open until the process ends
    except BlockingIOError:
        raise cli.UserError(f'{run_dir} is in use: another process trains there') from None
    except OSError:  # a file system without locks
        pass


def find_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """Step and prefix, which TensorFlow names it by, of each checkpoint of a run directory, the newest last."""
    folder = run_dir / 'checkpoints'
    names = (re.fullmatch(r'(\w+-(\d+))\.index', path.name) for path in folder.glob('*.index'))
    return sorted((int(name[2]), folder / name[1]) for name in names if name)


def find_best(run_dir: Path) -> tuple[int, Path] | None:
    """Step and prefix of the checkpoint whose faces were nearest to real ones, in runs with --evaluate-every."""
    return next((item for item in reversed(find_checkpoints(run_dir)) if item[1].name.startswith('best-')), None)


def least_distance(run_dir: Path) -> float:
    """What log.csv says of the best checkpoint, infinite where there is none."""
    best = find_best(run_dir)
    with open(run_dir / 'log.csv', newline='') as file:
        rows = {row['step']: row['swd'] for row in csv.DictReader(file) if row['swd']}
    return float(rows.get(str(best[0]), math.inf)) if best else math.inf


def find_grids(run_dir: Path) -> list[Path]:
    """The pictures of samples in a run directory, the newest last."""
    return sorted(path for path in run_dir.glob('samples/*.png') if re.fullmatch(r'step-\d{8,}', path.stem))


def find_checkpoint(path) -> tuple[Path, Path]:
    """The run directory and the checkpoint that `path` means: a checkpoint, or the best or else the newest of a run."""
    path = Path(path).absolute()
    if path.is_dir():
        checkpoints = find_checkpoints(path)
        if not checkpoints:
            raise cli.UserError(f'{path} has no checkpoint')
        return path, (find_best(path) or checkpoints[-1])[1]
    prefix = path.with_suffix('') if path.suffix == '.index' else path
    if not prefix.with_name(f'{prefix.name}.index').exists():
        raise cli.UserError(f'{path}: no such run directory or checkpoint')
    return prefix.parent.parent, prefix


def is_whole(checkpoint: Path) -> bool:
    """Whether all tensors of a checkpoint can be read; TensorFlow compares their checksums only then."""
    from runtime import tf

    try:
        saved = tf.train.load_checkpoint(str(checkpoint))
        for name in saved.get_variable_to_shape_map():
            saved.get_tensor(name)
    except Exception:  # a damaged file makes the reader raise nearly anything: OpError, IndexError, ValueError
        return False
    return True


def find_step(run_dir: Path, step) -> Path | None:
    """The newest checkpoint of a run directory that is whole, or that of a `step`; None if it has none at all.

    Raises UserError when what is there is damaged, or not of that step.
    """
    checkpoints = find_checkpoints(run_dir)
    wanted = [path for number, path in checkpoints if step in (NEWEST, number)]
    for path in reversed(wanted):
        if is_whole(path):
            return path
        print(f'{path} is damaged' + (': going back to the one before' if path != wanted[0] else ''))
    if step != NEWEST and not wanted:
        steps = ', '.join(str(number) for number, _ in checkpoints) or 'none'
        raise cli.UserError(f'{run_dir} has no checkpoint of step {step}, only of {steps}')
    if wanted:
        raise cli.UserError(f'{run_dir} has no whole checkpoint' + ('' if step == NEWEST else f' of step {step}'))
    print(f'{run_dir} has no checkpoint yet: beginning again')
    return None


def remove_leftovers(run_dir: Path):
    """Remove what a process that was killed, or found the disk full, left of checkpoints it had not finished.

    A checkpoint gets its name with its index, last; data without an index are none.
    """
    for file in run_dir.glob('checkpoints/*'):
        checkpoint, data, _ = file.name.partition('.data-')
        if '.tempstate' in file.name or (data and not file.with_name(f'{checkpoint}.index').exists()):
            print(f'Removed, not finished: {file}')
            file.unlink()


def go_back(run_dir: Path, step):
    """Undo what a run wrote after `step`: set later checkpoints and grids aside, and cut the log."""
    remove_leftovers(run_dir)
    grids = [(int(path.stem.removeprefix('step-')), path.with_suffix('')) for path in find_grids(run_dir)]
    for later, path in [*find_checkpoints(run_dir), *grids]:
        if later > step:
            aside = path.parent / 'abandoned'
            aside.mkdir(exist_ok=True)
            print(f'Set aside: {path.name}, now in {aside}')
            for file in path.parent.glob(f'{path.name}.*'):
                file.replace(aside / file.name)
    log = run_dir / 'log.csv'
    rows = [line.split(',') for line in log.read_text(errors='replace').splitlines()] if log.exists() else []
    rows = [row for row in rows if len(row) == len(LOG_COLUMNS) and row[0].isdecimal() and int(row[0]) <= step]
    with helper.replacing(log) as temporary:
        temporary.write_text(''.join(','.join(row) + '\n' for row in [LOG_COLUMNS, *rows]))


def delete_old(run_dir: Path, healthy):
    """Delete the `best-` checkpoints but the last, and the `step-` ones but the last, and the last up to `healthy`."""
    checkpoints = [item for item in find_checkpoints(run_dir) if item[1].name.startswith(('best-', 'step-'))]
    steps = [item for item in checkpoints if item[1].name.startswith('step-')]
    stay = steps[-LAST_CHECKPOINTS:] + [item for item in steps if item[0] <= healthy][-1:] + [find_best(run_dir)]
    for item in checkpoints:
        if item not in stay:
            for file in sorted(item[1].parent.glob(f'{item[1].name}.*'), reverse=True):  # the index before the data
                file.unlink()


def way_back(run_dir: Path, healthy) -> str:
    """How to go back to the newest checkpoint that is no later than step `healthy`."""
    steps = [step for step, _ in find_checkpoints(run_dir) if step <= healthy]
    if not steps:
        return 'no checkpoint is from before: start again with a lower --learning-rate or another --seed'
    return f'to go back: python train.py --resume {steps[-1]} --run-dir {shlex.quote(str(run_dir))}'
