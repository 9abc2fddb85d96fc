"""What goes with a job: a source tree without data, or one recipe.

Ray keeps a package in the memory of the head and unpacks it on every node, so scans, shards and models have no business
in it. Where the folder is a git checkout, what git ignores stays here, too. The size is known before anything is sent.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.entrypoint import looks_like_a_secret
from data_shards.errors import InputError

LIMIT_MIB = 100
_FOLDERS = {"__pycache__", "build", "data", "dist", "mlartifacts", "mlflow-server", "mlruns", "node_modules", "runs"}
_FOLDERS |= {"shards", "venv"}
# a folder that holds one of these is an archive, shards, a run, a sweep or a server of MLflow
_DATA_FOLDER = {"dataset.json", "index.json", "run.json", "sweep.json", "dataset_description.json"}
_DATA_FOLDER |= {"accounts.db", "basic_auth.ini", "server.json"}
_DATA = (".nii", ".nii.gz", ".dcm", ".nrrd", ".mha", ".mhd", ".tar", ".npy", ".npz", ".h5", ".db", ".parquet")
_MODELS = (".safetensors", ".pt", ".pth", ".ckpt", ".onnx")
_KEYS = (".pem", ".key", ".p12", ".env")
_KEY_FILES = re.compile(r"id_(rsa|dsa|ecdsa|ed25519)(_sk)?|kubeconfig", re.IGNORECASE)
_TEXTS = (".py", ".md", ".rst")  # of a program, which may be about secrets


@contextmanager
def packed(folder: Path, limit_mib: int = LIMIT_MIB) -> Iterator[Path]:
    """A copy of `folder` without what is left out. InputError above `limit_mib`, naming the largest file."""
    files = source_files(folder)
    if not files:
        raise InputError(
            f"--working-dir {folder}: nothing to send in it: hidden, ignored by git, or data; leave it out"
        )
    sizes = {path: (folder / path).stat().st_size for path in files}
    if (total := sum(sizes.values())) > limit_mib * 2**20:
        largest = max(sizes, key=lambda path: sizes[path])
        raise InputError(
            f"--working-dir {folder}: {total / 2**20:.0f} MiB in {len(files)} files, above {limit_mib} MiB; the "
            f"largest is {largest} ({sizes[largest] / 2**20:.0f} MiB): keep data elsewhere, or list it in .gitignore"
        )
    with tempfile.TemporaryDirectory() as scratch:
        for path in files:
            (Path(scratch) / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / path, Path(scratch) / path)
        yield Path(scratch)


@contextmanager
def packed_recipe(recipe: Path) -> Iterator[Path]:
    """A folder with nothing but this file."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy2(recipe, Path(scratch) / recipe.name)
        yield Path(scratch)


def source_files(folder: Path) -> list[Path]:
    """Relative paths of what is packed, in order. Links are left out: they may lead anywhere."""
    known = _known_to_git(folder)
    found = [path for path in (_walk(folder) if known is None else known) if not _stays_here(path.name)]
    is_data = {parent: _holds_data(folder, parent) for path in found for parent in path.parents}
    return sorted(p for p in found if not any(is_data[up] for up in p.parents) and _is_file(folder / p))


def _stays_here(name: str) -> bool:
    """A file of data, a model, or what may be a secret."""
    if name.endswith((*_DATA, *_MODELS, *_KEYS)) or _KEY_FILES.fullmatch(name):
        return True
    return looks_like_a_secret(name) and not name.endswith(_TEXTS)


def _is_file(path: Path) -> bool:
    # hidden ones are for this machine; .env may hold secrets
    return path.is_file() and not path.is_symlink() and not path.name.startswith(".")


def _holds_data(folder: Path, parent: Path) -> bool:
    if parent == Path("."):
        return False
    hidden_or_made = parent.name.startswith(".") or parent.name in _FOLDERS or parent.name.endswith(".zarr")
    return hidden_or_made or any((folder / parent / name).exists() for name in _DATA_FOLDER)


def _known_to_git(folder: Path) -> list[Path] | None:
    """Tracked files and those that git would track; None where this is no checkout, or there is no git."""
    if shutil.which("git") is None:
        return None
    asked = ["git", "-C", str(folder), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(asked, capture_output=True, text=True)  # nosec B603 # no shell; a folder that is there
    return [Path(name) for name in done.stdout.split("\0") if name] if done.returncode == 0 else None


def _walk(folder: Path) -> list[Path]:
    found = []
    for here, folders, names in os.walk(folder):
        below = Path(here).relative_to(folder)
        folders[:] = [name for name in folders if not _holds_data(folder, below / name)]
        found += [below / name for name in names]
    return found
