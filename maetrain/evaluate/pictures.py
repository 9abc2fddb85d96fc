"""Pictures for people: what was hidden and rebuilt, and what was segmented.

C channel, D H W voxels; X Y Z the file's voxels
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; classes beyond seven start again
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


def class_map(num_classes: int) -> ListedColormap:
    return ListedColormap([CLASS_COLOURS[k % len(CLASS_COLOURS)] for k in range(max(num_classes - 1, 1))])


def overlay(
    path: Path, image_XYZ: np.ndarray, label_XYZ: np.ndarray, predicted_XYZ: np.ndarray, class_names: list[str]
) -> None:
    """Image, reference, prediction side by side: of the slices along Z the one with most foreground in the reference.

    Z is the last axis as stored: head to foot in most files, not in all.
    """
    z = int((label_XYZ > 0).sum((0, 1)).argmax())
    low, high = np.percentile(image_XYZ[..., z], (1, 99))
    figure = Figure(figsize=(7.5, 2.9), layout="constrained")
    axes = figure.subplots(1, 3)
    colours = class_map(len(class_names))
    for axis, title, mask in zip(
        axes, ("image", "reference", "prediction"), (None, label_XYZ, predicted_XYZ), strict=True
    ):
        axis.imshow(image_XYZ[..., z].T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower")
        if mask is not None:
            shown = np.ma.masked_equal(mask[..., z].T, 0)
            axis.imshow(shown, cmap=colours, vmin=1, vmax=max(len(class_names) - 1, 2), alpha=0.55, origin="lower")
        axis.set_title(title, fontsize=9)
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def reconstruction(path: Path, original_DHW: np.ndarray, hidden_DHW: np.ndarray, rebuilt_DHW: np.ndarray) -> None:
    """Original, what the encoder saw, and the prediction in the hidden places, for the middle slice of each axis.

    `hidden_DHW`: bool, True = hidden. All three have the crop's shape; intensities as trained on.
    """
    seen = np.where(hidden_DHW, np.nan, original_DHW)
    filled = np.where(hidden_DHW, rebuilt_DHW, original_DHW)
    low, high = np.percentile(original_DHW, (1, 99))
    figure = Figure(figsize=(6.6, 6.9), layout="constrained")
    axes = figure.subplots(3, 3)
    grey = matplotlib.colormaps["gray"].with_extremes(bad="#5b7fa6")
    for row, (axis_name, axis) in enumerate((("axial", 0), ("coronal", 1), ("sagittal", 2))):
        middle = original_DHW.shape[axis] // 2
        for column, (title, volume) in enumerate((("original", original_DHW), ("seen", seen), ("rebuilt", filled))):
            panel = axes[row, column]
            panel.imshow(np.take(volume, middle, axis), cmap=grey, vmin=low, vmax=high, origin="lower")
            panel.set_xticks([]), panel.set_yticks([])
            if row == 0:
                panel.set_title(title, fontsize=10)
            if column == 0:
                panel.set_ylabel(axis_name, fontsize=9)
    figure.savefig(path, dpi=110)
