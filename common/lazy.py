"""Modules that load on first use, so that `--help` and wrong arguments respond at once."""

import importlib
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
