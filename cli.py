"""How do the commands talk to the user? Arguments with ranges, and errors in one line."""

import argparse
import signal
import sys
from pathlib import Path


class UserError(Exception):
    """Something the user can put right; the message, one line, says how."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False)

    def error(self, message):
        self.exit(2, f'{self.prog}: error: {message}\n')


def number(kind, low, high, *, above=False):
    """An argparse type: an int or float from `low` (or above it, if `above`) to `high`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high or (above and value == low):
            name = {int: 'a whole number', float: 'a number'}[kind]
            raise argparse.ArgumentTypeError(f'{text!r} is not {name} {"above" if above else "from"} {low} to {high}')
        return value

    return parse


def run(main):
    """Run a command; what the user can put right ends in one line on stderr and exit status 2."""
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception: temporary files are removed
    try:
        main()
    except (UserError, OSError) as error:
        print(f'{Path(sys.argv[0]).name}: error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
