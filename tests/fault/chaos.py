"""`python -m tests.fault.chaos --kills 200 --mean-s 20 --folder FOLDER`: a small run under a rain of kills.

Two hosts with a Ray node each, a rank on each, the driver beside the head. Again and again something of it is killed at
random: a rank, the driver, a node, the head. A platform starts again what has ended, as systemd or a kubelet would, and
the command of the training is always the same. A share of the kills waits until the last one is got over; the others do
not, and strike whatever is just being started: on two cores, a start from nothing takes thrice the mean time.

After the last kill the run has to end by itself, with the curve of two ranks that nothing happened to, to the last bit.
Ended itself, the script goes on in the same folder. Needs root, and per kill about twice the mean time between two.
"""

import argparse
import logging
import math
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import torch

from benchmarks.machine import add_write_option, append_result, describe
from data_shards.build import BuildConfig, build
from data_shards.synthetic import SyntheticConfig, write_archive
from maetrain.train.curve import Curve
from tests.integration.settings import TINY

from .chaos_record import Draw, KillRecord, Target, draw_kills, read_records, table
from .driver import committed, newest_step, start_processes, start_run
from .hosts import Hosts, why_no_hosts
from .ray_cluster import RayCluster
from .supervisor import LEAVE_S, Platform, Watch

log = logging.getLogger("chaos")

SETTINGS = (
    *TINY,
    "pretrain.global_batch=16",  # slow enough that the curve, a part of each checkpoint, stays short
    "pretrain.micro_batch=4",
    "pretrain.zero_stage=1",
    "pretrain.stall_timeout_s=120",
    "cluster.pretrain_workers=2",  # fixed: on another number of ranks the curve is the same up to rounding only
    "cluster.cpus_per_worker=1",
    "cluster.max_failures=1000",
)
EVERY = 20  # steps between checkpoints
STEPS_PER_S = 9.0  # on two cores that do nothing else
_LOOK_EVERY_S = 0.2
_STILL_S = 300.0  # without a kill and without a new checkpoint


class Chaos:
    """Kills, and what came of each, one after the other."""

    def __init__(self, platform: Platform, watch: Watch, out: Path, records: Path) -> None:
        self.platform, self.watch, self.cluster, self.out = platform, watch, platform.cluster, out
        self.file, self.records = records, read_records(records)
        records.write_text("".join(record.model_dump_json() + "\n" for record in self.records))
        self.from_step = self.step
        self.began = time.monotonic() - (self.records[-1].wall_s if self.records else 0.0)
        self._open: KillRecord | None = None
        self._attempt = ""  # the start of the group that was there at the last kill
        self._group_starts = self._driver_starts = 0  # at the last kill

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.began

    @property
    def step(self) -> int:
        """Newest committed."""
        return max(0, newest_step(self.out))

    def rain(self, draws: Sequence[Draw]) -> None:
        """All kills, or fewer where the run ends before."""
        for number, draw in enumerate(draws, start=len(self.records) + 1):
            due = math.inf if draw.in_training else time.monotonic() + draw.wait_s
            self._moves()
            while time.monotonic() < due or not self._strike(number, draw):
                if self.platform.is_finished:
                    return
                self._tick()
                if due == math.inf:
                    self._assert_moves()
                if due == math.inf and self._is_training():
                    due = time.monotonic() + draw.wait_s

    def _is_training(self) -> bool:
        """The last kill is got over; or, where this script has struck none, a group has committed since it began."""
        if self._open is not None:
            return self._open.recovered_s is not None
        return self.step > self.from_step

    def until_the_end(self) -> None:
        """Without kills. AssertionError where the run stands still."""
        self._moves()
        while not self.platform.is_finished:
            self._tick()
            self._assert_moves()
        self._close()

    def _moves(self) -> None:
        """Counts the time without a new checkpoint from here."""
        self._stood_at, self._since = self.step, time.monotonic()

    def _assert_moves(self) -> None:
        if self.step > self._stood_at:
            self._moves()
        still_s = time.monotonic() - self._since
        assert still_s < _STILL_S, f"no new checkpoint behind step {self._stood_at} in {_STILL_S:g} s"

    def _tick(self) -> None:
        self.platform.tend()
        if self.platform.driver:
            self.watch.look(self.platform.driver.log_file)
        self._follow()
        time.sleep(_LOOK_EVERY_S)

    def _follow(self) -> None:
        """What comes of the last kill."""
        if (last := self._open) is None:
            return
        changes: dict[str, object] = {
            "group_starts": self.watch.group_starts - self._group_starts,
            "driver_starts": self.platform.driver_starts - self._driver_starts,
        }
        since_s = self.wall_s - last.wall_s
        if last.recovered_s is None:
            step, has_started = self.step, bool(changes["group_starts"])
            changes["kept"] = self.watch.resumed_at if has_started else step
            # without another start: what was killed was not needed any more, such as a rank of the driver before
            if step > (self.watch.resumed_at if has_started else last.committed + 5 * EVERY):
                changes["recovered_s"] = round(since_s, 1)
                log.info("kill %s is got over after %.1f s, at step %s", last.number, since_s, step)
        self._open = last.model_copy(update=changes)

    def _close(self) -> None:
        """The last kill's record is complete."""
        if self._open is not None:
            self.records.append(self._open)
            with self.file.open("a") as file:
                file.write(self._open.model_dump_json() + "\n")
            self._open = None

    def _strike(self, number: int, draw: Draw) -> bool:
        """False where nothing was there to be killed."""
        target = next((target for target in draw.targets if self._is_there(target)), None)
        if target is None:
            return False
        self._follow()
        self._close()
        driver, step = self.platform.driver, self.step
        reached = self.watch.reached() if self.watch.attempt != self._attempt else None
        self._attempt = self.watch.attempt
        self._group_starts, self._driver_starts = self.watch.group_starts, self.platform.driver_starts
        self._open = KillRecord(
            number=number,
            at=f"{datetime.now():%Y-%m-%dT%H:%M:%S}",
            wall_s=round(self.wall_s, 1),
            target=target,
            spares_driver=target == "head" and draw.spares_driver,
            committed=step,
            kept=step,
            reached=reached,
            recovered_s=None,
            group_starts=0,
            driver_starts=0,
        )
        log.info("kill %s: %s, at step %s, committed %s", number, target, reached, step)
        if target == "rank":
            ranks = self.cluster.rank_pids()
            with suppress(IndexError, ProcessLookupError):  # it was faster
                os.kill(ranks[int(draw.which * len(ranks))], signal.SIGKILL)
        elif target == "node":
            self.cluster.kill_node(1)
        elif target == "head":
            self.cluster.kill_head(but=[driver.group] if driver and draw.spares_driver else [])
        elif driver:
            driver.kill()
        return True

    def _is_there(self, target: Target) -> bool:
        driver = self.platform.driver
        if target == "driver":
            return driver is not None and driver.process.poll() is None
        if target == "rank":
            return bool(self.cluster.rank_pids())
        return self.platform.has_ray(1 if target == "node" else 0)


