"""Building blocks of `helper.py`: downloads, sources of images, prepared arrays, labels, the held-out split."""


class DataError(OSError):
    """Data that cannot be obtained or used. The message says why and what can be done."""
