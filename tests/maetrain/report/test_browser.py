"""The page in a real browser: Chromium without a window, opened from a file, wide and narrow, light and dark.

Screenshots go to the test's folder (pytest --basetemp=FOLDER keeps them where a person can look at them).
"""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from maetrain.evaluate.pictures import overlay
from maetrain.report.inputs import Curve, Picture

from .builders import make_inputs, make_rows, report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.runs,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"
    ),
]

BUDGETS = (1, 2, 4, 8, 16, 32, 64)
ARMS = ("scratch", "mae", "random-mae", "mae on everything unlabelled at hand", "mae_of_another_study_with_a_long_name")
CLASSES = [f"structure_{i:02d}_left_posterior_thalamic_nucleus" for i in range(15)]
WIDTHS = (360, 1280)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full report: 5 arms, 7 budgets, 15 classes with long names, pictures, another set of cases."""
    root, rng = tmp_path_factory.mktemp("report"), np.random.default_rng(0)
    image, label = rng.normal(100, 10, (40, 50, 30)), np.zeros((40, 50, 30), int)
    label[10:20, 10:30, 8:20], label[22:30, 20:40, 8:20] = 1, 2
    overlay(root / "overlay.png", image + 40 * label, label, np.roll(label, 2, 0), ["background", "a", "b"])
    curves = [
        Curve(budget=b, arm=arm, seed=s, steps=[0, 100, 200], dice=[0.0, 0.4 + 0.1 * (arm == "mae"), 0.6 + 0.02 * s])
        for b in BUDGETS
        for arm in ARMS
        for s in range(2)
    ]
    kinds = ("reconstruction", "overlay")
    pictures = [Picture(kind=k, caption=f"{k} of a case", path="overlay.png") for k in kinds]
    inputs = make_inputs(curves=curves, pictures=pictures, test_subjects=6)

    def effect(budget: int, arm: str) -> float:
        return 0.1 * np.log2(budget) / 3 + 0.05 * arm.startswith("mae")

    def rows(budgets: tuple[int, ...], seed: int) -> list:
        return make_rows(effect, 6, budgets, ARMS, num_seeds=2, seed=seed, class_names=CLASSES)

    return report(rows(BUDGETS, 0), inputs, root, root / "out", elsewhere={"another scanner": rows((1, 8), 1)})


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = Options()
    options.binary_location = str(CHROMIUM)
    # no sandbox: as root there is none to be had; /dev/shm is small in containers
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


Look = Callable[..., None]


@pytest.fixture
def look(browser: webdriver.Chrome, page: Path) -> Look:
    """Opens the page at a width (px) in a colour scheme or on paper."""

    def look(width: int = 1280, scheme: str = "light", media: str = "") -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        browser.get(page.as_uri())

    return look


def screenshot(browser: webdriver.Chrome, path: Path) -> None:
    """The whole page, not only what the window shows."""
    width, height = browser.execute_script("const e = document.documentElement; return [e.clientWidth, e.scrollHeight]")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.write_bytes(base64.b64decode(shot["data"]))


def colours(browser: webdriver.Chrome) -> dict[str, str]:
    """As computed: page, words, and the lines of the first two arms."""
    return browser.execute_script("""
        const of = (selector, name) => getComputedStyle(document.querySelector(selector))[name];
        return {page: of('body', 'backgroundColor'), ink: of('body', 'color'), card: of('section', 'backgroundColor'),
                c0: of('.c0 .line', 'stroke'), c1: of('.c1 .line', 'stroke')}""")


def test_it_opens_from_a_file_without_network_or_complaint(browser: webdriver.Chrome, look: Look, page: Path) -> None:
    browser.get("about:blank")
    browser.get_log("performance"), browser.get_log("browser")
    look()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and {url for url in asked if not url.startswith("data:image/png;base64,")} == {page.as_uri()}
    assert browser.get_log("browser") == []
    loaded = browser.execute_script("return [...document.images].map(i => i.complete && i.naturalWidth > 1)")
    assert loaded == [True, True], "the policy of the page lets its own pictures in"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(
    browser: webdriver.Chrome, look: Look, tmp_path: Path, width: int, scheme: str
) -> None:
    look(width, scheme)
    needed, there = browser.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert needed == there == width
    cut_off = browser.execute_script("""
        return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, pre, .skip, .chart')
            && e.getBoundingClientRect().right > window.innerWidth + 0.5).map(e => e.outerHTML.slice(0, 80))""")
    assert cut_off == []
    screenshot(browser, tmp_path / f"{scheme}-{width}.png")


def test_on_a_phone_the_first_column_can_be_read_and_leaves_room_for_numbers(
    browser: webdriver.Chrome, look: Look
) -> None:
    look(360)
    cells = browser.execute_script("""
        return [...document.querySelectorAll('.scroll tr:not(:has(.group)) th:first-child')].map(e =>
            [e.getBoundingClientRect().width / e.closest('.scroll').clientWidth,
             e.getBoundingClientRect().height / parseFloat(getComputedStyle(e).fontSize)])""")
    assert max(share for share, _ in cells) < 0.55
    assert max(lines for _, lines in cells) < 10, "no column of single letters"


def test_dark_and_light_are_different_and_paper_is_white(browser: webdriver.Chrome, look: Look) -> None:
    look(scheme="light")
    light = colours(browser)
    look(scheme="dark")
    dark = colours(browser)
    assert all(light[name] != dark[name] for name in light), (light, dark)
    look(scheme="dark", media="print")
    paper = colours(browser)
    assert (paper["page"], paper["card"], paper["ink"]) == ("rgb(255, 255, 255)", "rgb(255, 255, 255)", "rgb(0, 0, 0)")
    assert (paper["c0"], paper["c1"]) == (light["c0"], light["c1"])
    shown = browser.execute_script("return getComputedStyle(document.querySelector('nav')).display")
    assert shown == "none"


def test_on_paper_whole_tables_and_the_configuration_are_printed(browser: webdriver.Chrome, look: Look) -> None:
    look(media="print")
    hidden = browser.execute_script("""
        const all = [...document.querySelectorAll('.scroll')];
        return all.filter(e => getComputedStyle(e).overflowX !== 'visible').length""")
    assert hidden == 0
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert pdf.startswith(b"%PDF-") and pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") < 60


def focused(browser: webdriver.Chrome) -> dict[str, Any]:
    return browser.execute_script("""
        const e = document.activeElement, s = getComputedStyle(e);
        return {tag: e.tagName, href: e.getAttribute('href'), role: e.getAttribute('role'), top: e.offsetTop,
                label: e.getAttribute('aria-label'), outline: s.outlineStyle, width: parseFloat(s.outlineWidth)}""")


def test_the_tab_key_reaches_navigation_and_every_table_and_shows_where_it_is(
    browser: webdriver.Chrome, look: Look
) -> None:
    look()
    stops = []
    for _ in range(200):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        stop = focused(browser)
        if stop["tag"] == "BODY" or (stops and stop["href"] == "#main"):
            break
        stops.append(stop)
    assert stops[0]["href"] == "#main", "first the way past the navigation"
    hrefs = [stop["href"] for stop in stops if stop["tag"] == "A"]
    sections = browser.execute_script("return [...document.querySelectorAll('main section[id]')].map(e => '#' + e.id)")
    assert hrefs[1:] == [s for s in sections if s != "#limits"]
    regions = [stop for stop in stops if stop["role"] == "region"]
    assert len(regions) == browser.execute_script("return document.querySelectorAll('table').length") >= 15
    assert all(region["label"] for region in regions)
    assert all(stop["outline"] == "solid" and stop["width"] >= 2 for stop in stops)
    assert "SUMMARY" in [stop["tag"] for stop in stops]


def test_a_table_scrolls_and_the_configuration_opens_by_keyboard(browser: webdriver.Chrome, look: Look) -> None:
    look(360)
    table = browser.find_element(By.CSS_SELECTOR, "#classes .scroll")

    def scrolls(browser: webdriver.Chrome) -> bool:
        table.send_keys(Keys.ARROW_RIGHT)
        return browser.execute_script("return arguments[0].scrollLeft", table) > 0  # it glides, so not at once

    WebDriverWait(browser, 60).until(scrolls)
    browser.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    assert browser.execute_script("return document.querySelector('details').open")


def test_headings_are_in_order_and_sections_named(browser: webdriver.Chrome, look: Look) -> None:
    look()
    levels = browser.execute_script("return [...document.querySelectorAll('h1,h2,h3,h4')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1 and 3 in levels
    assert all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    nameless = browser.execute_script("""
        return [...document.querySelectorAll('section')].filter(
            e => !document.getElementById(e.getAttribute('aria-labelledby'))?.textContent.trim()).length""")
    assert nameless == 0


def test_pictures_and_charts_have_words(browser: webdriver.Chrome, look: Look) -> None:
    look()
    words = browser.execute_script("return [...document.images].map(e => e.alt.trim())")
    assert words == ["reconstruction of a case", "overlay of a case"]
    silent = browser.execute_script("""
        return [...document.querySelectorAll('svg')].filter(e => e.getAttribute('aria-hidden') !== 'true'
            && !(e.getAttribute('role') === 'img' && e.getAttribute('aria-label').trim())).length""")
    assert silent == 0 and len(browser.find_elements(By.CSS_SELECTOR, "svg[role=img]")) == 2 + len(BUDGETS) + 2
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_arms_are_drawn_in_their_styles(browser: webdriver.Chrome, look: Look) -> None:
    look()
    drawn = browser.execute_script("""
        return [...document.querySelectorAll('#efficiency figure:first-of-type .line')].map(e => {
            const s = getComputedStyle(e); return [s.stroke, s.strokeDasharray, s.fill]})""")
    assert len({stroke for stroke, _, _ in drawn}) == len({dash for _, dash, _ in drawn}) == len(ARMS) == len(drawn)
    assert {fill for _, _, fill in drawn} == {"none"}


def test_heads_of_numbers_stand_over_them_and_verdicts_on_one_line(browser: webdriver.Chrome, look: Look) -> None:
    look()
    sides = browser.execute_script("""
        return [...document.querySelectorAll('#classes thead tr + tr th')].map(e => getComputedStyle(e).textAlign)""")
    assert len(sides) == 3 * len(ARMS) and set(sides) == {"right"}
    heights = browser.execute_script("""
        return [...document.querySelectorAll('#arms td.text')].map(
            e => e.clientHeight / parseFloat(getComputedStyle(e).fontSize))""")
    assert heights and max(heights) < 3.5


def test_words_do_not_run_into_each_other_in_charts(browser: webdriver.Chrome, look: Look) -> None:
    for width in WIDTHS:
        look(width)
        overlapping = browser.execute_script("""
            const found = [];
            for (const chart of document.querySelectorAll('svg[role=img]')) {
                const boxes = [...chart.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect()]);
                boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
                    if (p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 2 && q.top < p.bottom - 2)
                        found.push(chart.getAttribute('aria-label').slice(0, 40) + ': ' + a + ' / ' + b);
                }));
            }
            return found""")
        assert overlapping == [], width
