"""Small pretraining runs in processes of their own: data to run on, starting them, and reading what they left."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from data_shards.build import BuildConfig, build
from data_shards.formats.index import ShardIndex
from data_shards.synthetic import SyntheticConfig, write_archive
from maetrain.models.config import NNFormerConfig
from maetrain.models.sizes import CONFIGS
from maetrain.train.config import PretrainConfig, PretrainSetup
from maetrain.train.curve import Curve

ROOT = Path(__file__).resolve().parents[1]
PYTHONPATH = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
ENV = {"OMP_NUM_THREADS": "1", "PYTHONPATH": PYTHONPATH}
# as the console script, but of the code that is measured and not of the one that is installed
CONSOLE = (sys.executable, "-c", "from cluster.cli import main; main()")

SMALL = CONFIGS["tiny"](1)
LARGE = CONFIGS["tumor"](1)  # 31 M parameters with the MAE decoder; mask unit 32^3


def make_shards(folder: Path) -> ShardIndex:
    """Twenty-four synthetic persons, scans of 72 x 72 x 40 voxels."""
    write_archive(folder / "archive", SyntheticConfig(shape_XYZ=(72, 72, 40), rescanned_share=0))
    return build(folder / "archive", folder / "shards", BuildConfig(format="zarr"))


def setup_of(
    index: ShardIndex, run_dir: Path, model: NNFormerConfig, crop_DHW: tuple[int, int, int], **settings: object
) -> PretrainSetup:
    return PretrainSetup(
        model=model,
        pretrain=PretrainConfig.model_validate({"crop_DHW": crop_DHW, "warmup_steps": 1, **settings}),
        shards=str(index.root),
        pool_subjects=tuple(sorted({volume.subject for volume in index.volumes})),
        run_dir=str(run_dir),
    )


def torchrun(ranks: int) -> list[str]:
    """The words before `-m module`: one plain process, or torchrun with several."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [sys.executable, *(words if ranks > 1 else [])]


def train_words(setup: PretrainSetup, ranks: int) -> list[str]:
    """`python -m maetrain.train`, alone or under torchrun; the setup is written beside the run's folder."""
    path = Path(setup.run_dir).with_suffix(".json")
    path.write_text(setup.model_dump_json())
    return [*torchrun(ranks), "-m", "maetrain.train", str(path)]


def start(words: Sequence[str], log: Path, env: dict[str, str] | None = None) -> subprocess.Popen:
    """In a session of its own, so that all of it can be ended."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        return subprocess.Popen(
            list(words),
            cwd=log.parent,
            env={**os.environ, **ENV, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: subprocess.Popen) -> None:
    """SIGTERM, on which a run leaves a checkpoint and Ray its processes; then SIGKILL to what is left."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(60)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finished(process: subprocess.Popen, log: Path, timeout_s: float = 900) -> None:
    """Waits for a good end. RuntimeError, with the end of the log, for another."""
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        end(process)
        code = -1
    if code:
        raise RuntimeError(f"ended with {code}: {log.read_text()[-2000:]}")


def run(words: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
    finished(start(words, log, env), log)


def curve_of(setup: PretrainSetup) -> Curve:
    return Curve.load(Path(setup.run_dir) / "curve.jsonl")


def committed_step(run_dir: Path) -> int:
    """Of the newest committed checkpoint, -1 before the first."""
    manifests = (run_dir / "checkpoints").glob("step-*/manifest.json")
    return max((int(path.parent.name.split("-")[1]) for path in manifests), default=-1)


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen, log: Path, timeout_s: float = 300) -> float:
    """Looks a hundred times a second; the clock when it was so. RuntimeError where the process ends before."""
    give_up = time.monotonic() + timeout_s
    while not is_so():
        if process.poll() is not None or time.monotonic() > give_up:
            raise RuntimeError(f"{process.returncode}, no step: {log.read_text()[-2000:]}")
        time.sleep(0.01)
    return time.monotonic()


def forget(setup: PretrainSetup) -> None:
    shutil.rmtree(setup.run_dir, ignore_errors=True)


def descendants(pid: int) -> list[int]:
    """Processes below `pid`."""
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]
