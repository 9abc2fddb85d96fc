"""Weak scaling of the training loop, and what a checkpoint costs the steps beside it.

python -m benchmarks.training_speed SETUP.json TIMES.json     # a run that notes its times; `stall_section` starts it
"""

import json
import os
import sys
import time
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from benchmarks.model import spread
from benchmarks.training_runs import (
    LARGE,
    SMALL,
    curve_of,
    finished,
    forget,
    run,
    setup_of,
    start,
    train_words,
)
from data_shards.formats.index import ShardIndex
from maetrain.train.config import PretrainSetup
from maetrain.train.group import joined_group
from maetrain.train.pretrain import pretrain
from maetrain.train.saving import Saver

WARM_UP = 5  # first steps left out
SCALING_STEPS = 30
CHECKPOINTS = 5


class Speed(NamedTuple):
    """Of a run: volumes/s of all ranks, and where a step's seconds went (medians over steps, means over ranks)."""

    volumes_per_s: float
    step_s: float
    comm_s: float
    data_s: float


def _speed(setup: PretrainSetup) -> Speed:
    steps = curve_of(setup)[WARM_UP:]
    step_s = median(point.step_s for point in steps)
    return Speed(
        setup.pretrain.global_batch / step_s,
        step_s,
        median(point.comm_wait_s for point in steps),
        median(point.data_wait_s for point in steps),
    )


def _together(index: ShardIndex, folder: Path, name: str, ranks: int, copies: int, pinned: bool) -> Speed:
    """`copies` runs of `ranks` ranks at a time, each on a core of its own where `pinned`."""
    cores = sorted(os.sched_getaffinity(0))
    started = []
    for copy in range(copies):
        setup = setup_of(
            index,
            folder / f"{name}-{copy}",
            SMALL,
            (32, 32, 32),
            micro_batch=4,
            global_batch=4 * ranks,
            steps=WARM_UP + SCALING_STEPS,
            checkpoint_every=1000,
        )
        words = ["taskset", "-c", str(cores[copy % len(cores)])] if pinned else []
        log = folder / f"{name}-{copy}.log"
        started.append((setup, start([*words, *train_words(setup, ranks)], log), log))
    for _, process, log in started:
        finished(process, log)
    speeds = [_speed(setup) for setup, _, _ in started]
    for setup, _, _ in started:
        forget(setup)
    return Speed(
        sum(s.volumes_per_s for s in speeds), *(mean(values) for values in list(zip(*speeds, strict=True))[1:])
    )


