"""Committed checkpoints: a checkpoint counts when its manifest is in place.

Every rank writes and hashes its own file; when all are there, rank 0 puts the manifest beside them, whole or not at
all. A crash at any moment leaves either a complete checkpoint or a folder without a manifest, which resume passes over
and the next start sweeps away. The folder's name ends with the attempt (one start of the training group) that wrote it:
a rank that was cut off and still lives can't write into its successor's files.

    checkpoints/step-00000100-1f9a62c0/rank-00000.safetensors, rank-00001.safetensors, curve.jsonl, manifest.json

`checkpoints` may be a folder or lie in a bucket (s3://). Costs one read of the files at resume, for the hashes.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from data_shards.formats.files import is_remote, is_there, listed, published, remove, write_bytes, write_text
from data_shards.formats.names import PlainName
from data_shards.formats.remote import fetch
from maetrain.checkpoint.writer import Lost

MANIFEST = "manifest.json"
Model = TypeVar("Model", bound=BaseModel)


class CheckpointFile(BaseModel):
    """`runs`: for a rank's file, which elements [start, stop) of which flattened parameter it holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: PlainName
    bytes: int
    sha256: str = Field(pattern="^[0-9a-f]{64}$")  # the name of its copy, where it comes out of a bucket
    runs: tuple[tuple[str, int, int], ...] = ()


class CheckpointManifest(BaseModel):
    """What a committed checkpoint holds; `state` is all that is not a tensor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[2] = 2
    step: int = Field(ge=0, description="optimizer steps done")
    samples_seen: int = Field(ge=0, description="position in the global order of samples")
    world_size: int = Field(ge=1)
    shard_index_sha256: str
    fingerprint: str = Field(description="hash of the configuration that the run is bound to")
    config: dict
    tensor_shapes: dict[str, list[int]] = Field(description="full shape of every parameter")
    state: dict
    files: tuple[CheckpointFile, ...]
    own_sha256: str = Field("", description="hash of the manifest's own file with nothing in this place")


class Found(NamedTuple):
    """The newest committed checkpoint, if any, and what was passed over on the way, with reasons."""

    path: Path | None
    manifest: CheckpointManifest | None
    skipped: tuple[str, ...]


def step_dir(checkpoints: Path, step: int, attempt: str) -> Path:
    return checkpoints / f"step-{step:08d}-{attempt}"


def step_of(folder: Path) -> int:
    return int(folder.name.split("-")[1])


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_model(path: Path, kind: type[Model]) -> Model:
    """The value of type `kind` that a JSON file holds. ValueError says in one line which key is wrong."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{key}: {first['msg']}" if key else first["msg"]) from None


def write_rank_file(folder: Path, rank: int, tensors: dict[str, Tensor]) -> CheckpointFile:
    """One rank's tensors ("kind|parameter|start") as safetensors, hashed, and safe in `folder`. Raises OSError."""
    name = f"rank-{rank:05d}.safetensors"
    keys = [key.split("|") for key in tensors if key.startswith("weight|")]
    runs = tuple((name, int(start), int(start) + tensors[f"weight|{name}|{start}"].numel()) for _, name, start in keys)
    with published(folder / name) as path:
        try:
            save_file(tensors, path)
        except SafetensorError as error:  # so it calls a full disk, too
            raise OSError(f"{folder / name}: {error}") from None
        return CheckpointFile(name=name, bytes=path.stat().st_size, sha256=sha256_file(path), runs=runs)


