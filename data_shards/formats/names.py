"""Names that a file gives and that become paths: they stay in the folder they are read for.

An index names shards and cases, a manifest its files, an archive's dataset.json its scans. Whoever wrote these files
must not choose what else is read or written. A million names of a column are looked at as one run of bytes: some 30 ms.
"""

from pathlib import Path, PurePosixPath
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AfterValidator

_NEVER = "/\\\0"


def plain_name(name: str) -> str:
    """The name of something right in a folder. ValueError for "", a hidden one, "..", and one with a separator."""
    if not name or name.startswith(".") or any(sign in name for sign in _NEVER):
        raise ValueError(f"{name!r} is no plain name of a file")
    return name


PlainName = Annotated[str, AfterValidator(plain_name)]


def all_plain(names: pa.ChunkedArray) -> bool:
    """Whether every name of a text column is a plain one."""
    if pc.any(pc.equal(names, "")).as_py() or pc.any(pc.starts_with(names, ".")).as_py():
        return False
    return not any(sign.encode() in letters for letters in map(_letters, names.chunks) for sign in _NEVER)


def _letters(names: pa.StringArray) -> bytes:
    """The letters of all names, one name after the other."""
    _, offsets, letters = names.buffers()
    if letters is None or not len(names):
        return b""
    starts = memoryview(offsets).cast("i")
    first, last = starts[names.offset], starts[names.offset + len(names)]
    return letters.slice(first, last - first).to_pybytes()


def below(folder: Path, name: str) -> Path:
    """`folder / name` for a relative path that a file gives. ValueError where it would lead out of `folder`."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} leads out of {folder}")
    return folder / path
