"""The scores of a sweep and of others' networks on its persons, in one table.

    python -m benchmarks.peer_table SWEEP PEERS [NAME=PEERS ...] --out FOLDER [--arm mae]

SWEEP is a sweep's folder, PEERS what `benchmarks.peers` and `benchmarks.nnunet` left; NAME= calls the one network in it
so, where several folders hold the same network at different settings. Budgets that a peer was asked for are kept.
Writes FOLDER/scores.csv, from which `maetrain report FOLDER` makes figures, and FOLDER/table.md: mean Dice of the test
persons, that of --arm with the same seeds, and their difference with its interval
(`maetrain.report.statistics`). Other test persons, classes or missing scores end in one line, and no table.
"""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_shards.errors import InputError
from maetrain.evaluate.scores import ScoreRow, write_scores
from maetrain.report.material import SCORES, read_material
from maetrain.report.statistics import arm_curve, compare


def peer_rows(word: str) -> list[ScoreRow]:
    """Of `FOLDER`, or of `NAME=FOLDER` under that name. InputError where a name is given to several networks."""
    name, equals, folder = word.rpartition("=")
    rows = read_material(Path(folder)).rows
    if not equals:
        return rows
    if len(arms := sorted({row.arm for row in rows})) > 1:
        raise InputError(f"{word}: one name for {', '.join(arms)}; give a folder with one network, or no name")
    return [replace(row, arm=name) for row in rows]


def table(rows: Sequence[ScoreRow], arm: str) -> list[str]:
    """Markdown, a line for each budget and network. InputError where `arm` has no scores, or not another's seeds."""
    if arm not in {row.arm for row in rows}:
        raise InputError(f"--arm {arm}: no scores of it at the peers' budgets")
    made = {(row.budget, row.arm, row.seed) for row in rows}
    for budget, other, seed in sorted(made):
        if (budget, arm, seed) not in made:
            raise InputError(f"{other} has scores of budget {budget}, seed {seed}, and {arm} has none: nothing to pair")
    points = arm_curve(rows)
    against = {(c.budget, c.arm): c for other in {p.arm for p in points} - {arm} for c in compare(rows, arm, other)}
    lines = [
        f"| labelled persons | network | Dice | {arm}, same seeds | difference | 95 % interval | persons | seeds |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for point in points:
        cells = [str(point.budget), point.arm, f"{point.mean:.3f}"]
        if found := against.get((point.budget, point.arm)):
            interval = f"{found.low:+.3f} to {found.high:+.3f}"
            cells += [f"{found.baseline_mean:.3f}", f"{found.difference:+.3f}", interval]
        else:
            cells += [""] * 3
        lines.append(f"| {' | '.join(cells)} | {point.n_subjects} | {point.n_seeds} |")
    return lines


def main(words: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("peers", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arm", default="mae", help="whom the others are compared with")
    arguments = parser.parse_args(words)
    others = [row for word in arguments.peers for row in peer_rows(word)]
    budgets = {row.budget for row in others}
    rows = [row for row in read_material(arguments.sweep).rows if row.budget in budgets] + others
    lines = table(rows, arguments.arm)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_scores(arguments.out / SCORES, rows)
    (arguments.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"peer_table: {error}")
