"""What a run trains on: the faces that `--data` names, with the people and the attributes on them."""

from pathlib import Path

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

    # A generator draws the demo faces: they have no source and no labels.
    if settings['data'] == 'demo':
        if note_size:
            note_upscaled(settings, None)
        print('The demo faces are drawn by a pretrained generator; none is a photograph.')
        return helper.Dataset(load_demo(cache_dir, (height, width, channels)), hold_out)

    # Read the attributes first, to fail before the faces are downloaded and prepared.
    source, table, values = Source(source_path(settings)), settings['attribute_table'], None
    if settings['attributes']:
        if settings['data'] == 'celeba':
            table = table or labels.find_table(source.path) or helper.download_attributes(settings['data_dir'])
        values = labels.load_attributes(source, settings['attributes'], Path(table) if table else None)

    # Download and prepare the faces.
    if settings['data'] == 'celeba':
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
    people = labels.load_people(identity_table(settings), prepared.names) if hold_out == 'people' else None
    conditions = None if values is None else labels.look_up(values, prepared.names)
    return helper.Dataset(prepared.faces, hold_out, people, conditions)


def source_path(settings: dict) -> Path:
    """The path of the images; the archive of CelebA may not be downloaded yet."""
    return Path(settings['data_dir'], helper.CELEB_A) if settings['data'] == 'celeba' else Path(settings['data'])


def identity_table(settings: dict) -> Path:
    """The path of CelebA's identity table, expected next to the images."""
    return source_path(settings).absolute().with_name(labels.IDENTITIES)


def choose_hold_out(settings: dict) -> str:
    """What to hold out: people if there is an identity table, otherwise images."""
    return 'people' if settings['data'] != 'demo' and identity_table(settings).exists() else 'images'


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
