"""How arms look: colour, line and marker of style 0 (the baseline), 1 (the main arm), 2, ...

Colours began as Okabe and Ito's and were moved until each two of a theme lie at least 20 apart in CIELAB, as seen with
full colour vision and, simulated, without one of the three cones, and each stands out from its page by 3 to 1 (a test
holds both). There are 6 colours, 7 line styles and 12 markers: each two of 12 arms differ in the marker and in colour
or line besides, and 84 arms differ in line or marker, so that no reader depends on colour.
"""

import math
from typing import Any

LIGHT = ("#db6309", "#1989cf", "#006b41", "#a94a7e", "#383d42", "#6a4d00")
DARK = ("#d6873a", "#3898d5", "#55dd9c", "#d195b5", "#e4efef", "#efe067")
DASHES: tuple[tuple[int, ...], ...] = (
    (6, 4), (), (2, 4), (8, 3, 2, 3), (1, 3), (12, 4), (9, 3, 1, 3, 1, 3)
)  # px drawn, px left out, ...  # fmt: skip
OPEN = "open "  # before a shape that is drawn as its outline
# no open shape stands 6 or 7 after its filled one: there colour or line are the same
MARKERS = {
    "square": "s", "circle": "o", "triangle": "^", "diamond": "D", "down": "v", "plus": "P", "cross": "X",
    "open down": "v", "open square": "s", "open circle": "o", "open triangle": "^", "open diamond": "D",
}  # name -> matplotlib's  # fmt: skip
_MOST_MARKERS = 8  # on a line; more would hide its dashes and each other


def css_class(style: int) -> str:
    """Classes that give colour and line."""
    return f"c{style % len(LIGHT)} d{style % len(DASHES)}"


def marker_name(style: int) -> str:
    return list(MARKERS)[style % len(MARKERS)]


def marked(num_points: int, style: int) -> tuple[int, int]:
    """(first point with a marker, every how many points): few on a long line, at other places for each style."""
    every = math.ceil(num_points / _MOST_MARKERS) or 1
    return style % every, every


def css_colours(colours: tuple[str, ...]) -> str:
    """Declarations of --c0, --c1, ... for one theme."""
    return " ".join(f"--c{i}: {colour};" for i, colour in enumerate(colours))


def css_rules() -> str:
    """Rules of the classes c0, c1, ... (colour) and d0, d1, ... (line)."""
    colours = [f".c{i} {{ fill: var(--c{i}); stroke: var(--c{i}); }}" for i in range(len(LIGHT))]
    lines = [
        f".d{i} .line {{ stroke-dasharray: {' '.join(map(str, dashes))}; }}"
        for i, dashes in enumerate(DASHES)
        if dashes
    ]
    return "\n".join(colours + lines)


def matplotlib_style(style: int) -> dict[str, Any]:
    """Keywords of a plot on white with the same colour, marker and dashes."""
    dashes = DASHES[style % len(DASHES)]
    line = (0, tuple(length / 1.6 for length in dashes)) if dashes else "-"
    name, colour = marker_name(style), LIGHT[style % len(LIGHT)]
    inside = "white" if name.startswith(OPEN) else colour
    return {"color": colour, "marker": MARKERS[name], "markerfacecolor": inside, "linestyle": line}
