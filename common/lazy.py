"""Modules that load on first use, so that `--help` and wrong arguments respond at once."""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any


class LazyModule:
    """A placeholder for the module `name`, which is imported when one of its attributes is first used."""

    def __init__(self, name: str, load: Callable[[str], Any] = importlib.import_module):
        self._name, self._load = name, load

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._load(self._name), attribute)
        setattr(self, attribute, value)  # later lookups find it without calling __getattr__
        return value


def load_with_matplotlib(name: str) -> Any:
    """Import a module that imports matplotlib, even if MPLBACKEND names a backend that is not installed.

    A notebook sets this variable for its kernel, and programs started there inherit it.
    """
    if 'matplotlib' not in sys.modules and (backend := os.environ.pop('MPLBACKEND', '')):
        matplotlib = importlib.import_module('matplotlib')
        os.environ['MPLBACKEND'] = backend
        with contextlib.suppress(ValueError):
            matplotlib.rcParams['backend'] = backend
    return importlib.import_module(name)
