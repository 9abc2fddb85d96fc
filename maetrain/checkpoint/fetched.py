"""A local copy of a handover that lies in a bucket: jobs read weights from a folder, and check them there."""

import tempfile
from pathlib import Path

from data_shards.errors import InputError
from data_shards.formats.files import is_there, published
from data_shards.formats.remote import fetch
from maetrain.checkpoint.commit import sha256_file
from maetrain.checkpoint.handover import CONTRACT, MODULE, POOL, WEIGHTS, read_handover


def fetched_handover(place: Path, into: Path) -> Path:
    """Copies the handover at `place`, in a bucket, to a folder of `into` named by its contract's hash; returns that.

    A copy that is there already is taken. InputError where there is no handover at `place`, the bucket does not say, or
    the files are not those that the contract speaks of.
    """
    try:
        if not is_there(place / CONTRACT):
            raise InputError(f"{place}: no encoder handover ({CONTRACT} is missing); make one with `maetrain export`")
        with tempfile.TemporaryDirectory(prefix="maetrain-") as scratch:
            fetch(place / CONTRACT, Path(scratch) / CONTRACT)
            folder = into / sha256_file(Path(scratch) / CONTRACT)[:12]
        if not folder.is_dir():
            with published(folder) as copy:
                copy.mkdir()
                for name in (CONTRACT, WEIGHTS, POOL, MODULE):
                    if is_there(place / name):
                        fetch(place / name, copy / name)
                read_handover(copy)
    except OSError as error:
        raise InputError(f"--handover can't be fetched: {error}; look at the bucket and its keys") from None
    return folder
