"""The one error a user may see: a single line that names what is wrong, the value, and the way out.

The command line prints it without a traceback and exits with 2. Anything else that escapes is our own
mistake and keeps its traceback. Both classes pickle, so they cross process borders unharmed.
"""


class InputError(ValueError):
    """A mistake in what the user gave: a path, a file, a setting. The message is one complete line."""


class VolumeError(InputError):
    """One scan that can't be used. Fatal when it is the only input, a quarantine entry inside an archive."""


class ShardError(InputError):
    """A stored volume that can't be read: shard missing, damaged or of another build. The loader may go on without."""
