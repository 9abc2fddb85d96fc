"""Committed checkpoints: a checkpoint counts when its manifest is in place.

Every rank writes its own file and hashes it; rank 0 then writes the manifest under a temporary name, syncs it
and renames it. A crash at any moment leaves either a complete checkpoint or a directory without a manifest,
which resume passes over and the next save sweeps away. Costs one read of the files at resume, for the hashes.

    checkpoints/step-00000100/rank-00000.safetensors, rank-00001.safetensors, manifest.json
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

MANIFEST = "manifest.json"
Model = TypeVar("Model", bound=BaseModel)


class CheckpointFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[\w.-]+$")
    bytes: int
    sha256: str


class CheckpointManifest(BaseModel):
    """What a committed checkpoint holds; `state` is all that is not a tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    step: int = Field(ge=0, description="optimizer steps done")
    samples_seen: int = Field(ge=0, description="position in the global order of samples")
    world_size: int = Field(ge=1)
    shard_index_sha256: str
    fingerprint: str = Field(description="hash of the configuration that the run is bound to")
    config: dict
    tensor_shapes: dict[str, list[int]] = Field(description="full shape of every parameter")
    state: dict
    files: tuple[CheckpointFile, ...]


class Found(NamedTuple):
    """The newest committed checkpoint, if any, and what was passed over on the way, with reasons."""

    path: Path | None
    manifest: CheckpointManifest | None
    skipped: tuple[str, ...]


def step_dir(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, text: str) -> None:
    """The file holds either its old content or all of `text`, whenever the power goes."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    fsync_path(partial)
    partial.rename(path)
    fsync_path(path.parent)


def read_model(path: Path, kind: type[Model]) -> Model:
    """The value of type `kind` that a JSON file holds. ValueError says in one line which key is wrong."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{key}: {first['msg']}" if key else first["msg"]) from None


def write_rank_file(folder: Path, rank: int, tensors: dict[str, Tensor]) -> CheckpointFile:
    """One rank's tensors as safetensors, synced to disk and hashed."""
    path = folder / f"rank-{rank:05d}.safetensors"
    save_file(tensors, path)
    fsync_path(path)
    return CheckpointFile(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path))


def commit(folder: Path, manifest: CheckpointManifest) -> None:
    """The moment from which the checkpoint counts."""
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=1))


def read_committed(folder: Path) -> CheckpointManifest:
    """The manifest of `folder`, all hashes checked. ValueError says what is wrong with it."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder}: never committed (no {MANIFEST})")
    try:
        manifest = read_model(path, CheckpointManifest)
    except ValueError as error:
        raise ValueError(f"{path}: not a manifest: {error}") from None
    for file in manifest.files:
        if not (folder / file.name).is_file():
            raise ValueError(f"{folder / file.name}: missing")
        if (folder / file.name).stat().st_size != file.bytes:
            raise ValueError(f"{folder / file.name}: {(folder / file.name).stat().st_size} bytes, not {file.bytes}")
        if sha256_file(folder / file.name) != file.sha256:
            raise ValueError(f"{folder / file.name}: its SHA-256 is not the manifest's")
    return manifest


def newest_committed(checkpoints: Path, say: Callable[[str], None] = lambda _: None) -> Found:
    """Walks back from the newest directory to the first whose hashes hold; `say` hears what was passed over."""
    skipped: list[str] = []
    for folder in sorted(checkpoints.glob("step-*"), reverse=True):
        try:
            manifest = read_committed(folder)
        except ValueError as error:
            skipped.append(str(error))
            say(f"checkpoint passed over: {error}")
        else:
            return Found(folder, manifest, tuple(skipped))
    return Found(None, None, tuple(skipped))


def retain(checkpoints: Path, keep: int, newest: Path) -> None:
    """Of the committed checkpoints up to `newest`, the one just written, removes all but the last `keep`.

    Uncommitted directories before it go, too. What lies behind it was passed over as damaged when the run resumed:
    it stays until it is written again, and does not count, or it would push out the one the run can go on from.
    """
    folders = [f for f in sorted(checkpoints.glob("step-*"), reverse=True) if f.name <= newest.name]
    kept = [f for f in folders if (f / MANIFEST).is_file()][: max(keep, 1)]
    for folder in folders:
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)
