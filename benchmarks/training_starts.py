"""Seconds from a command to the first step of training, and from a killed rank to the next one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmarks.model import spread
from benchmarks.training_runs import (
    CONSOLE,
    SMALL,
    committed_step,
    descendants,
    end,
    finished,
    setup_of,
    start,
    train_words,
    wait_until,
)
from data_shards.formats.index import ShardIndex

FIRST_STEPS = 2
KILL_AT = 20
SETTINGS: dict[str, object] = {
    "micro_batch": 2,
    "global_batch": 4,
    "checkpoint_every": 1,  # so that a step is seen from outside, by its committed checkpoint
    "keep_checkpoints": 1000,
}


def _console(index: ShardIndex, run_dir: Path, ranks: int, steps: int) -> list[str]:
    """`maetrain pretrain` with a Ray of its own, the same network and settings as `setup_of` gives the others."""
    model = {name: getattr(SMALL, name) for name in ("embed_dim", "num_heads", "decoder_heads", "windows")}
    settings = {f"model.{name}": value for name, value in model.items()}
    settings |= {f"pretrain.{name}": value for name, value in SETTINGS.items()}
    settings |= {"pretrain.crop_DHW": (32, 32, 32), "pretrain.steps": steps, "pretrain.warmup_steps": 1}
    settings |= {"pretrain.mae.mode": "visible", "cluster.pretrain_workers": ranks, "cluster.cpus_per_worker": 1}
    words = [f"{name}={value}".replace("(", "[").replace(")", "]").replace(" ", "") for name, value in settings.items()]
    return [*CONSOLE, "pretrain", "demo", *words, "--shards", str(index.root), "--out", str(run_dir)]


def _first_step_s(words: list[str], run_dir: Path) -> float:
    log = run_dir.with_suffix(".log")
    began = time.monotonic()
    process = start(words, log)
    try:
        seconds = wait_until(lambda: committed_step(run_dir) >= 1, process, log) - began
        finished(process, log)
        return seconds
    finally:
        end(process)


def start_section(index: ShardIndex, folder: Path, rounds: int) -> list[str]:
    def processes(ranks: int) -> Callable[[Path], list[str]]:
        return lambda run_dir: train_words(
            setup_of(index, run_dir, SMALL, (32, 32, 32), steps=FIRST_STEPS, **SETTINGS), ranks
        )

    cases: dict[str, Callable[[Path], list[str]]] = {
        "`python -m maetrain.train`, 1 process": processes(1),
        "the same under torchrun, 2 ranks": processes(2),
        "`maetrain pretrain` with local Ray, 2 ranks": lambda run_dir: _console(index, run_dir, 2, FIRST_STEPS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        for i, (name, words_of) in enumerate(cases.items()):
            run_dir = folder / f"start-{i}-{number}"
            seconds[name].append(_first_step_s(words_of(run_dir), run_dir))
            print(f"{name}: {seconds[name][-1]:.1f} s", file=sys.stderr, flush=True)
    return [
        f"From the command to the committed checkpoint of step 1, {rounds} starts each, files in the page cache.",
        "",
        "| command | s |",
        "|---|---|",
        *(f"| {name} | {spread(values, '.1f')} |" for name, values in seconds.items()),
    ]


def _ray_ranks(driver: subprocess.Popen) -> list[int]:
    """Processes of Ray Train's ranks."""
    ranks = []
    for pid in descendants(driver.pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                ranks.append(pid)
    return ranks


def _restart_s(index: ShardIndex, run_dir: Path) -> float:
    log = run_dir.with_suffix(".log")
    process = start(_console(index, run_dir, 2, 100_000), log)
    try:
        wait_until(lambda: committed_step(run_dir) >= KILL_AT, process, log)
        os.kill(_ray_ranks(process)[-1], signal.SIGKILL)
        killed, reached = time.monotonic(), committed_step(run_dir)
        # two more: one that was under way could still be committed by the first rank
        return wait_until(lambda: committed_step(run_dir) >= reached + 2, process, log) - killed
    finally:
        end(process)


def restart_section(index: ShardIndex, folder: Path, rounds: int) -> list[str]:
    seconds: list[float] = []
    for number in range(rounds):
        seconds.append(_restart_s(index, folder / f"restart-{number}"))
        print(f"restart: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
    return [
        f"`maetrain pretrain`, 2 ranks under local Ray, a checkpoint every step: from SIGKILL to a rank until the "
        f"second step beyond the newest checkpoint is committed: {spread(seconds, '.1f')} s, {rounds} times.",
    ]
