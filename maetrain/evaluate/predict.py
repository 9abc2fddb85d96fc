"""From an image file to a segmentation in the file's own grid.

B batch, C channel, D H W voxels, K classes; X Y Z the file's voxels
"""

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from data_shards.archive.volume import Volume, read_image
from data_shards.errors import InputError
from data_shards.preprocess import PreprocessConfig, prepare, restore_probabilities
from maetrain.models.config import Triple
from maetrain.models.segmentation import NNFormer

OVERLAP = 0.5


@torch.no_grad()
def probabilities_KDHW(network: nn.Module, volume_CDHW: Tensor, window_DHW: Triple, windows_at_once: int = 4) -> Tensor:
    """Class probabilities of a whole prepared volume: sliding windows, overlap 0.5, Gaussian weights."""
    device = next(network.parameters()).device
    logits_1KDHW = sliding_window_inference(
        volume_CDHW[None].to(device),
        window_DHW,
        windows_at_once,
        lambda window_BCDHW: network(window_BCDHW)[0],
        overlap=OVERLAP,
        mode="gaussian",
        padding_mode="constant",
        cval=float(volume_CDHW.min()),
    )
    return torch.as_tensor(logits_1KDHW)[0].softmax(0).cpu()


def segment(network: NNFormer, image: Volume, preprocess: PreprocessConfig, window_DHW: Triple) -> np.ndarray:
    """(X, Y, Z) uint8 labels in the grid of `image`."""
    channels = network.config.in_channels
    if image.data.shape[0] != channels:
        raise InputError(
            f"{image.path}: {image.data.shape[0]} channels, but the model was trained on {channels}; "
            "give one file per channel in the order of its channel_names"
        )
    if preprocess.intensity == "auto":
        raise InputError(
            "the model learnt from CT and other scans together (shards.preprocess.intensity = auto), and an image file "
            "doesn't say which it is: build the labelled shards with ct or zscore"
        )
    prepared = prepare(image, preprocess)
    prob = probabilities_KDHW(network, torch.from_numpy(prepared.volume_CDHW), window_DHW)
    return restore_probabilities(prob.numpy(), prepared.record)


def predict_file(
    network: NNFormer, image_paths: Sequence[Path], out: Path, preprocess: PreprocessConfig, window_DHW: Triple
) -> None:
    """Writes a NIfTI segmentation with the affine of the image."""
    if not out.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{out}: a segmentation is written as NIfTI; end the name in .nii.gz")
    if out.resolve() in {path.resolve() for path in image_paths}:
        raise InputError(f"{out}: the segmentation would overwrite the image; give another name")
    image = read_image(image_paths)
    labels_XYZ = segment(network, image, preprocess, window_DHW)
    out.parent.mkdir(parents=True, exist_ok=True)
    segmentation = nibabel.Nifti1Image(labels_XYZ, image.affine_4x4)
    segmentation.header.set_xyzt_units("mm")
    suffix = ".nii.gz" if out.name.endswith(".nii.gz") else ".nii"
    partial = out.with_name(f".{out.name.removesuffix(suffix)}.partial{suffix}")  # a killed run leaves no half file
    nibabel.save(segmentation, partial)
    partial.rename(out)
