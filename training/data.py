"""The data of a run: the faces that `--data` names, and the people and the attributes on them."""

from pathlib import Path

import helper
from common import cli, files
from config.settings import system_of
from dataset import DataError, labels
from dataset.split import IDENTITIES, load_people
from sampling.demo import demo_size, load_demo


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
