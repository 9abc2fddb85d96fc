"""A local copy of a handover that lies in a bucket: jobs read weights from a folder, and check them there."""

import hashlib
from pathlib import Path

from data_shards.errors import InputError
from data_shards.formats.files import published
from maetrain.checkpoint.handover import CONTRACT, MODULE, POOL, WEIGHTS, read_handover


def fetched_handover(place: Path, into: Path) -> Path:
    """Copies the handover at `place` to a folder of `into` named by its contract's hash, once, and returns that.

    InputError where there is none at `place`, or its files are not those its contract speaks of.
    """
    if not (place / CONTRACT).is_file():
        raise InputError(f"{place}: no encoder handover ({CONTRACT} is missing); make one with `maetrain export`")
    contract = (place / CONTRACT).read_bytes()
    folder = into / hashlib.sha256(contract).hexdigest()[:12]
    if folder.is_dir():
        return folder
    with published(folder) as copy:
        copy.mkdir()
        (copy / CONTRACT).write_bytes(contract)
        for name in (WEIGHTS, POOL, MODULE):
            if (place / name).is_file():
                (copy / name).write_bytes((place / name).read_bytes())
        read_handover(copy)
    return folder
