"""What a figure was measured on: hardware and versions, in one line."""

import os
import platform
from argparse import ArgumentTypeError
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def cpu_name() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def can_append(path: Path) -> Path:
    """For argparse: `path`, made if it is not there, so that nothing is measured for a result without a place."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise ArgumentTypeError(f"{path} takes no result: {error.strerror}") from None
    return path


def append_result(path: Path | None, text: str) -> None:
    """Prints a result, and appends it to the file of results if one is given."""
    print(text)
    if path is not None:
        with path.open("a") as file:
            file.write("\n" + text)


def describe(device: torch.device, packages: tuple[str, ...] = ()) -> str:
    """Device, threads, Python and versions of torch and `packages`."""
    if device.type == "cuda":
        memory_gib = torch.cuda.get_device_properties(device).total_memory / 2**30
        hardware = f"{torch.cuda.get_device_name(device)}, {memory_gib:.0f} GiB"
    else:
        hardware = f"{cpu_name()}, {torch.get_num_threads()} threads on {len(os.sched_getaffinity(0))} cores"
    versions = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for name in packages:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} absent")
    return ", ".join([hardware, *versions])
