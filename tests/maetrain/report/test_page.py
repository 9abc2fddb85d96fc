"""The page is complete, stands alone, and treats everything from data as text."""

import csv
import json
import re
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from data_shards.errors import InputError
from maetrain.evaluate.metrics import EMPTY_MASK_RULE
from maetrain.evaluate.scores import ScoreRow, read_scores
from maetrain.report.convergence import convergence
from maetrain.report.curves import read_curves
from maetrain.report.inputs import Overlap, Picture, Quarantined, ReportInputs
from maetrain.report.labels_saved import labels_saved
from maetrain.report.page import write_report
from maetrain.report.results import analyse, main_arm
from maetrain.report.statistics import compare, per_class_table
from maetrain.report.wording import p_text

from .builders import make_inputs, make_rows, report

# The smallest PNG there is: one grey pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c63600000000200014898d8e00000000049454e44ae426082"
)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, their attributes and ids, and checks that every tag is closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.feed(text)
        assert self.open == [], f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]


def write(tmp_path: Path, rows: list[ScoreRow], inputs: ReportInputs, **more: Any) -> str:
    (tmp_path / "one.png").write_bytes(PNG)
    return report(rows, inputs, tmp_path, tmp_path / "out", **more).read_text(encoding="utf-8")


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def planted(budget: int, arm: str) -> float:
    return 0.05 if (budget, arm) == (1, "mae") else 0.0


def test_the_page_holds_every_section_and_number(tmp_path: Path) -> None:
    rows, inputs = make_rows(planted), make_inputs()
    text = write(tmp_path, rows, inputs)
    page = Page(text)
    sections = [
        "efficiency",
        "saved",
        "arms",
        "convergence",
        "elsewhere",
        "classes",
        "pretraining",
        "overlays",
        "method",
        "quarantine",
        "configuration",
    ]
    for key in [*sections, "provenance"]:
        assert key in page.values("id") and f"#{key}" in page.values("href")
    helped, same = compare(rows)
    for part in (
        "Pretraining raised mean Dice: +0.0",
        "No measurable difference with 4 labelled persons.",
        f"{helped.baseline_mean:.3f}</td><td>{helped.arm_mean:.3f}",
        f"{same.baseline_mean:.3f}</td><td>{same.arm_mean:.3f}",  # the budget without effect stays
        EMPTY_MASK_RULE,
        "surface Dice at 1.5 mm",
        "0 by person, 0 by voxel hash",
        "imagesTr/bad.nii.gz",
        "budgets: [1, 4]",
        "abc123",
        "Synthetic volumes.",
        "Picture not found: lost.png",
    ):
        assert part in text, part
    assert len(page.values("id")) == len(set(page.values("id")))


def test_the_page_stands_alone(tmp_path: Path) -> None:
    text = write(tmp_path, make_rows(planted), make_inputs())
    page = Page(text)
    assert all(value.startswith("#") for value in page.values("href"))
    assert all(value.startswith("data:image/") for value in page.values("src"))
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "default-src 'none'" in text


def test_everything_from_data_is_text(tmp_path: Path) -> None:
    evil = "<script>alert('&\"')</script>"
    rows = make_rows(planted, num_subjects=4, arms=("scratch", "mae", evil))
    rows = [replace(r, case=r.case + evil, subject=r.subject + evil, class_name=r.class_name + evil) for r in rows]
    inputs = make_inputs(
        title=evil,
        quarantined=[Quarantined(case=evil, path=evil, reason=evil)],
        pictures=[
            Picture(kind="overlay", caption=evil, path="one.png"),
            Picture(kind="overlay", caption=evil, path=evil),
        ],
        config_yaml=evil,
        provenance={evil: evil, "dollar": "$title ${headline} $"},
        notes=[evil],
    )
    text = write(tmp_path, rows, inputs)
    assert "<script" not in text.lower()
    assert text.count("&lt;script&gt;") >= 10
    assert "$title ${headline} $" in text
    page = Page(text)
    assert not {name for _, name, _ in page.attributes if name.startswith("on")}


