"""The site is built without a warning, by a broken link not at all, and its pages fetch nothing from elsewhere."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT

pytestmark = [pytest.mark.runs, pytest.mark.timeout(600)]
FETCHED = {"src", "srcset", "data", "poster"}  # attributes; of <link>, href as well
FROM_ELSEWHERE = re.compile(r"\s*(https?:)?//")


def build(source: Path, out: Path) -> subprocess.CompletedProcess:
    flags = ["--fail-on-warning", "--keep-going", "--fresh-env", "--quiet", "-b", "html", "-d", str(out / "trees")]
    words = [sys.executable, "-m", "sphinx", *flags, str(source), str(out / "html")]
    return subprocess.run(words, capture_output=True, text=True)


class Fetches(HTMLParser):
    """What a page would fetch from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            is_fetched = name in FETCHED or (tag == "link" and name == "href")
            if is_fetched and value and FROM_ELSEWHERE.match(value):
                self.found.append(value)


def fetched(html: str) -> list[str]:
    parser = Fetches()
    parser.feed(html)
    return parser.found


def test_a_page_that_fetches_is_found() -> None:
    assert fetched('<script src="https://cdn.example/x.js"></script>') == ["https://cdn.example/x.js"]
    assert fetched('<link rel="stylesheet" href="//fonts.example/x.css">') == ["//fonts.example/x.css"]
    assert fetched('<a href="https://example.org">x</a><img src="_images/x.svg">') == []


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    done = build(ROOT / "docs", tmp_path)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "html"
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= 30
    for page in pages:
        text = page.read_text()
        assert not fetched(text), page
        assert "<!-- generated" not in text, f"{page}: a marker was left"
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text()), style
    assert "without --data" in (site / "reference/commands.html").read_text(), "two dashes stay two"
    assert "10\n%, better for small" in (site / "decisions/0013-shards.html").read_text(), "a line may begin with %"
    assert "cluster.pretrain_workers" in (site / "reference/settings.html").read_text()
    assert "MaskedAutoencoder" in (site / "reference/api/networks.html").read_text()


@pytest.mark.parametrize(
    ("page", "remark"),
    [
        ("[x](missing.md)", "a page that is not there"),
        ("[x](index.md#nowhere)", "an anchor that is not there"),
        ("![x](img/missing.svg)", "a picture that is not there"),
    ],
)
def test_a_broken_link_ends_the_build(page: str, remark: str, tmp_path: Path) -> None:
    source = tmp_path / "docs"
    source.mkdir()
    for name in ("conf.py", "reference.py"):
        shutil.copy(ROOT / "docs" / name, source)
    (source / "index.md").write_text("# Title\n\n[well](index.md#title)\n")
    assert build(source, tmp_path / "good").returncode == 0
    (source / "index.md").write_text(f"# Title\n\n{page}\n")
    assert build(source, tmp_path / "bad").returncode != 0, remark
