"""A finetuned model as MLflow serves it: a volume in, its segmentation out.

MLflow finds this module by its name, which stands in the logged model, and gives it the folder with the weights
(safetensors) and their contract (JSON): no class is pickled, and nothing here knows MLflow.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_shards.archive.cases import ScanName
from data_shards.archive.volume import Volume, check_grid, check_image
from data_shards.errors import InputError
from maetrain.evaluate.model_folder import load_model
from maetrain.evaluate.predict import segment


class ServedModel:
    """`predict` takes {"image": (C, X, Y, Z), "affine": 4 x 4, voxels to mm} and returns labels, uint8 (X, Y, Z).

    InputError for what no scan could be: other shapes, voxels that are no numbers, an affine that can't be inverted.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        network, self.contract = load_model(folder)
        self.network = network.to(device)

    def predict(self, volume: dict[str, Any]) -> np.ndarray:
        image_CXYZ = np.asarray(volume["image"], np.float32)
        affine_4x4 = np.asarray(volume["affine"], np.float64)
        if image_CXYZ.ndim != 4 or affine_4x4.shape != (4, 4):
            raise InputError(
                f"image has shape {image_CXYZ.shape} and affine {affine_4x4.shape}; "
                "they must be (channels, X, Y, Z) and (4, 4)"
            )
        name, image_XYZC = ScanName("image"), np.moveaxis(image_CXYZ, 0, -1)
        check_grid(name, image_XYZC, affine_4x4)
        check_image(name, image_XYZC)
        image = Volume(image_CXYZ, affine_4x4, Path("image"))
        contract = self.contract
        return segment(self.network, image, contract.preprocess, contract.window_DHW, meaning=contract.meaning)


def _load_pyfunc(folder: str) -> ServedModel:
    """MLflow's name for it."""
    return ServedModel(Path(folder), torch.device("cuda" if torch.cuda.is_available() else "cpu"))
