"""How arms look: colour, line and marker of style 0 (the baseline), 1 (the main arm), 2, ...

Colours began as Okabe and Ito's and were moved until each two of a theme lie at least 20 apart in CIELAB, as seen with
full colour vision and, simulated, without one of the three cones, and each stands out from its page by 3 to 1 (a test
holds both). Line styles go with the colours; markers have another period, so 42 arms look different, and no reader
depends on colour alone.
"""

from typing import Any

LIGHT = ("#db6309", "#1989cf", "#006b41", "#a94a7e", "#383d42", "#6a4d00")
DARK = ("#d6873a", "#3898d5", "#55dd9c", "#d195b5", "#e4efef", "#efe067")
DASHES: tuple[tuple[int, ...], ...] = ((6, 4), (), (2, 4), (8, 3, 2, 3), (1, 3), (12, 4))  # px drawn, px left out, ...
MARKERS = ("square", "circle", "triangle", "diamond", "down", "plus", "cross")
_MATPLOTLIB_MARKERS = ("s", "o", "^", "D", "v", "P", "X")


def css_class(style: int) -> str:
    return f"c{style % len(LIGHT)}"


def marker_name(style: int) -> str:
    return MARKERS[style % len(MARKERS)]


def css_colours(colours: tuple[str, ...]) -> str:
    """Declarations of --c0, --c1, ... for one theme."""
    return " ".join(f"--c{i}: {colour};" for i, colour in enumerate(colours))


def css_rules() -> str:
    """Rules of the classes c0, c1, ...: what is drawn in them has the arm's colour and line."""
    rules = []
    for i, dashes in enumerate(DASHES):
        rules.append(f".c{i} {{ fill: var(--c{i}); stroke: var(--c{i}); }}")
        rules += [f".c{i} .line {{ stroke-dasharray: {' '.join(map(str, dashes))}; }}"] if dashes else []
    return "\n".join(rules)


def matplotlib_style(style: int) -> dict[str, Any]:
    """Keywords of a plot on white with the same colour, marker and dashes."""
    dashes = DASHES[style % len(DASHES)]
    line = (0, tuple(length / 1.6 for length in dashes)) if dashes else "-"
    marker = _MATPLOTLIB_MARKERS[style % len(_MATPLOTLIB_MARKERS)]
    return {"color": LIGHT[style % len(LIGHT)], "marker": marker, "linestyle": line}