def test_the_page_can_be_used_without_eyes_or_mouse(tmp_path: Path) -> None:
    text = write(tmp_path, make_rows(planted), make_inputs())
    page = Page(text)
    assert page.tags.count("table") == page.tags.count("caption") >= 3
    assert page.values("alt") == ["original and reconstructed"]
    charts = re.findall(r'<svg class="chart"[^>]*>', text)
    assert charts and all('role="img" aria-label="' in c or 'aria-hidden="true"' in c for c in charts)
    assert page.tags.count("h1") == 1 and ("html", "lang", "en") in page.attributes
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_the_files_beside_the_page_hold_the_same_numbers(tmp_path: Path) -> None:
    rows = make_rows(planted)
    write(tmp_path, rows, make_inputs())
    out = tmp_path / "out"
    assert set(read_scores(out / "scores.csv")) == set(rows)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_subjects"] == 24
    assert [c["budget"] for c in summary["comparisons"]] == [1, 4]
    assert summary["comparisons"][0]["difference"] == compare(rows)[0].difference
    assert summary["comparisons"][0]["verdict"] == "helps"
    assert [(line["budget"], line["arm"]) for line in table(out / "budget_curve.csv")] == [
        ("1", "mae"),
        ("1", "scratch"),
        ("4", "mae"),
        ("4", "scratch"),
    ]
    assert (out / "budget_curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_the_numbers_it_is_given_and_computes_none(tmp_path: Path) -> None:
    rows, inputs = make_rows(planted), make_inputs()
    results = replace(analyse(rows, inputs), warnings=["A caution that no other computation would find."])
    page = write_report(rows, inputs, results, tmp_path, tmp_path / "out")
    for file in (page, page.with_name("report.md"), page.with_name("summary.json")):
        assert results.warnings[0] in file.read_text(encoding="utf-8"), file.name


@pytest.mark.parametrize(("scored", "said"), [(24, "24"), (3, "3 of 24")])
def test_test_persons_are_those_in_the_scores(tmp_path: Path, scored: int, said: str) -> None:
    text = write(tmp_path, make_rows(num_subjects=scored), make_inputs(test_subjects=24))
    assert f"<dt>test persons</dt><dd>{said}</dd>" in text
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["test_subjects"] == scored


def test_the_order_of_jobs_and_cases_does_not_change_the_page(tmp_path: Path) -> None:
    rows = make_rows(planted)
    again = sorted(rows, key=lambda r: (r.case, -r.seed, r.arm))
    assert write(tmp_path, rows, make_inputs()) == write(tmp_path, again, make_inputs())


def test_every_table_is_a_file_with_every_digit(tmp_path: Path) -> None:
    rows = make_rows(planted, arms=("scratch", "mae", "random-mae"))
    write(tmp_path, rows, make_inputs(), elsewhere={"siemens": make_rows(num_subjects=5)})
    out = tmp_path / "out"
    lines = table(out / "comparisons.csv")
    assert [(line["arm"], line["budget"]) for line in lines] == [
        ("mae", "1"), ("mae", "4"), ("random-mae", "1"), ("random-mae", "4"),
    ]  # fmt: skip
    assert float(lines[0]["low"]) == compare(rows)[0].low and lines[0]["verdict"] == "helps"
    saved = labels_saved(rows)[0]
    assert float(table(out / "labels_saved.csv")[0]["ratio_low"]) == saved.ratio_low
    first = per_class_table(rows)[0]
    assert table(out / "classes.csv")[0] == {
        "budget": "1", "arm": "mae", "class": "front", "dice": repr(first.dice), "hd95_mm": repr(first.hd95_mm),
        "surface_dice": "0.75", "n_subjects": "24", "n_seeds": "3",
    }  # fmt: skip
    (ratio, *_) = table(out / "convergence.csv")
    assert (ratio["arm"], float(ratio["ratio"])) == ("mae", convergence(make_inputs().curves)[0].ratio)
    there = table(out / "generalisation.csv")
    assert [(line["set"], line["arm"], line["n_subjects"]) for line in there] == 2 * [("siemens", "mae", "5")]
    assert read_curves(out / "curves.csv") and len(table(out / "curves.csv")) == 24


def test_what_was_never_reached_is_inf_and_what_has_no_interval_is_empty(tmp_path: Path) -> None:
    rows = make_rows(lambda b, arm: 0.3 * (arm == "mae"), num_subjects=1, num_seeds=1)
    write(tmp_path, rows, make_inputs())
    (line, _) = table(tmp_path / "out" / "labels_saved.csv")
    assert (line["equivalent"], line["low"]) == ("inf", "")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["labels_saved"][0]["equivalent"], summary["labels_saved"][0]["low"]) == ("inf", None)


