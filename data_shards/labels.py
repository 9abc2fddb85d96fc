"""What label values mean beyond one class a value: regions that overlap, and voxels that nobody annotated.

Both as in nnU-Net v2's dataset.json. Regions (BraTS: whole tumour = 1 2 3, tumour core = 2 3, enhancing tumour = 3) are
learnt and scored each for itself; a segmentation file gets their `written` values one after the other, in their order,
so that later regions lie over earlier ones. Voxels with the ignore value neither train nor count.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from data_shards.resample import largest


@dataclass(frozen=True)
class Target:
    """Something to segment: its name, and the label values that make it up."""

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Region(Target):
    """A target that may overlap others; `written` is its value in a segmentation."""

    written: int


@dataclass(frozen=True)
class LabelMeaning:
    """The default: every value is a class, 0 the background."""

    regions: tuple[Region, ...] = ()
    ignore: int | None = None

    def winners(self, shares: Iterable[np.ndarray]) -> np.ndarray:
        """Probabilities of each network output, float32 (D, H, W), one after the other, to values uint8 (D, H, W).

        The class with the largest; or each region that is more likely than not, the later ones over the earlier.
        """
        if not self.regions:
            return largest(shares)
        return self.written(np.stack([share_DHW > 0.5 for share_DHW in shares]))

    def written(self, is_region_RDHW: np.ndarray) -> np.ndarray:
        """bool (R, D, H, W), True = inside the region, to the values that a file gets: uint8 (D, H, W)."""
        label_DHW = np.zeros(is_region_RDHW.shape[1:], np.uint8)
        for region, is_inside_DHW in zip(self.regions, is_region_RDHW, strict=True):
            label_DHW[is_inside_DHW] = region.written
        return label_DHW


PLAIN = LabelMeaning()


@dataclass(frozen=True)
class Labels:
    """The label values of a data set: `class_names[v]` names value v, the ignore value too."""

    class_names: tuple[str, ...]
    meaning: LabelMeaning = PLAIN

    @property
    def targets(self) -> tuple[Target, ...]:
        """What is segmented and scored: the regions, or every class but the background."""
        if self.meaning.regions:
            return self.meaning.regions
        names = enumerate(self.class_names)
        return tuple(Target(name, (v,)) for v, name in names if v not in (0, self.meaning.ignore))

    @property
    def num_outputs(self) -> int:
        """Channels of the network's logits: one a region, or one a class with the background."""
        return len(self.targets) + (not self.meaning.regions)


def is_one_of(label: np.ndarray, target: Target) -> np.ndarray:
    """Bool mask of the voxels that belong to a target."""
    return label == target.values[0] if len(target.values) == 1 else np.isin(label, target.values)
