"""The documentation site: Sphinx, the Furo theme, pages in Markdown.

Nothing is fetched at build or reading time: the theme uses the fonts of the reader's machine and its own scripts, and
search is a file of the site. Reference pages are made from the code while they are read (`reference.py`). `make docs`
builds it into `site/` and takes a warning for an error; 20 s on one core.
"""

import sys
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from reference import with_generated  # noqa: E402

project = "maetrain"
html_title = "maetrain"
html_theme = "furo"
html_copy_source = False
html_show_sphinx = False
smartquotes = False  # it would make a dash of the two of an option
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3
# a line of prose may begin with "%": MyST would take it for a comment, other readers of Markdown don't
myst_disable_syntax = ["myst_line_comment"]


def setup(app: Sphinx) -> None:
    app.connect("source-read", _fill)


def _fill(_app: Sphinx, _page: str, source: list[str]) -> None:
    source[0] = with_generated(source[0])
