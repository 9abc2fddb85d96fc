"""Where a result comes from: commit, versions, hardware. Facts about the machine, none about the people on it."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

LIBRARIES = ("torch", "deepspeed", "ray", "monai", "zarr", "webdataset", "mlflow", "numpy")


@cache
def commit() -> str:
    """The commit the code stands at, "+changes" behind it where the tree differs; "unknown" outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # nosec B603 # fixed words
        return done.stdout.strip()

    try:
        # an installed copy inside somebody else's checkout must not report that checkout's commit
        if Path(git("rev-parse", "--show-toplevel")) != Path(__file__).resolve().parents[1]:
            return "unknown"
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def hardware() -> str:
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{len(os.sched_getaffinity(0))} cores of {model}" + (f", {len(gpus)} x {gpus[0]}" if gpus else ", no GPU")


def maker() -> dict[str, str]:
    """This process's commit and hardware."""
    return {"commit": commit(), "hardware": hardware()}


@cache
def provenance() -> dict[str, str]:
    """Label -> value, in the order the report shows them."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return {
        **maker(),
        "versions": f"maetrain {version('maetrain')}, Python {platform.python_version()}, {versions}",
    }
