"""The tables of docs/results/README.md are typed by hand: their figures are those of the CSV files beside it."""

import csv
import math
import re

import pytest

from maetrain.report.material import read_material
from maetrain.report.statistics import arm_curve, compare
from tests.docs.blocks import ROOT

RESULTS = ROOT / "docs/results"
PAGE = (RESULTS / "README.md").read_text()
SWEEPS = {
    "What pretraining buys on the hippocampus": "hippocampus-class-shares",
    "Windows too large, and heads at equal chances": "hippocampus-250-steps-two-cores",
}
PEERS = {
    "scratch, nnFormer": "scratch",
    "mae-all": "mae-all",
    "MONAI UNet": "unet",
    "MONAI SwinUNETR": "swinunetr",
    "nnU-Net v2": "nnunet",
}


def table(heading: str) -> list[dict[str, str]]:
    """Title of the column -> cell, for each row of the first table below the heading."""
    section = re.split(rf"^## {re.escape(heading)}$", PAGE, flags=re.MULTILINE)[1].split("\n## ")[0]
    titles, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines_of_table(section)]
    return [dict(zip(titles, row, strict=True)) for row in rows]


def lines_of_table(text: str) -> list[str]:
    found = re.search(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    assert found, "no table"
    return found[0].splitlines()


def rows_of(folder: str, name: str) -> dict[tuple[int, str], dict[str, str]]:
    """(budget, arm) -> row of a CSV file in which scratch is the baseline."""
    with (RESULTS / folder / name).open() as file:
        return {(int(r["budget"]), r["arm"]): r for r in csv.DictReader(file) if r["baseline_arm"] == "scratch"}


def with_interval(difference: float, low: float, high: float) -> str:
    return f"{difference:+.3f} ({low:+.3f} to {high:+.3f})"


@pytest.mark.parametrize("heading", SWEEPS)
def test_differences_are_those_of_the_sweep(heading: str) -> None:
    comparisons = rows_of(SWEEPS[heading], "comparisons.csv")
    rows = table(heading)
    assert len(rows) == len({budget for budget, _ in comparisons})
    for row in rows:
        budget = int(row["labelled persons"])
        columns = [title for title in row if title.endswith(" - scratch")]
        assert {title.removesuffix(" - scratch") for title in columns} == {arm for b, arm in comparisons if b == budget}
        for title in columns:
            found = comparisons[budget, title.removesuffix(" - scratch")]
            assert row["scratch"] == f"{float(found['baseline_mean']):.3f}"
            assert row[title] == with_interval(*(float(found[key]) for key in ("difference", "low", "high")))


def test_steps_and_labels_saved_are_those_of_the_sweep() -> None:
    heading = "What pretraining buys on the hippocampus"
    steps, saved = (rows_of(SWEEPS[heading], name) for name in ("convergence.csv", "labels_saved.csv"))
    for row in table(heading):
        at = int(row["labelled persons"]), "mae"
        for title, arm in (("mae's steps to scratch's final Dice", "mae"), ("random-mae's", "random-mae")):
            ratio = float(steps[at[0], arm]["ratio"])
            assert row[title] == ("never" if math.isinf(ratio) else f"{ratio:.2f}")
        assert row["scratch needs, persons"] == persons(*(float(saved[at][k]) for k in ("equivalent", "low", "high")))


def persons(equivalent: float, low: float, high: float) -> str:
    """Persons that scratch needs, read off between the smallest budget, 1, and the largest, 99."""
    number, least, most = (beyond(value) for value in (equivalent, low, high))
    return number if number == least else f"{number} ({least} to {most})"


def beyond(value: float) -> str:
    if value < 1:
        return "at most 1"
    return "more than 99" if math.isinf(value) else f"{value:.2g}"


def test_networks_of_others_stand_as_scored() -> None:
    rows = read_material(RESULTS / "hippocampus-peers").rows
    points = {(point.budget, point.arm): point for point in arm_curve(rows)}
    against = {(c.budget, c.arm): c for arm in PEERS.values() for c in compare(rows, "mae", arm)}
    stated = table("Beside networks of others")
    assert {(int(row["labelled persons"]), PEERS[row["network"]]) for row in stated} == {
        key for key in points if key[1] not in ("mae", "random-mae")
    }
    for row in stated:
        key = int(row["labelled persons"]), PEERS[row["network"]]
        found = against[key]
        figures = [f"{points[key].mean:.3f}", f"{found.baseline_mean:.3f}", str(found.n_seeds)]
        assert [row["Dice"], row["mae"], row["seeds"]] == figures
        assert row["difference (95 % interval)"] == with_interval(found.difference, found.low, found.high)


def test_the_overview_names_every_folder() -> None:
    stated = {re.match(r"\[([\w-]+)\]", line.split("|")[1].strip()) for line in lines_of_table(PAGE)[2:]}
    assert {match[1] for match in stated if match} == {path.parent.name for path in RESULTS.glob("*/scores.csv")}