def scaling_section(index: ShardIndex, folder: Path, rounds: int) -> list[str]:
    cores = len(os.sched_getaffinity(0))
    cases = {
        "1 rank, on one core": (1, 1, True),
        "2 runs apart, a core each": (1, 2, True),
        "1 rank": (1, 1, False),
        "2 ranks": (2, 1, False),
        "4 ranks": (4, 1, False),
    }
    speeds: dict[str, list[Speed]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in list(cases)[:: 1 if number % 2 == 0 else -1]:
            speeds[name].append(_together(index, folder, name.replace(" ", "-"), *cases[name]))
            print(f"round {number + 1}, {name}: {speeds[name][-1]}", file=sys.stderr, flush=True)
    lines = [
        f"{rounds} rounds in alternating order, {SCALING_STEPS} steps each of the `tiny` network, crop 32^3, 4 crops a "
        f"rank, a thread a rank, {cores} cores. Of one core's speed: of `1 rank, on one core` in the same round, times "
        "the cores that the case can use. Two runs apart share nothing but the machine: what they lose is its own.",
        "",
        "| case | volumes/s | of one core's speed | step, s | compute | waiting for ranks | waiting for data |",
        "|---|---|---|---|---|---|---|",
    ]
    one = speeds["1 rank, on one core"]
    for name, (ranks, copies, _) in cases.items():
        usable = min(ranks * copies, cores)
        shares = [s.volumes_per_s / usable / o.volumes_per_s for s, o in zip(speeds[name], one, strict=True)]
        parts = [(s.step_s - s.comm_s - s.data_s, s.comm_s, s.data_s) for s in speeds[name]]
        compute, comm, data = (
            spread([100 * part[i] / s.step_s for part, s in zip(parts, speeds[name], strict=True)], ".0f") + " %"
            for i in range(3)
        )
        lines.append(
            f"| {name} | {spread([s.volumes_per_s for s in speeds[name]], '.1f')} | {spread(shares, '.2f')} | "
            f"{spread([s.step_s for s in speeds[name]], '.3f')} | {compute} | {comm} | {data} |"
        )
    return lines


def _note_times(setup: PretrainSetup, path: Path) -> None:
    """Runs, and writes when steps ended, when checkpoints were begun (and for how long that took) and committed."""
    steps: list[tuple[int, float]] = []
    begun: list[tuple[int, float]] = []
    committed: list[tuple[int, float]] = []
    begin = Saver.begin

    def timed(self: Saver, step: int, *rest: object) -> None:
        at = time.perf_counter()
        begin(self, step, *rest)  # type: ignore[arg-type]
        begun.append((step, time.perf_counter() - at))

    Saver.begin = timed  # type: ignore[method-assign, assignment]
    with joined_group() as who:
        pretrain(
            setup,
            who,
            on_step=lambda info: steps.append((info.step, time.perf_counter())),
            on_commit=lambda step, _: committed.append((step, time.perf_counter())),
        )
    path.write_text(json.dumps({"steps": steps, "begun": begun, "committed": committed}))


class Stall(NamedTuple):
    """What one checkpoint takes from the training."""

    copy_s: float  # the step loop waits for it
    slower_s: float  # the steps until the commit take longer than others, all together
    steps_until_commit: int
    step_s: float

    @property
    def share(self) -> float:
        """Of 100 steps."""
        return (self.copy_s + self.slower_s) / (100 * self.step_s)


def stalls_of(times: dict) -> list[Stall]:
    """A checkpoint each. A step's time runs from its predecessor's end, so it holds the copy that came between."""
    ends, begun = dict(times["steps"]), dict(times["begun"])
    took = {step: ends[step] - ends[step - 1] for step in ends if step - 1 in ends}
    commits = dict(times["committed"])
    last = max(ends)
    windows = {}
    for step in begun:
        if 0 < step < last and step in commits:  # the first comes before any step, the last behind all
            windows[step] = [s for s in took if s > step and ends[s - 1] < commits[step]]
    beside = {s for window in windows.values() for s in window}
    step_s = median(t for s, t in took.items() if s > WARM_UP and s not in beside)
    found = []
    for step, window in windows.items():
        longer_s = sum(took[s] - step_s for s in window)
        found.append(Stall(begun[step], longer_s - begun[step], len(window), step_s))
    return found


def stall_section(index: ShardIndex, folder: Path, rounds: int) -> list[str]:
    lines = [
        f"One process, {CHECKPOINTS} checkpoints a run, {rounds} runs. A checkpoint costs the copy of all state, for "
        "which a step waits, and what the writing beside takes from the steps until it is committed: their time beyond "
        "the median of all other steps. Aim: below 2 % of 100 steps.",
        "",
        "| network | step, s | copy, s | steps beside slower by, s in all | steps until commit | of 100 steps | "
        "of 100 steps, copy alone |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, model, crop_DHW, every in (
        ("tiny, 1.2 M", SMALL, (32, 32, 32), 40),
        ("tumor, 31 M", LARGE, (64, 32, 32), 20),
    ):
        found: list[Stall] = []
        for number in range(rounds):
            setup = setup_of(
                index,
                folder / f"stall-{name.split(',')[0]}-{number}",
                model,
                crop_DHW,
                micro_batch=2,
                global_batch=2,
                steps=every * (CHECKPOINTS + 1),
                checkpoint_every=every,
            )
            setup_file, times = Path(setup.run_dir).with_suffix(".json"), Path(setup.run_dir).with_suffix(".times")
            setup_file.write_text(setup.model_dump_json())
            words = [sys.executable, "-m", "benchmarks.training_speed", str(setup_file), str(times)]
            run(words, Path(setup.run_dir).with_suffix(".log"))
            found += stalls_of(json.loads(times.read_text()))
            forget(setup)
            print(f"{name}: {found[-CHECKPOINTS:]}", file=sys.stderr, flush=True)
        lines.append(
            f"| {name} | {spread([s.step_s for s in found], '.3f')} | {spread([s.copy_s for s in found], '.3f')} | "
            f"{spread([s.slower_s for s in found], '.2f')} | {spread([s.steps_until_commit for s in found], '.0f')} | "
            f"{spread([100 * s.share for s in found], '.2f')} % | "
            f"{median(s.copy_s / s.step_s for s in found):.2f} % |"
        )
    return lines


if __name__ == "__main__":
    _note_times(PretrainSetup.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
