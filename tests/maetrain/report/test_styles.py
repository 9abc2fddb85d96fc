"""Arms can be told apart by everyone: colours under simulated colour blindness, contrast, dashes, markers.

Simulation: Machado, Oliveira, Fernandes 2009, severity 1.0, applied to linear RGB. Distance: CIELAB (1976), D65; 2.3 is
about what an eye can just see side by side, and single marks of a chart need several times that.
"""

import itertools
import re
from importlib import resources

import numpy as np
import pytest

from maetrain.report.styles import DARK, DASHES, LIGHT, css_class, css_rules, marked, marker_name, matplotlib_style

APART = 20.0
EYES = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ_OF_RGB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear_rgb(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = XYZ_OF_RGB @ rgb / XYZ_OF_RGB.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(a: str, b: str) -> float:
    """WCAG 2.2, 1 to 21."""
    dark, light = sorted(float(XYZ_OF_RGB[1] @ linear_rgb(c)) for c in (a, b))
    return (light + 0.05) / (dark + 0.05)


def themes() -> dict[str, dict[str, str]]:
    """The page's own colours: light, dark, print."""
    text = resources.files("maetrain.report").joinpath("page.html").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)
    found = [
        {k: v if len(v) == 7 else "#" + "".join(2 * c for c in v[1:]) for k, v in re.findall(r"--([\w-]+): (#\w+);", b)}
        for b in blocks
    ]
    return dict(zip(("light", "dark", "print"), found, strict=True))


def test_the_simulation_mixes_up_what_colour_blind_people_mix_up() -> None:
    red, green = linear_rgb("#b22222"), linear_rgb("#5a6b00")
    seen = {
        name: np.linalg.norm(lab(np.clip(np.array(m) @ red, 0, 1)) - lab(np.clip(np.array(m) @ green, 0, 1)))
        for name, m in EYES.items()
    }
    assert seen["all cones"] > 60 and seen["deuteranopia"] < 20


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_no_two_arms_look_alike_to_any_eye(colours: tuple[str, ...], eye: str) -> None:
    for a, b in itertools.combinations(colours, 2):
        seen_a, seen_b = (lab(np.clip(np.array(EYES[eye]) @ linear_rgb(c), 0, 1)) for c in (a, b))
        assert np.linalg.norm(seen_a - seen_b) >= APART, (eye, a, b)


@pytest.mark.parametrize(("theme", "colours"), [("light", LIGHT), ("dark", DARK), ("print", LIGHT)])
def test_lines_and_words_stand_out_from_their_page(theme: str, colours: tuple[str, ...]) -> None:
    page = themes()["light"] | themes()[theme]
    for back in (page["page"], page["card"]):
        assert min(contrast(c, back) for c in colours) >= 3.0
        assert min(contrast(page[name], back) for name in ("ink", "soft", "link")) >= 4.5
    assert min(contrast(page["ink"], page["warn-back"]), contrast(page["ink"], page["card"])) >= 4.5
    assert contrast(page["focus"], page["page"]) >= 3.0


def test_arms_differ_in_more_than_colour() -> None:
    assert len(LIGHT) == len(DARK) and len(set(DASHES)) == len(DASHES)
    looks = [(css_class(style).split()[1], marker_name(style)) for style in range(84)]
    assert len(set(looks)) == len(looks), "line and marker alone"


def test_each_two_of_twelve_arms_differ_in_two_ways_at_least() -> None:
    page = [(*css_class(style).split(), marker_name(style)) for style in range(12)]
    files = [
        (look["color"], look["linestyle"], (look["marker"], look["markerfacecolor"] == "white"))
        for look in map(matplotlib_style, range(12))
    ]
    for looks in (page, files):
        for a, b in itertools.combinations(looks, 2):
            assert a[2] != b[2] and a[:2] != b[:2], (a, b)
            is_same_shape = a[2][0] == b[2][0] if looks is files else a[2].split()[-1] == b[2].split()[-1]
            assert not is_same_shape or (a[0] != b[0] and a[1] != b[1]), ("outlines of the other", a, b)


def test_the_rules_of_the_page_give_each_class_its_colour_and_line() -> None:
    for style in range(12):
        colour, line = css_class(style).split()
        assert f".{colour} {{ fill: var(--{colour}); stroke: var(--{colour}); }}" in css_rules()
        dashes = re.search(rf"\.{line} \.line {{ stroke-dasharray: ([\d ]+); }}", css_rules())
        assert (tuple(map(int, dashes[1].split())) if dashes else ()) == DASHES[style % len(DASHES)]


@pytest.mark.parametrize(("num", "most"), [(1, 1), (8, 8), (9, 5), (40, 8), (1000, 8)])
def test_a_long_line_has_few_markers_and_each_style_its_own_places(num: int, most: int) -> None:
    for style in range(12):
        first, every = marked(num, style)
        assert 1 <= len(range(first, num, every)) <= most
    assert num <= 8 or marked(num, 0) != marked(num, 1)
