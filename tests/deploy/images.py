"""Builds the image with buildah, and runs words in it as Kubernetes would: user 1000, read-only root, no capability.

No daemon and no runtime is needed, only root: buildah's chroot isolation builds, and Linux's namespaces run. They have
no network but loopback, so nothing can be fetched at a start. Costs 10 GB of disk while it lasts.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parents[2]
DOCKERFILE = PROJECT / "deploy" / "docker" / "Dockerfile"
# what of pip's configuration says where packages come from; constraints are the project's own
PIP_KEYS = {"cert", "client-cert", "find-links", "index-url", "proxy", "retries", "timeout", "trusted-host"}

# $1 root of the image, $2 what is mounted as /data, $3 its working folder
SANDBOX = """
ip link set lo up
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
mount --bind "$2" "$1/data"
mount -t tmpfs -o mode=1777 tmp "$1/tmp"
mount --rbind /dev "$1/dev"
mount -t tmpfs -o mode=1777 shm "$1/dev/shm"
mount -t proc proc "$1/proc"
root=$1 folder=$3
shift 3
exec chroot "$root" setpriv --reuid 1000 --regid 1000 --clear-groups --no-new-privs --bounding-set=-all \
    env -i -C "$folder" "$@"
"""


class Buildah(NamedTuple):
    """A store of images of its own, so that neither somebody's images nor theirs are in the way."""

    folder: Path

    def __call__(self, *words: object) -> str:
        """What it printed; raises CalledProcessError, its messages on standard error."""
        of_store = ("--root", self.folder / "store", "--runroot", self.folder / "run")
        command = ["buildah", *map(str, (*of_store, *words))]
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "BUILDAH_ISOLATION": "chroot"}
        ).stdout.strip()

    def build(self, context: Path, dockerfile: Path, *options: object) -> str:
        """The id of the image; `context` as its .dockerignore leaves it."""
        ignore = ("--ignorefile", context / ".dockerignore") if (context / ".dockerignore").exists() else ()
        return self("bud", "--quiet", "--layers=false", "--file", dockerfile, *ignore, *options, context)

    def root(self, image: str) -> Path:
        """Where a container's root file system lies. It is writable here: `Image.run` mounts it read-only."""
        return Path(self("mount", self("from", image)))

    def debian(self) -> str:
        """A base where no registry can be reached: Debian's own packages."""
        context = self.folder / "debian"
        context.mkdir()
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "bookworm", context / "root.tar"], check=True)
        (context / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
        return self.build(context, context / "Dockerfile")


class Image(NamedTuple):
    root: Path
    config: dict[str, Any]  # what OCI calls so: Env, User, WorkingDir, Cmd, Labels

    def run(self, *words: object, data: Path, check: bool = True) -> str:
        """What the words print, on both outputs, with `data` mounted as /data; user 1000 can write to it.

        AssertionError with what was printed, if they fail and `check` is set. Every process they started is ended.
        """
        os.chown(data, 1000, 1000)
        inside = [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "unshare",
            "--mount",
            "--pid",
            "--net",
            "--fork",
            "--kill-child",
            "sh",
            "-ec",
            SANDBOX,
            "sandbox",
        ]
        ended = subprocess.run(
            [*inside, self.root, data, self.config["WorkingDir"], *self.config["Env"], *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        assert not check or ended.returncode == 0, f"{words} ended with {ended.returncode}: {ended.stdout[-4000:]}"
        return ended.stdout


def pip_of_this_machine(folder: Path) -> list[str]:
    """Options that let a build take packages from where this machine's pip takes them, and leave no trace in the image.

    pip's configuration goes in as a secret, files and folders that it names as volumes.
    """
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True)
    pairs = (line.partition("=") for line in listed.stdout.splitlines())
    given = {key.rpartition(".")[2]: ast.literal_eval(quoted).split() for key, _, quoted in pairs}
    options, lines = [f"--secret=id=pip,src={folder / 'pip.conf'}"], ["[global]"]
    for key in PIP_KEYS & set(given):
        inside = [f"/mnt/{key}-{number}" if Path(word).exists() else word for number, word in enumerate(given[key])]
        options += [f"--volume={word}:{at}:ro" for word, at in zip(given[key], inside, strict=True) if word != at]
        lines.append(f"{key} = {' '.join(inside)}")
    (folder / "pip.conf").write_text("\n".join(lines))
    if any(any(Path(place).glob("torch-*+cpu-*.whl")) for place in given.get("find-links", ())):
        options.append(f"--build-arg=TORCH_INDEX_URL={given.get('index-url', ['https://pypi.org/simple'])[0]}")
    return options


def built(buildah: Buildah, base: str | None) -> Image:
    """The CPU image, on `base` or on a Debian made here."""
    options = [f"--build-arg=BASE={base or buildah.debian()}", *pip_of_this_machine(buildah.folder)]
    image = buildah.build(PROJECT, DOCKERFILE, *options)
    return Image(buildah.root(image), json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]["config"])
