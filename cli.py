"""How do the commands talk to the user? Arguments with ranges, and errors in one line."""

import argparse
import re
import signal
import sys
import threading
from pathlib import Path

# What Python takes for a number besides is a slip of the hand: 1_000, ' 5 ', digits of other scripts, inf, nan.
NUMBER = re.compile(r'[-+.0-9e]+', re.IGNORECASE)


class UserError(Exception):
    """Something the user can put right; the message, one line, says how."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False)

    def error(self, message):
        raise UserError(message)


def number(kind, low, high, *, above=False):
    """An argparse type: an int or float from `low` (or above it, if `above`) to `high`."""

    def parse(text):
        try:
            value = kind(text) if NUMBER.fullmatch(text) else None
        except ValueError:
            value = None
        if value is None or not low <= value <= high or (above and value == low):
            name = {int: 'a whole number', float: 'a number'}[kind]
            raise argparse.ArgumentTypeError(f'{text!r} is not {name} {"above" if above else "from"} {low} to {high}')
        return value

    return parse


def path(text) -> Path:
    """An argparse type: a path. An empty one would be the working directory, which nobody means."""
    if not text:
        raise argparse.ArgumentTypeError('it is empty')
    return Path(text)


def stop_signals() -> list[int]:
    """Ctrl-C, SIGTERM and that of a closed terminal, but for those that are ignored, as nohup does."""
    signals = {signal.SIGINT, signal.SIGTERM, getattr(signal, 'SIGHUP', signal.SIGTERM)}
    return [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]


def stop_on_signals() -> threading.Event:
    """An event that Ctrl-C, SIGTERM or a closed terminal sets; the next of them ends the program at once."""
    stop = threading.Event()
    signals = stop_signals()

    def request(*_):
        stop.set()
        for number in signals:
            signal.signal(number, signal.SIG_DFL)

    for number in signals:
        signal.signal(number, request)
    return stop


def report(error):
    """Say an error in one line on stderr."""
    print(f'{Path(sys.argv[0]).name}: error: {" ".join(str(error).splitlines())}', file=sys.stderr, flush=True)


def run(main):
    """Run a command; what the user can put right ends in one line on stderr and exit status 2."""
    sys.stdout.reconfigure(line_buffering=True, errors='backslashreplace')  # a path can be of any bytes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception: temporary files are removed
    try:
        main()
    except (UserError, OSError) as error:
        report(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
