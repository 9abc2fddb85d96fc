"""Shards as webdataset tars: `<case>.image.zarr.zip`, `<case>.label.zarr.zip`, `<case>.json`. Equal input, equal bytes.

Standard readers stream the tar; `decode_zarr` gives them the arrays: `WebDataset(url).decode(decode_zarr)`. A member is
a zarr v3 array in an uncompressed zip, which zarr opens by itself. Inside lie the same chunks as in a zarr shard, and
the index knows where: so a crop reads its chunks out of the tar, not the volume.
"""

import io
import json
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import webdataset
import zarr
from zarr.storage import MemoryStore

from data_shards.formats.encoding import Encoding, Member, chunk_key, table_crc32c
from data_shards.formats.sample import ShardSample

SUFFIX = ".tar"


def write_shard(path: Path, samples: Iterable[ShardSample], encoding: Encoding) -> list[dict[str, Member]]:
    """Write one tar; per sample where the chunks of its arrays lie in it."""
    in_zip: dict[str, dict[str, Member]] = {}
    with path.open("wb") as file:
        # Fixed owner, mode and time: the bytes depend on the samples alone.
        writer = webdataset.TarWriter(file, user="root", group="root", mode=0o444, encoder=False, mtime=0)
        for sample in samples:
            parts: dict[str, bytes] = {}
            in_zip[sample.case] = {}
            for what, (array, fill) in sample.arrays().items():
                parts[f"{what}.zarr.zip"], in_zip[sample.case][what] = _zipped(what, array, fill, encoding)
            meta = json.dumps(sample.meta, sort_keys=True).encode()
            writer.write({"__key__": sample.case, **parts, "json": meta})
        writer.close()
    with tarfile.open(path) as tar:
        offsets = {info.name: info.offset_data for info in tar}
    return [
        {
            what: zipped._replace(offset=offsets[f"{case}.{what}.zarr.zip"] + zipped.offset)
            for what, zipped in of.items()
        }
        for case, of in in_zip.items()
    ]


def member_file(shard: str, case: str, what: str) -> str:
    """The file of a stored array, relative to the build's folder."""
    return shard


def decode_zarr(key: str, data: bytes) -> np.ndarray | None:
    """A webdataset decoder: the array of a `.zarr.zip` member, None for other members."""
    if not key.endswith("zarr.zip"):
        return None
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        content = {
            name: zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(archive.read(name))
            for name in archive.namelist()
        }
    # zarr 2 metadata may ask for numcodecs' pickle codec, which runs code where somebody has switched it on
    return np.asarray(zarr.open_array(MemoryStore(content), mode="r", zarr_format=3)[...])


def _zipped(what: str, array: np.ndarray, fill: float, encoding: Encoding) -> tuple[bytes, Member]:
    """The zip of one array, and where its shard lies in the zip."""
    encoded = encoding.encode(array, fill)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        # ZipInfo's own time is 1980, whatever the clock says
        archive.writestr(zipfile.ZipInfo("zarr.json"), json.dumps(encoding.metadata(array, fill), indent=1))
        archive.writestr(zipfile.ZipInfo(chunk_key(what)), encoded)
        offset = buffer.tell() - len(encoded)
    return buffer.getvalue(), Member(offset, len(encoded), table_crc32c(encoded))
