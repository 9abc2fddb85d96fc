"""From an image file to a segmentation in the file's own grid.

Nothing of a whole volume is kept but the prepared image and the labels: probabilities come in slabs along D
(`sliding`), are resampled to the image's grid and become labels at once.

C channel, D H W voxels, K classes; X Y Z the file's voxels
"""

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor, nn

from data_shards.archive.cases import NIFTI_ENDINGS
from data_shards.archive.nifti import UNREADABLE, read_nifti_header
from data_shards.archive.volume import Volume, read_image
from data_shards.errors import InputError
from data_shards.labels import PLAIN, LabelMeaning
from data_shards.preprocess import Prepared, PreprocessConfig, Restorer, prepare
from maetrain.evaluate.sliding import USUAL, Sliding, probability_slabs
from maetrain.models.config import Triple
from maetrain.models.segmentation import NNFormer

OURS = "maetrain"  # how the note in a segmentation's header begins
# what says where a NIfTI's voxels lie
_GEOMETRY = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def probabilities_KDHW(
    network: nn.Module,
    volume_CDHW: Tensor,
    window_DHW: Triple,
    windows_at_once: int = 4,
    overlap: float = 0.5,
    mirror_axes: tuple[int, ...] = (),
    overlapping: bool = False,
) -> Tensor:
    """Probabilities of a whole prepared volume, on the CPU."""
    how = Sliding(overlap, windows_at_once, mirror_axes)
    return torch.cat(list(probability_slabs(network, volume_CDHW, window_DHW, how, overlapping)), dim=1)


def segment(
    network: NNFormer,
    image: Volume,
    preprocess: PreprocessConfig,
    window_DHW: Triple,
    how: Sliding = USUAL,
    meaning: LabelMeaning = PLAIN,
) -> np.ndarray:
    """(X, Y, Z) uint8 labels in the grid of `image`."""
    return labels_of(network, _prepare_for(network, image, preprocess), window_DHW, how, meaning)


def predict_file(
    network: NNFormer,
    image_paths: Sequence[Path],
    out: Path,
    preprocess: PreprocessConfig,
    window_DHW: Triple,
    how: Sliding = USUAL,
    note: str = OURS,
    meaning: LabelMeaning = PLAIN,
) -> None:
    """Writes a NIfTI segmentation that lies where the image lies. `note`: up to 79 characters for its header.

    It takes the place of an earlier one; InputError where another program's file lies there.
    """
    check_out(image_paths, out)
    image = read_image(image_paths)
    affine_4x4, prepared = image.affine_4x4, _prepare_for(network, image, preprocess)
    del image  # a CT of 512 x 512 x 600 is 0.6 GB
    labels_XYZ = labels_of(network, prepared, window_DHW, how, meaning)
    _write(labels_XYZ, affine_4x4, image_paths[0], out, note)


def check_out(image_paths: Sequence[Path], out: Path) -> None:
    """InputError for a name that is no NIfTI's, or that of a file we have not written."""
    if not out.name.endswith(NIFTI_ENDINGS):
        raise InputError(f"{out}: a segmentation is written as NIfTI; end the name in .nii.gz")
    if out.resolve() in {path.resolve() for path in image_paths}:
        raise InputError(f"{out}: the segmentation would overwrite the image; give another name")
    if out.exists() and (note := note_in(out)) is not None and not note.startswith(OURS):
        raise InputError(f"{out}: is there, and no segmentation of maetrain's; give another name, or remove it")


def note_in(path: Path) -> str | None:
    """The note in a NIfTI's header; None where no header can be read."""
    try:
        return bytes(read_nifti_header(path)["descrip"].item()).rstrip(b"\0").decode("latin-1")
    except UNREADABLE:
        return None


def _prepare_for(network: NNFormer, image: Volume, preprocess: PreprocessConfig) -> Prepared:
    channels = network.config.in_channels
    if image.data.shape[0] != channels:
        raise InputError(
            f"{image.path}: {image.data.shape[0]} channels, but the model was trained on {channels}; "
            "give one file per channel in the order of its channel_names"
        )
    return prepared_for_prediction(image, preprocess)


def prepared_for_prediction(image: Volume, preprocess: PreprocessConfig) -> Prepared:
    """As `prepare`. InputError where nothing says which kind of scan the image is."""
    if preprocess.intensity == "auto":
        raise InputError(
            "the model learnt from CT and other scans together (shards.preprocess.intensity = auto), and an image file "
            "doesn't say which it is: build the labelled shards with ct or zscore"
        )
    return prepare(image, preprocess)


def labels_of(
    network: nn.Module, prepared: Prepared, window_DHW: Triple, how: Sliding = USUAL, meaning: LabelMeaning = PLAIN
) -> np.ndarray:
    """(X, Y, Z) uint8 labels in the grid of the image that was prepared."""
    restorer = Restorer(prepared.record, meaning.winners)
    volume_CDHW = torch.from_numpy(np.require(prepared.volume_CDHW, requirements="W"))  # shared memory can't be written
    for prob_KdHW in probability_slabs(network, volume_CDHW, window_DHW, how, bool(meaning.regions)):
        restorer.add(prob_KdHW.numpy())
    return restorer.labels_XYZ()


def _write(labels_XYZ: np.ndarray, affine_4x4: np.ndarray, image: Path, out: Path, note: str) -> None:
    """Whole or not at all, with the image's sform and qform where it is a NIfTI: programs differ in which they read."""
    segmentation = nibabel.Nifti1Image(labels_XYZ, affine_4x4)
    if image.name.lower().endswith(NIFTI_ENDINGS):
        given = read_nifti_header(image)
        segmentation = nibabel.Nifti1Image(labels_XYZ, None, segmentation.header)
        segmentation.header["pixdim"][:4] = given["pixdim"][:4]
        for field in _GEOMETRY:
            segmentation.header[field] = given[field]
    segmentation.header.set_xyzt_units("mm")
    segmentation.header["descrip"] = note
    out.parent.mkdir(parents=True, exist_ok=True)
    suffix = ".nii.gz" if out.name.endswith(".nii.gz") else ".nii"
    partial = out.with_name(f".{out.name.removesuffix(suffix)}.partial{suffix}")  # a killed run leaves no half file
    nibabel.save(segmentation, partial)
    partial.replace(out)
