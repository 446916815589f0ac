"""What `helper.py` is built of: downloads, image files, archives of them, prepared arrays. Knows nothing of faces."""


class DataError(OSError):
    """Data that cannot be obtained or used. The message says why and what can be done."""