def make_shards(folder: Path) -> Path:
    """Twelve persons, once."""
    if not (folder / "shards").is_dir():
        write_archive(folder / "archive", SyntheticConfig(num_subjects=12, shape_XYZ=(24, 28, 20), num_classes=3))
        build(folder / "archive", folder / "shards.new", BuildConfig(format="zarr"))
        (folder / "shards.new").rename(folder / "shards")
    return folder / "shards"


def undisturbed(folder: Path, settings: Sequence[str]) -> Path:
    """The folder of a run of two ranks under torchrun that nothing happened to."""
    out, setup = folder / "whole", folder / "whole.json"
    start_run([*settings, "pretrain.checkpoint_every=500"], folder / "shards", out, setup_only=setup).finish()
    with start_processes(setup, out, 2) as run:
        run.finish(timeout_s=4 * 3600)
    return out


def numbers(out: Path) -> list[tuple[int, str]]:
    """Step, and loss, learning rate and gradient norm to the last bit, as they stand in the curve."""
    curve = Curve.load(out / "curve.jsonl")
    return [(point.step, repr((point.loss, point.learning_rate, point.gradient_norm))) for point in curve]


def logged_steps(out: Path) -> list[int]:
    """Of the loss in MLflow's store, as often as they stand there."""
    with closing(sqlite3.connect(out / "mlflow.db")) as store:
        return [step for (step,) in store.execute("select step from metrics where key = 'loss' order by step")]


def wrongs(out: Path, whole: Path, steps: int) -> list[str]:
    """What is not as it would be had nothing happened; nothing where all is well."""
    ours, theirs = numbers(out), numbers(whole)
    found = []
    if [step for step, _ in theirs] != list(range(1, steps + 1)):
        found.append("the undisturbed run is not complete")
    if [step for step, _ in ours] != list(range(1, steps + 1)):
        found.append(f"the curve has {len(ours)} points of {len(dict(ours))} steps, not each of {steps} once")
    if ours != theirs:
        first = next((step for (step, a), (_, b) in zip(ours, theirs, strict=False) if a != b), "none")
        found.append(f"the curve differs from the undisturbed one; first different step: {first}")
    logged, every = logged_steps(out), max(5, math.ceil(steps / 5000))  # as the driver spaces them
    if logged != sorted({*range(every, steps + 1, every), steps}):
        found.append(f"MLflow has {len(logged)} points of {len(set(logged))} steps")
    return found


