"""scores.csv: one row per (budget, arm, seed, case, class), the raw material of every number in the report.

A row checks itself when it is made, and a table checks that no row occurs twice, that each case belongs to one
person, and that all jobs were scored on the same cases and classes, because each of these mistakes would pass silently
through every mean that comes later.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_shards.errors import InputError
from data_shards.formats.files import published
from maetrain.evaluate.metrics import CaseScore

HEADER = ("budget", "arm", "seed", "case", "subject", "class", "dice", "hd95_mm", "surface_dice")


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one class in one test case, by the model of one (budget, arm, seed).

    budget: labelled persons finetuned on, at least 1. dice, surface_dice: 0..1. hd95_mm: at least 0, finite.
    """

    budget: int
    arm: str
    seed: int
    case: str
    subject: str
    class_name: str
    dice: float
    hd95_mm: float
    surface_dice: float

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise InputError(f"budget {self.budget} of case {self.case!r}: must be at least 1 labelled person")
        for name in ("arm", "case", "subject", "class_name"):
            if not (value := getattr(self, name)).strip():
                raise InputError(f"empty {name} in the score of case {self.case!r}: every score needs one")
            if value != value.strip():
                raise InputError(f"{name} {value!r} in the score of case {self.case!r}: take the blanks around it away")
        for name, high in (("dice", 1.0), ("surface_dice", 1.0), ("hd95_mm", math.inf)):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0.0 <= value <= high):
                limits = "0..1" if high == 1.0 else "a finite number of mm, at least 0"
                raise InputError(f"{name} {value} of case {self.case!r}, class {self.class_name!r}: must be {limits}")

    @classmethod
    def of(cls, score: CaseScore, budget: int, arm: str, seed: int) -> "ScoreRow":
        """The score of a case, with the job that earned it."""
        return cls(
            budget,
            arm,
            seed,
            score.case,
            score.subject,
            score.class_name,
            score.dice,
            score.hd95_mm,
            score.surface_dice,
        )

    @property
    def key(self) -> tuple[int, str, int, str, str]:
        """What makes a row unique."""
        return self.budget, self.arm, self.seed, self.case, self.class_name


def check_rows(rows: Iterable[ScoreRow], where: str = "scores") -> None:
    """Raise InputError when the rows don't make one table; `where` names their source.

    No row may occur twice, no case belong to two persons, and no job (budget, arm, seed) be scored on other cases or
    classes than the first one: runs with different test sets can't be compared, whatever is left in common.
    """
    scored: dict[tuple[int, str, int], set[tuple[str, str]]] = {}
    subject_of: dict[str, str] = {}
    for row in rows:
        own = scored.setdefault(row.key[:3], set())
        if row.key[3:] in own:
            raise InputError(
                f"{where}: {job_text(row.key[:3])}, case {row.case!r}, class {row.class_name!r} occurs twice; "
                "keep one of the rows"
            )
        own.add(row.key[3:])
        if subject_of.setdefault(row.case, row.subject) != row.subject:
            raise InputError(
                f"{where}: case {row.case!r} belongs to two persons, {subject_of[row.case]!r} and {row.subject!r}; "
                "correct the subject column"
            )
    jobs = iter(scored.items())
    first, tested = next(jobs, (None, set()))
    for job, own in jobs:
        if own != tested:
            assert first is not None
            case, class_name = min(own ^ tested)
            has, lacks = (job, first) if (case, class_name) in own else (first, job)
            raise InputError(
                f"{where}: different test sets are mixed: case {case!r}, class {class_name!r} is scored for "
                f"{job_text(has)} and not for {job_text(lacks)}; score both on the same cases, or remove one of the "
                "two jobs"
            )


def job_text(job: tuple[int, str, int]) -> str:
    """What a message calls a job."""
    return f"budget {job[0]}, arm {job[1]!r}, seed {job[2]}"


def write_scores(path: Path, rows: Sequence[ScoreRow]) -> None:
    """Write the rows sorted by job and case, whole or not at all.

    The classes of a case keep their order, so that tables made from the file list them as the labels count.
    """
    check_rows(rows, str(path))
    with published(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for row in sorted(rows, key=lambda row: row.key[:4]):
            numbers = [repr(float(value)) for value in (row.dice, row.hd95_mm, row.surface_dice)]
            writer.writerow([row.budget, row.arm, row.seed, row.case, row.subject, row.class_name, *numbers])


def read_scores(path: Path) -> list[ScoreRow]:
    """Read what write_scores wrote, with every digit. Raises InputError naming file and line."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            if tuple(header) != HEADER:
                found = ",".join(header)[:120]
                raise InputError(f"{path}: header {found!r} is not {','.join(HEADER)!r}; is this a scores.csv?")
            rows = [_row(path, lines.line_num, fields) for fields in lines if fields]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; run `maetrain evaluate` to make it") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: not a readable CSV file ({error}); run `maetrain evaluate` to make it anew"
        ) from error
    if not rows:
        raise InputError(f"{path}: holds no scores, only the header; run `maetrain evaluate` first")
    check_rows(rows, str(path))
    return rows


def _row(path: Path, line: int, fields: list[str]) -> ScoreRow:
    if len(fields) != len(HEADER):
        raise InputError(f"{path}, line {line}: {len(fields)} fields instead of {len(HEADER)}; is the file cut off?")
    budget, arm, seed, case, subject, class_name, *numbers = fields
    try:
        dice, hd95_mm, surface_dice = (float(number) for number in numbers)
        return ScoreRow(int(budget), arm, int(seed), case, subject, class_name, dice, hd95_mm, surface_dice)
    except InputError as error:
        raise InputError(f"{path}, line {line}: {error}") from error
    except ValueError as error:
        raise InputError(
            f"{path}, line {line}: {error}; budget and seed are whole numbers, scores are numbers"
        ) from error
