"""Flags and values of settings: how `train.py` shows and parses them, and whether run.json may hold them."""

import os
import re
from argparse import ArgumentTypeError, BooleanOptionalAction
from typing import Any

from common import cli
from systems import Setting


def flag(name: str) -> str:
    """The flag of a setting: batch_size becomes --batch-size."""
    return '--' + name.replace('_', '-')


def absolute(text: str) -> str:
    """An argparse type: a path that is not empty, made absolute."""
    return str(cli.path(text).absolute())


def data_source(text: str) -> str:
    """An argparse type: 'celeba', 'demo', or a path, made absolute. The shell leaves the '~' in --data=~/x."""
    path = os.path.expanduser(text)
    if not os.path.exists(path):
        if re.match('[a-z]+://', text, re.I):
            raise ArgumentTypeError(f'{text} is a URL: download the file and pass its path')
        if re.match(r'[a-z]:[\\/]', text, re.I) and os.name != 'nt':
            raise ArgumentTypeError(f'{text} is a path of Windows, which this system cannot read (in WSL: /mnt/c/...)')
    return text if text in ('celeba', 'demo') else absolute(path)


def add_flag(group, name: str, setting: Setting, *, shows_default: bool) -> None:
    """Add the flag of a setting to an argparse group; its value is None unless it is given."""
    options: dict[str, Any] = {'help': setting.help}
    if shows_default and type(setting.default) in (str, int, float):  # others are explained in words
        options['help'] += f' (default: {setting.default})'
    if setting.values is bool:
        options |= {'action': BooleanOptionalAction}
    elif setting.values is list:
        options |= {'nargs': '+', 'metavar': 'NAME'}
    elif isinstance(setting.values, tuple):
        options |= {'choices': setting.values, 'type': type(setting.values[0])}
    else:
        metavar = 'PATH' if setting.path else 'X' if isinstance(setting.default, float) else 'N'
        options |= {'type': setting.values, 'metavar': metavar}
    group.add_argument(flag(name), **options)


def is_valid(setting: Setting, value: Any) -> bool:
    """Whether a value from run.json has the type and the range of the setting."""
    if value is None:
        return setting.default is None
    if setting.values is bool:
        return isinstance(value, bool)
    if setting.values is list:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if isinstance(setting.values, tuple):
        return type(value) is type(setting.values[0]) and value in setting.values
    if setting.path:  # perhaps relative: an exported generator keeps only the name
        return isinstance(value, str) and value != ''
    try:
        parsed = setting.values(value)
    except (ArgumentTypeError, ArithmeticError, TypeError):
        return False
    return type(parsed) is type(value) and parsed == value  # '8', 8.0 and True are no integers