def report(chaos: Chaos, options: argparse.Namespace, found: Sequence[str], left: str) -> str:
    """Markdown."""
    records, platform = chaos.records, chaos.platform
    step_s = [point.step_s for point in Curve.load(options.folder / "run" / "curve.jsonl")]
    last = records[-1]
    under_fire = sum(step_s[: last.committed]) / last.wall_s
    ends = ", ".join(f"{end} ({count} times)" for end, count in sorted(platform.ends.items())) or "none"
    verdict = f"no: {'; '.join(found)}" if found else "yes"
    return "\n\n".join([
        f"## {len(records)} kills, mean {options.mean_s:g} s, seed {options.seed}, {datetime.now():%Y-%m-%d}",
        f"`python -m tests.fault.chaos --kills {options.kills} --mean-s {options.mean_s:g} --seed {options.seed} "
        f"--in-training {options.in_training:g}`: "
        f"{options.steps} steps of two ranks on two hosts (network namespaces), a checkpoint every {EVERY}. "
        f"{describe(torch.device('cpu'))}.",
        table(records).rstrip(),
        f"Curve equal bit for bit to that of two undisturbed ranks, each step once, also in MLflow: **{verdict}**.",
        f"{last.wall_s / 60:.0f} min until the last kill, {chaos.wall_s / 60:.0f} min until the end. Until the last "
        f"kill {100 * under_fire:.0f} % of the time went into steps that stand in the curve ({last.committed} of them)."
        f" Left behind: {left}. Drivers that outlived their head by {LEAVE_S:g} s: {platform.stuck}. Ends since the "
        f"script was last started that were no good ones, kills included: {ends}.\n",
    ])  # fmt: skip


def leftovers(cluster: RayCluster, out: Path) -> str:
    """Behind the end of the run."""
    deadline = time.monotonic() + 30
    while cluster.rank_pids() and time.monotonic() < deadline:
        time.sleep(1)
    folders = {path.name for path in (out / "checkpoints").iterdir()} - set(committed(out))
    strays = [path for path in out.rglob("*") if path.name.startswith(".tmp-") or "partial" in path.name]
    ranks = len(cluster.rank_pids())
    return f"{len(folders)} checkpoints without a manifest, {len(strays)} half files, {ranks} ranks"


def enough_steps(kills: int, mean_s: float, in_training: float) -> int:
    """So many that the run does not end before the last kill. Of those that don't wait, a tenth meets a training."""
    trainings = kills * (in_training + 0.1 * (1 - in_training)) + 5
    return EVERY * math.ceil(STEPS_PER_S * mean_s * trainings / EVERY)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fault.chaos", description="kill a small run again and again")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--mean-s", type=float, default=20, help="mean time between kills; they are drawn up to 5 x it")
    parser.add_argument("--in-training", type=float, default=0.25, help="share of the kills that wait for a training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of the run; default: as many as it takes not to end too early")
    parser.add_argument("--folder", type=Path, required=True, help="of everything; the same one again goes on")
    add_write_option(parser)
    options = parser.parse_args()
    options.steps = options.steps or enough_steps(options.kills, options.mean_s, options.in_training)
    options.folder = options.folder.resolve()
    return options


def main() -> int:
    options = parse()
    if reason := why_no_hosts():
        sys.exit(f"chaos: {reason}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the hosts are taken down
    folder, out = options.folder, options.folder / "run"
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        handlers=[logging.StreamHandler(), logging.FileHandler(folder / "chaos.log")],
    )
    shards = make_shards(folder)
    settings = (*SETTINGS, f"pretrain.steps={options.steps}", f"pretrain.checkpoint_every={EVERY}")
    with Hosts(2) as hosts:
        cluster = RayCluster(hosts)
        driver = partial(start_run, settings, shards, out, cluster.address, cluster.env, cluster.head)
        platform = Platform(cluster, driver)
        chaos = Chaos(platform, Watch(out / "checkpoints"), out, folder / "kills.jsonl")
        draws = draw_kills(options.seed, options.kills, options.mean_s, options.in_training)[len(chaos.records) :]
        try:
            chaos.rain(draws)
            log.info("no more kills, at step %s", chaos.step)
            chaos.until_the_end()
            left = leftovers(cluster, out)
        finally:
            cluster.stop()
    log.info("the run has ended; the undisturbed one")
    found = wrongs(out, undisturbed(folder, settings), options.steps)
    if len(chaos.records) < options.kills:
        found.append(f"the run ended after {len(chaos.records)} kills: use more --steps")
    if not chaos.records:
        sys.exit(f"chaos: {'; '.join(found)}")
    append_result(options.write, report(chaos, options, found, left))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
