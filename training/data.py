"""What a run trains on: the faces that `--data` names, with the people and the attributes on them."""

from pathlib import Path

import numpy as np

import helper
from common import cli, files
from config.settings import system_of
from dataset import DataError, labels
from dataset.source import Source
from sampling.demo import demo_size, load_demo


def load_dataset(settings: dict, sources: list[str] | None = None, note_size: bool = False) -> helper.Dataset:
    """The faces that --data names, all read from one `Source`. Raises UserError, DataError, OSError.

    sources: URLs to download CelebA from. note_size: print a note if the images are smaller than the faces.
    """
    height, width, channels = system_of(settings).image_shape
    cache_dir, hold_out = Path(settings['data_dir'], 'prepared'), settings['hold_out']

    # Both names may also be a folder.
    data = settings['data']
    if data in ('celeba', 'demo') and Path(data).exists():
        print(f'Note: --data {data} is not the folder {data}, which is --data ./{data}')

    # A generator draws the demo faces: they have no source and no labels.
    if data == 'demo':
        if note_size:
            note_upscaled(settings, None)
        print('The demo faces are drawn by a pretrained generator; none is a photograph.')
        return helper.Dataset(load_demo(cache_dir, (height, width, channels)), hold_out)

    # Read the labels first, to fail before the faces are downloaded and prepared.
    source, values, people = open_source(settings), None, None
    if settings['attributes']:
        path = settings['attribute_table']
        table = labels.open_table(Path(path)) if path else None
        if data == 'celeba' and not table:
            table = labels.find_table(source, labels.TABLES)
            table = table or labels.open_table(helper.download_attributes(settings['data_dir']))
        values = labels.load_attributes(source, settings['attributes'], table)
        print(f'Attributes: from {values.origin}')
    if hold_out == 'people':
        people = labels.load_people(source)
        print(f'People: from {people.origin}')

    # Download and prepare the faces.
    if data == 'celeba':
        if not source.path.exists():
            files.check_writable(cache_dir)
        try:
            helper.download_celeb_a(settings['data_dir'], sources or helper.CELEB_A_SOURCES)
        except DataError as error:
            raise cli.UserError(f'{error}. Alternatives: --data demo, or --data PATH for your own pictures') from None
    if note_size:
        note_upscaled(settings, source)
    prepared = helper.load_faces(source, (height, width), cache_dir, settings['crop'], channels)

    # Look up the labels in the order of the faces.
    conditions = np.array(labels.look_up(values, source.names, prepared.indices), np.int8) if values else None
    persons = labels.look_up(people, source.names, prepared.indices) if people else None
    return helper.Dataset(prepared.faces, hold_out, persons, conditions)


def open_source(settings: dict) -> Source:
    """The images that --data names; the archive of CelebA may not be downloaded yet."""
    data_dir = Path(settings['data_dir'])
    path = data_dir / helper.CELEB_A if settings['data'] == 'celeba' else Path(settings['data'])
    return Source(path, skip=[data_dir, data_dir / 'prepared'])


def choose_hold_out(settings: dict) -> str:
    """What to hold out: people if there is an identity table, otherwise images."""
    has_people = settings['data'] != 'demo' and labels.find_table(open_source(settings), labels.IDENTITIES)
    return 'people' if has_people else 'images'


def note_upscaled(settings: dict, source: Source | None) -> None:
    """Print a note if the first image of `source` (None: a pretrained face) is too small after cropping."""
    height, width, _ = system_of(settings).image_shape
    across = down = demo_size(height, width)
    if source:
        try:
            across, down = helper.first_crop_size(source, (width, height), settings['crop'])
        except Exception:  # a broken image can raise any exception
            return
    if across < width:
        print(f'Note: the images are upscaled to {height}x{width}; after cropping, the first is only {down}x{across}')