def test_the_models_elsewhere_have_tables_of_their_own(tmp_path: Path) -> None:
    there = make_rows(lambda b, arm: 0.2 * (arm == "mae"), num_subjects=7, seed=3, arms=("scratch", "mae", "large"))
    rows = make_rows(planted, arms=("scratch", "mae", "large"))
    text = write(tmp_path, rows, make_inputs(), elsewhere={"siemens 3T": there, "empty": make_rows(arms=("mae",))})
    section = text[text.index('<section id="elsewhere"') : text.index('<section id="classes"')]
    assert "<h3>siemens 3T</h3>" in section and section.count("<table>") == 2 and "<h3>empty</h3>" in section
    for c in compare(there):  # Holm's correction over this table's own budgets
        assert f"{c.baseline_mean:.3f}</td><td>{c.arm_mean:.3f}" in section and escape(p_text(c.p_holm)) in section
    assert "Only 7 test persons in siemens 3T" in text
    assert "not scored on cases from elsewhere" in write(tmp_path, rows, make_inputs())


def test_every_other_arm_gets_its_own_table_and_the_control_a_sentence(tmp_path: Path) -> None:
    text = write(tmp_path, make_rows(planted, arms=("scratch", "mae", "mae-large", "random-mae")), make_inputs())
    for arm in ("mae-large", "random-mae"):
        assert f"Mean Dice over the foreground classes, {arm} against scratch." in text
        assert f"<h3>{arm}</h3>" in text
    assert text.count("does not differ from scratch beyond the interval") == 1


def test_the_main_arm_can_be_chosen(tmp_path: Path) -> None:
    rows = make_rows(lambda b, arm: 0.1 * (arm == "large"), arms=("scratch", "mae", "large", "random-mae"))
    assert "large raised mean Dice over scratch: +0.1" in write(tmp_path, rows, make_inputs(), arm="large")
    assert "bought nothing" in write(tmp_path, rows, make_inputs())
    for gone, main in (((), "mae"), (("mae",), "large"), (("mae", "large"), "random-mae")):
        left = [r for r in rows if r.arm not in gone]
        assert analyse(left, make_inputs(curves=[])).arm == main
    assert main_arm({"scratch", "random-mae", "the last"}, "scratch", None) == "the last", "the control only for want"
    with pytest.raises(InputError, match="--arm huge: no such arm beside 'scratch'.*'large', 'random-mae'"):
        write(tmp_path, rows, make_inputs(), arm="huge")


def test_runs_with_different_test_sets_make_no_report(tmp_path: Path) -> None:
    rows = make_rows(num_subjects=4)
    mixed = [r for r in rows if not (r.arm == "mae" and r.subject == "person_02")]
    with pytest.raises(InputError, match="different test sets are mixed"):
        write(tmp_path, mixed, make_inputs())
    with pytest.raises(InputError, match="different test sets are mixed"):
        write(tmp_path, rows, make_inputs(), elsewhere={"there": mixed})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arms", [("mae",), ("scratch",), ("other",)])
def test_a_missing_arm_is_said_not_hidden(tmp_path: Path, arms: tuple[str, ...]) -> None:
    text = write(tmp_path, make_rows(arms=arms), make_inputs(curves=[]))
    assert "Nothing could be compared" in text
    Page(text)


def test_bare_inputs_and_one_person_still_make_a_page(tmp_path: Path) -> None:
    inputs = ReportInputs(test_subjects=1, pool_volumes=0, tolerance_mm=1.0)
    text = write(tmp_path, make_rows(num_subjects=1, num_seeds=1), inputs)
    Page(text)
    for part in (
        "Only 1 test person:",
        "Only 1 seed",
        "was not checked",
        "Whether test persons were kept from pretraining",
        "No validation curve",
        "No picture",
    ):
        assert part in text
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["comparisons"][0]["low"] is None


def test_a_leak_is_the_first_thing_said(tmp_path: Path) -> None:
    text = write(tmp_path, make_rows(planted), make_inputs(overlap=Overlap(by_person=1, by_voxel_hash=3)))
    assert text.index("the comparison is void") < text.index("Label efficiency</h2>")
