"""Shards as zarr v3 groups: `shard-00000.zarr/<case>/image` and `/label`, each one sharded, checksummed array.

An array is one file of chunks, so a crop reads only the chunks it touches. Any zarr v3 reader opens them.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_shards.formats.encoding import Encoding, Member, chunk_key, table_crc32c
from data_shards.formats.sample import ShardSample

SUFFIX = ".zarr"


def write_shard(path: Path, samples: Iterable[ShardSample], encoding: Encoding) -> list[dict[str, Member]]:
    """Write one group as the folder `path`; per sample where its arrays lie (see `member_file`)."""
    members: list[dict[str, Member]] = []
    _write_json(path, _group({}))
    for sample in samples:
        _write_json(path / sample.case, _group(sample.meta))
        written = {}
        for what, (array, fill) in sample.arrays().items():
            encoded = encoding.encode(array, fill)
            _write_json(path / sample.case / what, encoding.metadata(array, fill))
            file = path / sample.case / what / chunk_key(what)
            file.parent.mkdir(parents=True)
            file.write_bytes(encoded)
            written[what] = Member(0, len(encoded), table_crc32c(encoded))
        members.append(written)
    return members


def member_file(shard: str, case: str, what: str) -> str:
    """The file of a stored array, relative to the build's folder."""
    return f"{shard}/{case}/{what}/{chunk_key(what)}"


def _group(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _write_json(folder: Path, content: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zarr.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
