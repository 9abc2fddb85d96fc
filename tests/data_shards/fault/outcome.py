"""What a build left on disk, so that two builds can be compared byte for byte."""

import json
import tarfile
from collections import Counter
from pathlib import Path

from data_shards.build import BuildConfig
from tests.data_shards.helpers import KEEP_ALL

FORMATS = ["zarr", "webdataset"]


def config(format: str, **settings) -> BuildConfig:
    return BuildConfig(**{"format": format, "volumes_per_shard": 2, "preprocess": KEEP_ALL, **settings})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file outside .build, and leftovers of writers wherever they lie."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {n: path.read_bytes() for n, path in files.items() if not n.startswith(".build/") or ".tmp-" in n}


def times(folder: Path) -> dict[str, int]:
    """Modification times, in ns, of every file of every shard that has a stored result."""
    finished = [path.name.removesuffix(".json") for path in (folder / ".build").glob("shard-*.json")]
    places = [place for name in finished for place in (folder / name, *(folder / name).rglob("*"))]
    return {place.relative_to(folder).as_posix(): place.stat().st_mtime_ns for place in places if place.exists()}


def cases_on_disk(folder: Path) -> Counter[str]:
    """How often each case stands in a shard: looked up in the shards themselves, not in the index."""
    cases: Counter[str] = Counter()
    for path in folder.glob("shard-*.tar"):
        with tarfile.open(path) as tar:
            cases.update(name.removesuffix(".json") for name in tar.getnames() if name.endswith(".json"))
    for path in folder.glob("shard-*.zarr"):
        cases.update(inner.name for inner in path.iterdir() if inner.is_dir())
    return cases


def cases_in_results(folder: Path) -> Counter[str]:
    """The same by the stored results."""
    results = [json.loads(p.read_text().split("\n", 1)[1]) for p in (folder / ".build").glob("shard-*.json")]
    return Counter(volume["case"] for result in results for volume in result["volumes"])