def write_text_file(folder: Path, name: str, text: str) -> CheckpointFile:
    """A small file that belongs to a checkpoint. Raises OSError."""
    content = text.encode()
    write_bytes(folder / name, content)
    return CheckpointFile(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def commit(folder: Path, manifest: CheckpointManifest) -> None:
    """The moment from which the checkpoint counts. Raises OSError; Lost where files of it have been swept away.

    So a group that was given up while it wrote can't pass off what its successor swept as a checkpoint, and then remove
    the whole one before it. It looks again behind the manifest: its machine may have stood still before that.
    """
    _check_not_swept(folder, manifest)
    text = manifest.model_dump_json(indent=1)
    before, key, after = text.rpartition('"own_sha256": "')
    write_text(folder / MANIFEST, before + key + hashlib.sha256(text.encode()).hexdigest() + after)
    try:
        _check_not_swept(folder, manifest)
    except Lost:
        remove(folder)
        raise


def _check_not_swept(folder: Path, manifest: CheckpointManifest) -> None:
    there = {path.name for path in listed(folder)}
    if missing := [file.name for file in manifest.files if file.name not in there]:
        raise Lost(f"{folder / missing[0]}: is gone; another start of the run has swept it away")


@cache
def _copies() -> tempfile.TemporaryDirectory:
    """Where this process keeps copies of files from a bucket, until it ends."""
    return tempfile.TemporaryDirectory(prefix="maetrain-checkpoint-", ignore_cleanup_errors=True)


def local_file(folder: Path, file: CheckpointFile) -> Path:
    """The file on this machine: itself, or a copy out of a bucket, fetched once and checked. ValueError or OSError."""
    if not is_remote(folder):
        return folder / file.name
    copy = Path(_copies().name) / file.sha256
    if not copy.is_file():
        fetch(folder / file.name, copy)
        try:
            _check(copy, file, folder / file.name)
        except ValueError:
            copy.unlink()
            raise
    return copy


def _fetched(path: Path) -> Path:
    copy = Path(_copies().name) / path.name
    fetch(path, copy)
    return copy


def forget_copies() -> None:
    """Removes the copies of files from buckets: after loading, their room may be needed."""
    _copies().cleanup()
    _copies.cache_clear()


def read_committed(folder: Path) -> CheckpointManifest:
    """The manifest of `folder`, all hashes checked. ValueError says what is wrong with it.

    A bucket that does not answer is no damage, but an OSError: to pass over what can't be read now would lose steps.
    """
    path = folder / MANIFEST
    if not is_there(path):
        raise ValueError(f"{folder}: never committed (no {MANIFEST})")
    here = _fetched(path) if is_remote(path) else path
    try:
        manifest = read_model(here, CheckpointManifest)
    except ValueError as error:
        raise ValueError(f"{path}: not a manifest: {error}") from None
    before, own, after = here.read_bytes().rpartition(manifest.own_sha256.encode() or b"none")
    if hashlib.sha256(before + after).hexdigest().encode() != own:
        raise ValueError(f"{path}: its SHA-256 is not the one it states")
    for file in manifest.files:
        try:
            _check(local_file(folder, file), file, folder / file.name)
        except OSError as error:
            if is_remote(folder):
                raise
            raise ValueError(f"{folder / file.name}: can't be read ({error.strerror or error})") from None
    return manifest


def _check(path: Path, file: CheckpointFile, name: Path) -> None:
    """ValueError unless the file at `path`, called `name`, is the one that the manifest describes."""
    if not path.is_file():
        raise ValueError(f"{name}: missing")
    if path.stat().st_size != file.bytes:
        raise ValueError(f"{name}: {path.stat().st_size} bytes, not {file.bytes}")
    if sha256_file(path) != file.sha256:
        raise ValueError(f"{name}: its SHA-256 is not the manifest's")


def step_folders(checkpoints: Path) -> list[Path]:
    """All checkpoint folders, committed or not, the latest step first."""
    folders = [folder for folder in listed(checkpoints) if folder.name.startswith("step-")]
    return sorted(folders, key=lambda folder: folder.name, reverse=True)


def newest_committed(checkpoints: Path, say: Callable[[str], None] = lambda _: None) -> Found:
    """Walks back from the newest folder to the first whose hashes hold; `say` hears what was passed over."""
    skipped: list[str] = []
    for folder in step_folders(checkpoints):
        try:
            manifest = read_committed(folder)
        except ValueError as error:
            skipped.append(str(error))
            say(f"checkpoint passed over: {error}")
        else:
            return Found(folder, manifest, tuple(skipped))
    return Found(None, None, tuple(skipped))


def retain(checkpoints: Path, keep: int, newest: Path) -> None:
    """Of the committed checkpoints up to `newest`, just written, removes all but those of the last `keep` steps.

    Uncommitted folders of earlier steps go, too, and another attempt's checkpoint of the same step: it is damaged, or
    the same. What lies behind `newest` was passed over as damaged when the run resumed: it stays until it is written
    again, and does not count, or it would push out the one to go on from.
    """
    folders = [folder for folder in step_folders(checkpoints) if step_of(folder) <= step_of(newest)]
    committed = [folder for folder in folders if is_there(folder / MANIFEST)]
    steps = sorted({step_of(folder) for folder in committed}, reverse=True)[: max(keep, 1)]
    for folder in folders:
        if step_of(folder) == step_of(newest):
            is_kept = folder.name == newest.name or folder not in committed
        else:
            is_kept = folder in committed and step_of(folder) in steps
        if not is_kept:
            remove(folder)


def sweep_orphans(checkpoints: Path, but: Iterable[Path] = ()) -> None:
    """Removes every folder that was never committed: what attempts left that ended while they were writing."""
    spared = {folder.name for folder in but}
    for folder in step_folders(checkpoints):
        if folder.name not in spared and not is_there(folder / MANIFEST):
            remove(folder)
