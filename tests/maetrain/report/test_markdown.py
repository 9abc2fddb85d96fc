"""report.md says what the page says, links only to files that are there, and takes no markup from data."""

import re
from dataclasses import replace
from pathlib import Path

from maetrain.evaluate.metrics import EMPTY_MASK_RULE
from maetrain.report.inputs import Picture, ReportInputs
from maetrain.report.results import analyse
from maetrain.report.tables import classes_table, comparison_table, convergence_table, saved_table

from .builders import make_inputs, make_rows, report
from .test_page import PNG, planted

ARMS = ("scratch", "mae", "random-mae")


def write(tmp_path: Path, rows: list, inputs: ReportInputs) -> str:
    (tmp_path / "one.png").write_bytes(PNG)
    there = {"siemens": make_rows(num_subjects=3)}
    page = report(rows, inputs, tmp_path, tmp_path / "out", elsewhere=there)
    return page.with_name("report.md").read_text(encoding="utf-8")


def plain(cell: str) -> str:
    return re.sub(r"\\(.)", r"\1", cell).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def test_it_holds_the_headline_and_every_cell_of_every_table(tmp_path: Path) -> None:
    rows, inputs = make_rows(planted, arms=ARMS), make_inputs()
    text, results = write(tmp_path, rows, inputs), analyse(rows, inputs)
    cells = {
        plain(cell.strip()) for line in text.splitlines() if line.startswith("|") for cell in line[2:-2].split(" | ")
    }
    tables = [comparison_table(one.comparisons) for one in results.arms] + [saved_table(one) for one in results.arms]
    for table in (*tables, convergence_table(results), classes_table(results, inputs)):
        assert table.caption in plain(text)
        assert {cell for row in table.rows for cell in row} | set(table.groups) <= cells
    for part in (
        f"**{results.headline}**",
        EMPTY_MASK_RULE,
        "test persons: 24",
        "### siemens",
        "feed",
        "budgets: [1, 4]",
    ):
        assert part in plain(text), part


def test_page_and_markdown_have_the_same_sections_in_the_same_order(tmp_path: Path) -> None:
    text = write(tmp_path, make_rows(planted, arms=ARMS), make_inputs())
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert titles == re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert titles[:2] + titles[-1:] == ["Read with care", "Label efficiency", "Provenance"]


def test_every_table_is_rectangular(tmp_path: Path) -> None:
    text = write(tmp_path, make_rows(planted, arms=ARMS), make_inputs())
    blocks = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(blocks) == 8  # 2 comparisons, 2 savings, convergence, elsewhere, classes, quarantine
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def test_every_link_leads_to_a_file_beside_it(tmp_path: Path) -> None:
    text = write(tmp_path, make_rows(planted, arms=ARMS), make_inputs())
    links = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert links == ["budget_curve.png", "difference.png", "convergence.png", "pretraining.png", "picture-01.png"]
    assert all((tmp_path / "out" / link).is_file() for link in links)
    assert (tmp_path / "out" / "picture-01.png").read_bytes() == PNG
    assert "Picture not found: lost.png" in text


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    evil = "<b>|*_[x](y)`#\n$"
    rows = [replace(r, class_name=r.class_name + evil) for r in make_rows(planted, num_subjects=3)]
    inputs = make_inputs(
        title=evil,
        notes=[evil],
        config_yaml="a: ````\n",
        pictures=[Picture(kind="overlay", caption=evil, path="one.png")],
    )
    text = write(tmp_path, rows, inputs)
    assert "<b>" not in text
    assert r"&lt;b&gt;\|\*\_\[x\](y)\`\# \$" in text
    assert "`````yaml\na: ````\n`````" in text


def test_scores_alone_make_one_that_says_what_is_missing(tmp_path: Path) -> None:
    page = report(make_rows(arms=("mae",), num_subjects=2), ReportInputs(test_subjects=2), tmp_path, tmp_path / "o")
    text = page.with_name("report.md").read_text()
    for part in (
        "Nothing could be compared",
        "No other arm",
        "No validation curve",
        "No configuration",
        "from elsewhere",
    ):
        assert part in text
    assert re.findall(r"!\[.*?\]\((.*?)\)", text) == ["budget_curve.png"]
