"""Modules that load on first use, so that `--help` and bad arguments answer at once."""

import importlib
from collections.abc import Callable
from typing import Any


class LazyModule:
    """Stands in for the module `name` and imports it when one of its attributes is first used."""

    def __init__(self, name: str, load: Callable[[str], Any] = importlib.import_module):
        self._name, self._load = name, load

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._load(self._name), attribute)
        setattr(self, attribute, value)  # from now on found without this method
        return value
