"""A look into a build: one picture of middle slices with their names, and a table of plain facts."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import ShardReader, open_reader

_COLUMNS = 6


def contact_sheet(index: ShardIndex, path_png: Path, max_volumes: int = 24) -> None:
    """Write a PNG with the middle axial slice of up to `max_volumes` volumes, spread evenly over the index.

    First channel, seen from the feet (the person's left is on the right); labelled classes as coloured outlines, in
    the slice that holds most of them.
    """
    reader = open_reader(index)
    count = min(max_volumes, len(index.volumes))
    chosen = np.linspace(0, len(index.volumes) - 1, count).round().astype(int)
    rows = -(-count // _COLUMNS)
    figure = Figure(figsize=(2.1 * _COLUMNS, 2.35 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for axes in (all_axes := figure.subplots(rows, _COLUMNS, squeeze=False).ravel()):
        axes.set_axis_off()
    for axes, i in zip(all_axes, chosen, strict=False):
        volume = index.volumes[i]
        image_HW, label_HW = _slice(reader, int(i))
        look = {"origin": "lower", "aspect": volume.spacing_mm[1] / volume.spacing_mm[2]}
        # W grows to the person's right; flipped, it is the radiologist's view from the feet.
        axes.imshow(image_HW[:, ::-1], cmap="gray", **look)
        if label_HW is not None and label_HW.any():
            levels = np.arange(len(index.class_names)) + 0.5
            axes.contour(label_HW[:, ::-1], levels=levels, cmap="turbo", linewidths=0.8)
        axes.set_title(volume.case, fontsize=7)
    path_png = Path(path_png)
    path_png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path_png)


def describe(index: ShardIndex) -> list[tuple[str, str]]:
    """(what, value) rows of plain text about a build: the table of contents of `shards show`."""
    volumes = index.volumes
    shapes = np.array([volume.shape_DHW for volume in volumes])
    spacings = np.array([volume.spacing_mm for volume in volumes])
    num_labelled = sum(volume.has_label for volume in volumes)
    rows = [
        ("data set", index.name),
        ("format", f"{index.format}, {len(index.shards)} shards, {sum(s.bytes for s in index.shards) / 1e6:.1f} MB"),
        ("volumes", f"{len(volumes)} ({num_labelled} labelled)"),
        ("persons", str(len({volume.subject for volume in volumes}))),
        ("channels", ", ".join(index.channel_names)),
        ("smallest shape", f"{_triple(shapes.min(0))} voxels (D x H x W)"),
        ("median shape", _triple(np.median(shapes, 0))),
        ("largest shape", _triple(shapes.max(0))),
        ("spacing", f"{_triple(spacings.min(0))} to {_triple(spacings.max(0))} mm (D x H x W)"),
    ]
    for k, name in enumerate(index.class_names[1:], start=1):
        holders = sum(k in volume.label_classes for volume in volumes)
        rows.append((f"class {k}", f"{name}, in {holders} of {num_labelled} labelled volumes"))
    rows += [
        ("quarantined", str(len(index.quarantined))),
        ("duplicates dropped", str(len(index.duplicates))),
        ("index sha256", index.sha256),
    ]
    return rows


def _slice(reader: ShardReader, i: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(image, label or None) of the slice with most label, of the middle one where there is none."""
    volume = reader.index.volumes[i]
    depth, height, width = volume.shape_DHW
    label_DHW = reader.read(i, "label") if volume.has_label else None
    d = int((label_DHW > 0).sum(axis=(1, 2)).argmax()) if label_DHW is not None and label_DHW.any() else depth // 2
    image_HW = reader.crop(i, (d, 0, 0), (1, height, width))[0, 0]
    return image_HW, None if label_DHW is None else label_DHW[d]


def _triple(values: np.ndarray) -> str:
    return " x ".join(f"{value:g}" for value in np.round(values, 2))
