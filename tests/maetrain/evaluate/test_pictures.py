"""Pictures are written for every kind of content, also where there is nothing to see."""

from pathlib import Path

import numpy as np
import pytest

from maetrain.evaluate.pictures import CLASS_COLOURS, class_map, overlay, reconstruction

from .scans import organ, scan


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("label", [organ(scan()), np.zeros_like(organ(scan()))], ids=["an organ", "empty"])
def test_an_overlay_is_a_png(tmp_path: Path, label: np.ndarray) -> None:
    overlay(tmp_path / "overlay.png", scan(), label, label, ["background", "organ"])
    assert is_png(tmp_path / "overlay.png")


def test_a_reconstruction_is_a_png_and_leaves_its_arrays_alone(tmp_path: Path) -> None:
    original, hidden = scan(), organ(scan()).astype(bool)
    before = original.copy()
    reconstruction(tmp_path / "picture.png", original, hidden, original[::-1])
    assert is_png(tmp_path / "picture.png") and np.array_equal(original, before)


def test_classes_beyond_the_colours_begin_again() -> None:
    colours = class_map(10)
    assert colours.N == 9 and colours(7) == colours(0) and len(set(CLASS_COLOURS)) == len(CLASS_COLOURS)
