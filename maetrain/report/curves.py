"""curves.csv: the monitor curve of each finetune job, one row per (budget, arm, seed, step).

With scores.csv it is all that the report's figures are made of, so that a folder of results small enough to be
committed regenerates every one of them.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from data_shards.errors import InputError
from data_shards.formats.files import published
from maetrain.report.inputs import Curve

HEADER = ("budget", "arm", "seed", "step", "dice")


def write_curves(path: Path, curves: Sequence[Curve]) -> None:
    """Sorted by job, every digit kept, whole or not at all."""
    with published(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for curve in sorted(curves, key=lambda curve: (curve.budget, curve.arm, curve.seed)):
            for step, dice in zip(curve.steps, curve.dice, strict=True):
                writer.writerow([curve.budget, curve.arm, curve.seed, step, repr(float(dice))])


def read_curves(path: Path) -> list[Curve]:
    """One curve a job, in the order of the file. Raises InputError naming file and line."""
    points: dict[tuple[int, str, int], list[tuple[int, float]]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            if tuple(header := next(lines, [])) != HEADER:
                raise InputError(f"{path}: header {','.join(header)[:120]!r} is not {','.join(HEADER)!r}; correct it")
            for fields in filter(None, lines):
                try:
                    budget, arm, seed, step, dice = fields
                    if not 0 <= float(dice) <= 1:
                        raise ValueError(f"Dice {dice} is not 0..1")
                    points.setdefault((int(budget), arm, int(seed)), []).append((int(step), float(dice)))
                except ValueError as error:
                    raise InputError(
                        f"{path}, line {lines.line_num}: {error}; a row is {','.join(HEADER)}, all but arm numbers"
                    ) from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; give a folder that can be read") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable CSV file ({error}); copy it again or remove it") from error
    curves = []
    for (of_budget, of_arm, of_seed), own in points.items():
        steps, values = [list(column) for column in zip(*own, strict=True)]
        try:
            curves.append(Curve(budget=of_budget, arm=of_arm, seed=of_seed, steps=steps, dice=values))
        except ValidationError as error:
            what = f"budget {of_budget}, arm {of_arm!r}, seed {of_seed}: {error.errors()[0]['msg']}"
            raise InputError(f"{path}: {what}; correct the rows") from error
    return curves
