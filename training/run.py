"""A training run: its settings, data, schedule and directory, and how it is started or resumed."""

import contextlib
import datetime
import itertools
import math
import os
import zlib
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

import helper
from common import cli, files
from config.settings import NEWEST, PATHS, RECORDED, choose_settings, system_of
from dataset import labels
from distributed.cluster import shard_size
from graph.replica import Replica
from rundir import checkpoints, log_csv, run_json
from rundir.checkpoints import Checkpoint
from sampling.latents import sample_latents
from systems import System
from training.data import choose_hold_out, load_dataset

RUNS = Path('runs')  # parent of run directories without a --run-dir
MAX_KEPT_CHECKPOINTS = 10  # most checkpoints that a run keeps without --keep-every


@dataclass
class Run:
    """A training run.

    settings: see `config.settings.choose_settings`. directory: the run directory, on the chief; the other replicas
    write nothing. checkpoint: the one to resume from, None for a new run. warning: see `monitor.FailureMonitor`.
    changes, shift: see `record_changes`.
    """

    settings: dict
    dataset: helper.Dataset
    directory: Path = Path(os.devnull)
    checkpoint: Checkpoint | None = None
    warning: str = ''
    changes: list[dict] = field(default_factory=list)
    shift: int = 0

    @cached_property
    def system(self) -> System:
        system = system_of(self.settings)
        if not system.attributes:
            return system
        conditions = self.dataset.conditions[self.dataset.training]
        return replace(system, combinations=labels.combinations(conditions))

    @cached_property
    def steps_per_epoch(self) -> int:
        return self.dataset.steps_per_epoch(self.system.batch_size)

    @cached_property
    def last_step(self) -> int:
        steps, epochs = self.settings['steps'], self.settings['epochs']
        ends = [steps] if steps else []
        return min(ends + ([epochs * self.steps_per_epoch - self.shift] if epochs else []))

    def epoch(self, step: int) -> int:
        """The epoch of a step, both counted from 1."""
        return math.ceil((step + self.shift) / self.steps_per_epoch)

    @cached_property
    def schedule(self) -> dict[str, int]:
        """Steps between samples, checkpoints, checkpoints that are kept, and evaluations."""
        settings = self.settings
        keep_epochs = settings['keep_every'] or math.ceil(self.epoch(self.last_step) / MAX_KEPT_CHECKPOINTS)
        schedule = {
            'sample': settings['sample_every'] or settings['sample_epochs'] * self.steps_per_epoch,
            'save': settings['checkpoint_every'],
            'keep': keep_epochs * self.steps_per_epoch,
        }
        return schedule | ({'evaluate': settings['evaluate_every']} if settings['evaluate_every'] else {})

    def next_due(self, step: int) -> int:
        """The first step after `step` at which something is due, or the run ends."""
        ends = [self.last_step] if step < self.last_step else []
        return min([step + self.steps_left(what, step) for what in self.schedule] + ends)

    def due(self, step: int, last: bool) -> set[str]:
        """Keys of `schedule` that are due after a step. last: the training ends, so all but 'keep' are due."""
        due = {what for what, every in self.schedule.items() if self.steps_left(what, step) == every}
        return due | (self.schedule.keys() - {'keep'} if last else set())

    def steps_left(self, what: str, step: int) -> int:
        """The steps after `step` until a key of `schedule` is due. Intervals in epochs end with an epoch."""
        by_epochs = what == 'keep' or (what == 'sample' and self.settings['sample_epochs'])
        return self.schedule[what] - (step + self.shift * bool(by_epochs)) % self.schedule[what]

    def batches(self, step: int, shard: slice) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the batch of each step after `step`, forever: indices of faces (n,), and latents (n, z_dim).

        All randomness comes from (seed, epoch) and (seed, step), so a resumed run gets the batches it would have had.
        The latents of a conditional system end with the attributes of the real faces. shard: the rows to return.
        """
        system, seed = self.system, self.settings['seed']
        first, start = divmod(step + self.shift, self.steps_per_epoch)
        for epoch in itertools.count(first):
            for order in self.dataset.get_indices(system.batch_size, seed, epoch, start if epoch == first else 0):
                indices = order[shard]
                latents = sample_latents(system, np.random.default_rng((1, seed, step)), system.batch_size)[shard]
                latents[:, system.latent_size :] = self.dataset.conditions[indices]
                yield indices, latents
                step += 1

    @cached_property
    def real_samples(self) -> np.ndarray:
        """As many real faces as a grid has, uint8 (N, H, W, C)."""
        count = min(self.system.samples, len(self.dataset.training))
        batch = next(self.dataset.get_batches(count, self.settings['seed'], epoch=0))
        return helper.to_uint8(batch, (-0.5, 0.5))

    def grid(self, step: int) -> Path:
        """The path of the grid of samples of a step."""
        return self.directory / 'samples' / f'step-{step:08}.png'

    def describe_data(self) -> dict:
        """What run.json has about the data set."""
        combinations = ' '.join(self.system.combinations)
        data = {'images': len(self.dataset.faces), 'data_digest': self.dataset.digest}
        return data | ({'combinations': combinations} if combinations else {})

    def open_directory(self) -> None:
        """Write run.json, make folders, and move what an earlier process wrote after the checkpoint to abandoned/."""
        # Folders and run.json.
        step = self.checkpoint.step if self.checkpoint else 0
        for folder in ('checkpoints', 'samples'):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        run_json.write_run(self.directory, self.settings, self.describe_data(), self.changes)
        checkpoints.delete_temporary(self.directory)

        # Rows, checkpoints and grids of later steps, which will be made again.
        rows = log_csv.read_rows(self.directory)
        incomplete = checkpoints.find_without_index(self.directory)
        later = checkpoints.find_later_files(self.directory, step) + incomplete
        later_rows = [row for row in rows if int(row[0]) > step]
        if later or later_rows:
            abandoned = files.make_unused(self.directory / 'abandoned')
            for path in later:
                path.replace(abandoned / path.name)
            log_csv.write_rows(abandoned, later_rows)
            print(f'Moved everything after step {step} to {abandoned}')
            for path in incomplete:
                print(f'Moved there, too, because its .index file is missing: {path.name}')
        log_csv.write_rows(self.directory, [row for row in rows if int(row[0]) <= step])


@contextlib.contextmanager
def start_run(args: Namespace, replica: Replica) -> Iterator[Run]:
    """Yield the run described by the flags, new or resumed; on the other replicas, the chief's run.

    The chief keeps the run directory locked meanwhile. Raises UserError.
    """
    with contextlib.ExitStack() as stack:
        yield open_run(args, replica, stack)


def open_run(args: Namespace, replica: Replica, stack: contextlib.ExitStack) -> Run:
    """The run of `start_run`. The chief locks the run directory until `stack` is closed."""
    # The chief reads the flags and run.json. The other replicas get its settings, but may have the data elsewhere.
    settings, saved = choose_run(args) if replica.is_chief else ({}, {})
    checkpoint = None
    if saved:
        run_json.lock(args.run_dir, stack)
        checkpoint = checkpoints.find_to_resume(args.run_dir, args.resume)
        settings, saved = choose_run(args, checkpoint.step if checkpoint else 0)
    settings = replica.broadcast(settings)
    if not replica.is_chief:
        own = choose_settings(args)
        settings |= {name: own[name] for name in PATHS if name == 'data_dir' or getattr(args, name)}

    # Fail before the data are loaded.
    replica.shard(settings['batch_size'])
    if replica.count > 1 and settings['steps_per_call'] not in (None, 1):
        raise cli.UserError('--steps-per-call must be 1, or unset, with several workers')

    # Load the data, and fail before anything is written.
    new = replica.is_chief and not saved
    run = Run(settings, load_dataset(settings, args.sources, note_size=new), checkpoint=checkpoint)
    if saved:
        check_same_data(run, saved, args.more_images)
        record_changes(run, saved)
    check_same_on_replicas(run, replica)
    check_length(run)

    if replica.is_chief and saved:
        run.directory = args.run_dir
    elif replica.is_chief:
        if args.resume:
            print(f'{args.run_dir} does not exist yet: starting a new run')
        run.directory = make_run_directory(args.run_dir, settings['system'], stack)
    return run


def choose_run(args: Namespace, step: float | None = None) -> tuple[dict, dict]:
    """The settings of the run that the flags describe, and the run.json of a run to resume ({} for a new one).

    step: the step to resume from, if not args.resume. --resume also starts a run that does not exist yet, so that a
    scheduler can restart a failed job with the same command. Raises UserError.
    """
    # New or resumed.
    exists = bool(args.run_dir) and files.has_files(args.run_dir)
    resumes = args.resume and (exists or args.resume != NEWEST)
    if exists and not resumes:
        raise cli.UserError(
            f'{args.run_dir} is not empty: add --resume to continue that run, or choose another --run-dir'
        )
    saved = run_json.read_run(args.run_dir, args.resume if step is None else step) if resumes else {}
    settings = choose_settings(args, saved.get('settings'))

    # The article trains on all images: some are held out only for --evaluate-every.
    if settings['hold_out'] is None:
        settings['hold_out'] = choose_hold_out(settings) if settings['evaluate_every'] else 'none'

    # Flags that do not go with the data, and paths that cannot be used.
    if settings['hold_out'] == 'people' and settings['data'] == 'demo':
        raise cli.UserError('--hold-out people: the demo faces are synthetic and have no identities')
    if settings['attributes'] and settings['data'] == 'demo':
        raise cli.UserError('--attributes: the demo faces have no attribute labels')
    if args.sources and settings['data'] != 'celeba':
        raise cli.UserError('--sources is for --data celeba only')
    if settings['init_from'] and not saved:
        checkpoints.locate(Path(settings['init_from']))
    files.check_writable(args.run_dir or RUNS)
    return settings, saved


def prepare_data(args: Namespace) -> None:
    """Load the faces once, silently, so that several workers find them prepared. Raises UserError."""
    settings, _ = choose_run(args)
    shard_size(settings['batch_size'], args.workers)  # fail before the data are loaded
    with contextlib.redirect_stdout(None):
        load_dataset(settings, args.sources)


def make_run_directory(chosen: Path | None, system: str, stack: contextlib.ExitStack) -> Path:
    """Make a new run directory, `chosen` or runs/SYSTEM-DATE-TIME, and lock it until `stack` is closed.

    Raises UserError.
    """
    run_dir = chosen or files.make_unused(RUNS / f'{system}-{datetime.datetime.now():%Y%m%d-%H%M%S}')
    run_dir.mkdir(parents=True, exist_ok=True)
    run_json.lock(run_dir, stack)
    if files.has_files(run_dir):
        raise cli.UserError(f'{run_dir} is no longer empty: another process started a run there')
    return run_dir


def check_length(run: Run) -> None:
    """Raise UserError unless there are enough images to train, and to compare with, and steps left to make."""
    dataset = run.dataset
    if not run.steps_per_epoch:
        images, batch_size = len(dataset.training), run.system.batch_size
        raise cli.UserError(f'{images} images do not fill a batch of {batch_size}: lower --batch-size')
    if run.settings['evaluate_every'] and not len(dataset.held_out):
        raise cli.UserError(f'--evaluate-every: none of the {len(dataset.faces)} faces is held out; see --hold-out')
    if run.checkpoint and run.checkpoint.step >= run.last_step:
        raise cli.UserError(
            f'{run.checkpoint.prefix} is at the last step, {run.last_step}: raise --epochs or --steps to continue'
        )


def check_same_data(run: Run, saved: dict, more_images: bool) -> None:
    """Raise UserError unless the faces and attributes are those in run.json, `saved`, or `more_images` were added."""
    data, added = run.settings['data'], len(run.dataset.faces) - saved['images']
    if saved['data_digest'] != run.dataset.digest:
        if more_images and added > 0:
            return
        raise cli.UserError(
            f'{data} is not the data set this run was started with: check --data, '
            + (f'add --more-images if {added} images were added, ' if added > 0 else '')
            + 'or start a new run with --init-from'
        )
    if saved.get('combinations', '') != ' '.join(run.system.combinations):
        raise cli.UserError(f'the attributes of {data} differ from when this run started; check --attribute-table')


def record_changes(run: Run, saved: dict) -> None:
    """Add what differs from run.json, `saved`, to `run.changes`: settings that affect the training, and the data set.

    A new batch size, or more images, change the steps of an epoch. The epoch under way then continues with the first
    batch of its (new) order that is not before the images seen so far. `position` is the number of that batch, counted
    from the start of the run as if all batches had the new size, and `shift` is the position minus the step.
    """
    run.changes = saved['changes']
    run.shift = run.changes[-1]['position'] - run.changes[-1]['step'] if run.changes else 0
    then = saved['settings'] | saved
    now = {name: run.settings[name] for name in RECORDED} | run.describe_data()
    changed = [name for name, value in now.items() if value != then[name]]
    if not changed or not run.checkpoint:
        return

    # The epochs so far, and the images of the epoch under way.
    step = run.checkpoint.step
    training = len(run.dataset.training) * then['images'] // now['images']
    epochs, batches = divmod(step + run.shift, max(1, training // then['batch_size']))
    seen = batches * then['batch_size']

    # The same in batches of the new size.
    position = epochs * run.steps_per_epoch + min(math.ceil(seen / now['batch_size']), run.steps_per_epoch)
    before, after = ({name: values[name] for name in changed} for values in (then, now))
    run.changes.append({'step': step, 'position': position, 'before': before, 'after': after})
    run.shift = position - step
    print(f'From step {step + 1}: ' + ', '.join(f'{name} {now[name]} (was {then[name]})' for name in changed))
    if 'images' in changed and run.settings['hold_out'] != 'none':
        print('Warning: other images are held out than before, so the run was trained on some of them')


def check_same_on_replicas(run: Run, replica: Replica) -> None:
    """Raise UserError unless the chief has the same faces and attributes. All replicas get the chief's `shift`."""
    data = run.settings['data']
    own = [run.dataset.digest, zlib.crc32(' '.join(run.system.combinations).encode())]
    digest, attributes, run.shift = replica.broadcast([*own, run.shift])
    if digest != own[0]:
        raise cli.UserError(f"{data} differs from the chief's data set; check --data")
    if attributes != own[1]:
        raise cli.UserError(f"the attributes of {data} differ from the chief's; check --attribute-table")
