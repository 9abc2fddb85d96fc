"""What a figure was measured on: hardware and versions, in one line."""

import os
import platform
import time
from argparse import ArgumentParser, ArgumentTypeError
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


def now_s(device: str) -> float:
    """The clock, read when all that the device was given is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def check_device(parser: ArgumentParser, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")


def add_write_option(parser: ArgumentParser) -> None:
    """`--write FILE`, refused at once where it takes no result: nothing is measured without a place for it."""
    parser.add_argument("--write", type=_appendable, help="append the result to this Markdown file")


def _appendable(text: str) -> Path:
    path = Path(text)
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
