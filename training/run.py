"""A training run: what it trains on, for how long, when it shows and saves, and its directory."""

import contextlib
import csv
import datetime
import math
import os
import sys
import zlib
from argparse import Namespace
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

import helper
from common import cli, files
from config.settings import NEWEST, PATHS, choose_settings, system_of
from dataset import DataError, labels
from dataset.split import IDENTITIES, load_people
from distributed.cluster import shard_size
from graph.replica import Replica
from rundir import checkpoints, run_json
from rundir.checkpoints import Checkpoint
from sampling.demo import demo_size, load_demo
from systems import System

RUNS = Path('runs')  # where runs get directories of their own
MAX_KEPT_CHECKPOINTS = 10  # --keep-every is chosen so that a run keeps no more
LOG_COLUMNS = ('step', 'epoch', 'd_loss', 'g_loss', 'd_real', 'd_fake', 'images_per_second', 'swd')


@dataclass
class Run:
    """A training run.

    settings: see `config.settings.choose_settings`. checkpoint: where it goes on, None for a new run.
    directory: only the chief has one that can be written to. preview: show samples in the terminal.
    """

    settings: dict
    dataset: helper.Dataset
    directory: Path = Path(os.devnull)
    checkpoint: Checkpoint | None = None
    preview: bool = False

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
        ends = self.settings['steps'], (self.settings['epochs'] or 0) * self.steps_per_epoch
        return min(end for end in ends if end)

    def epoch(self, step: int) -> int:
        """The epoch of a step, both counted from 1."""
        return math.ceil(step / self.steps_per_epoch)

    @cached_property
    def schedule(self) -> dict[str, int]:
        """What is done every so many steps: 'sample', 'save', 'keep', 'evaluate'."""
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
        return min([(step // every + 1) * every for every in self.schedule.values()] + ends)

    def due(self, step: int, last: bool) -> set[str]:
        """What is due after a step, as `schedule` names it. last: the training ends, and all but 'keep' is due."""
        return {what for what, every in self.schedule.items() if step % every == 0 or (last and what != 'keep')}

    @cached_property
    def real_samples(self) -> np.ndarray:
        """As many real faces as a grid has, uint8 (N, H, W, 3)."""
        count = min(self.system.samples, len(self.dataset.training))
        batch = next(self.dataset.get_batches(count, self.settings['seed'], epoch=0))
        return helper.to_uint8(batch, (-0.5, 0.5))

    def grid(self, step: int) -> Path:
        """The path of the grid of samples of a step."""
        return self.directory / 'samples' / f'step-{step:08}.png'

    def open_directory(self) -> None:
        """Write run.json, make folders, and set aside what the run wrote after its checkpoint."""
        step = self.checkpoint.step if self.checkpoint else 0
        for folder in ('checkpoints', 'samples'):
            (self.directory / folder).mkdir(parents=True, exist_ok=True)
        run_json.write_run(
            self.directory, self.settings, len(self.dataset.faces), self.dataset.digest, self.system.combinations
        )
        checkpoints.delete_unfinished(self.directory)
        log, rows = self.directory / 'log.csv', []
        if log.exists():
            with open(log, newline='', errors='replace') as file:  # a crash can leave incomplete rows
                rows = [row for row in csv.reader(file) if len(row) == len(LOG_COLUMNS) and row[0].isdecimal()]
        later = checkpoints.find_later_files(self.directory, step)
        later_rows = [row for row in rows if int(row[0]) > step]
        if later or later_rows:
            aside = files.make_unused(self.directory / 'abandoned')
            for path in later:
                path.replace(aside / path.name)
            write_log(aside / 'log.csv', later_rows)
            print(f'Set aside what came after step {step}: {aside}')
        write_log(log, [row for row in rows if int(row[0]) <= step])


def write_log(path: Path, rows: list[list[str]]) -> None:
    """Write a log.csv with these rows."""
    with files.replacing(path) as temporary, open(temporary, 'w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows([LOG_COLUMNS, *rows])


def load_dataset(settings: dict, sources: list[str] | None = None) -> helper.Dataset:
    """The faces that --data names. sources: URLs to download CelebA from. Raises UserError."""
    data_dir, (height, width, channels) = Path(settings['data_dir']), system_of(settings).image_shape
    source, hold_out = settings['data'], settings['hold_out']
    values = load_attributes(settings) if settings['attributes'] else None  # an error now saves preparing the faces
    if source == 'demo':
        print('The demo faces are drawn by a pretrained generator; none is a photograph.')
        return helper.Dataset(load_demo(data_dir / 'prepared', (height, width, channels)), hold_out)
    if source == 'celeba':
        if not (data_dir / helper.CELEB_A).exists():
            files.check_writable(data_dir / 'prepared')  # now, before the download
        try:
            source = helper.download_celeb_a(data_dir, sources or helper.CELEB_A_SOURCES)
        except DataError as error:
            raise cli.UserError(f'{error}. Without it: --data demo, or --data PATH for your own pictures') from None
    prepared = source, (height, width), data_dir / 'prepared', settings['crop'], channels
    faces = helper.load_faces(*prepared)
    names = helper.load_names(*prepared) if hold_out == 'people' or values is not None else []
    people = load_people(identity_table(settings), names) if hold_out == 'people' else None
    conditions = labels.look_up(values, names) if values is not None else None
    return helper.Dataset(faces, hold_out, people, conditions)


def load_attributes(settings: dict) -> dict[str, list[int]]:
    """The attributes of each image, from the table that is named or found, or else downloaded. Raises DataError."""
    source, table = source_of(settings), settings['attribute_table']
    if settings['data'] == 'celeba':
        table = table or labels.find_table(source) or helper.download_attributes(settings['data_dir'])
    return labels.load_attributes(source, settings['attributes'], Path(table) if table else None)


def source_of(settings: dict) -> Path:
    """Where the images are, or will be once they have been downloaded."""
    return Path(settings['data_dir'], helper.CELEB_A) if settings['data'] == 'celeba' else Path(settings['data'])


def identity_table(settings: dict) -> Path:
    """Where the table of who is on which image belongs: beside the images."""
    return source_of(settings).with_name(IDENTITIES)


def note_enlarged(settings: dict) -> None:
    """Say so if the faces are larger than the pictures they are made of, going by the first one."""
    height, width, _ = system_of(settings).image_shape
    across = down = demo_size(height, width)
    if settings['data'] != 'demo':
        try:
            across, down = helper.first_crop_size(source_of(settings), (width, height), settings['crop'])
        except Exception:  # a broken image makes Pillow and zipfile raise nearly anything
            return
    if across < width:
        print(f'Note: the pictures are enlarged to {height}x{width}; once cropped, the first is only {down}x{across}')


def choose_hold_out(settings: dict) -> str:
    """What to hold out: people, if there is a table of them, or else images."""
    return 'people' if identity_table(settings).exists() and settings['data'] != 'demo' else 'images'


def find_settings(args: Namespace, several: bool) -> tuple[dict, dict]:
    """The settings of the run that the flags describe, and the run.json of one that goes on, else {}.

    several: whether several workers train. Then --resume also starts a run that does not exist yet, so that a
    scheduler can restart a failed job with the same command. Raises UserError.
    """
    exists = bool(args.run_dir) and files.has_files(args.run_dir)
    resumes = args.resume and (exists or not several or args.resume != NEWEST)
    if exists and not resumes:
        raise cli.UserError(f'{args.run_dir} is not empty: add --resume to go on, or name another --run-dir')
    saved = run_json.read_run(args.run_dir) if resumes else {}
    settings = choose_settings(args, saved.get('settings'))
    if settings['hold_out'] is None:  # the article trains on all images: some are held out where they are needed
        settings['hold_out'] = choose_hold_out(settings) if settings['evaluate_every'] else 'none'
    if settings['hold_out'] == 'people' and settings['data'] == 'demo':
        raise cli.UserError('--hold-out people: nobody is on the demo faces')
    if settings['attributes'] and settings['data'] == 'demo':
        raise cli.UserError('--attributes: nothing is known about the demo faces')
    if args.sources and settings['data'] != 'celeba':
        raise cli.UserError('--sources is for --data celeba only')
    if settings['init_from'] and not saved:
        checkpoints.find(Path(settings['init_from']))  # an error now saves loading the data
    files.check_writable(args.run_dir or RUNS)
    return settings, saved


def prepare_data(args: Namespace) -> None:
    """Load the faces once, silently, so that several workers find them prepared. Raises UserError."""
    settings, _ = find_settings(args, several=True)
    shard_size(settings['batch_size'], args.workers)  # an error now saves loading the data
    with contextlib.redirect_stdout(None):
        load_dataset(settings, args.sources)


def start_run(args: Namespace, replica: Replica) -> Run:
    """The run that the flags describe, new or resumed; on replicas other than the chief, that of the chief.

    The chief locks the run directory. Raises UserError.
    """
    settings: dict = {}
    saved: dict = {}
    checkpoint = None
    if replica.is_chief:
        settings, saved = find_settings(args, replica.count > 1)
        if saved:
            run_json.lock(args.run_dir)
            checkpoint = checkpoints.find_to_resume(args.run_dir, args.resume)
    settings = replica.broadcast(settings)
    if not replica.is_chief:  # its data may be in another place
        own = choose_settings(args)
        settings |= {name: own[name] for name in PATHS if name == 'data_dir' or getattr(args, name)}
    replica.shard(settings['batch_size'])  # an error now saves loading the data
    if replica.count > 1 and settings['steps_per_call'] not in (None, 1):
        raise cli.UserError('--steps-per-call: several workers make one step a call, so leave it out, or say 1')
    dataset = load_dataset(settings, args.sources)
    run = Run(settings, dataset, checkpoint=checkpoint, preview=args.preview and sys.stdout.isatty())
    check_data(run, saved, replica)
    if replica.is_chief:
        name = f'{settings["system"]}-{datetime.datetime.now():%Y%m%d-%H%M%S}'
        run.directory = args.run_dir or files.make_unused(RUNS / name)
        if not saved:
            note_enlarged(settings)
            run.directory.mkdir(parents=True, exist_ok=True)
            run_json.lock(run.directory)
            if files.has_files(run.directory):
                raise cli.UserError(f'{run.directory} is not empty any more: another process has begun a run there')
    return run


def check_data(run: Run, saved: dict, replica: Replica) -> None:
    """Raise UserError if the run cannot train on its data. saved: its run.json, if it is resumed."""
    dataset, data, batch_size = run.dataset, run.settings['data'], run.system.batch_size
    if not run.steps_per_epoch:
        raise cli.UserError(f'{len(dataset.training)} images do not fill a batch of {batch_size}: lower --batch-size')
    if run.settings['evaluate_every'] and not len(dataset.held_out):
        raise cli.UserError(
            f'--evaluate-every: none of the {len(dataset.faces)} faces is held out to compare with: see --hold-out'
        )
    if saved and saved['data_digest'] != dataset.digest:
        raise cli.UserError(f'{data} does not hold the faces that the run began with: see --data')
    if saved and saved.get('combinations', '') != ' '.join(run.system.combinations):
        raise cli.UserError(f'the attributes of {data} are not those that the run began with: see --attribute-table')
    if run.checkpoint and run.checkpoint.step >= run.last_step:
        raise cli.UserError(
            f'{run.checkpoint.prefix} has made all of {run.last_step} steps: to go on, raise --epochs or --steps'
        )
    if replica.broadcast(dataset.digest) != dataset.digest:
        raise cli.UserError(f'{data} does not hold the faces that the chief has: see --data')
    digest = zlib.crc32(' '.join(run.system.combinations).encode())
    if run.system.attributes and replica.broadcast(digest) != digest:
        raise cli.UserError(f'the attributes of {data} are not those that the chief has: see --attribute-table')
