"""One crop as the autoencoder saw and rebuilt it, for a picture.

D H W voxels, G mask units, P values in a unit
"""

from pathlib import Path

import numpy as np
import torch

from data_shards.formats.index import ShardIndex
from data_shards.formats.reader import open_reader
from maetrain.masking.units import MaskUnitGrid, from_units, spread_units, to_units
from maetrain.models.mae import rebuilt_units
from maetrain.train.config import PretrainSetup
from maetrain.train.export import load_autoencoder
from maetrain.train.pretrain import pool_of


@torch.no_grad()
def rebuilt_crop(run_dir: Path, index: ShardIndex, setup: PretrainSetup) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(original, is hidden, rebuilt) of the central crop of the pool's first scan, first channel, each (D, H, W)."""
    network, _ = load_autoencoder(run_dir)
    crop_DHW = setup.pretrain.crop_DHW
    volume = pool_of(index, setup.pool_subjects)[0]
    shape_DHW = index.volumes[volume].shape_CDHW[1:]
    start = tuple((s - c) // 2 for s, c in zip(shape_DHW, crop_DHW, strict=True))
    crop = torch.from_numpy(open_reader(index).crop(volume, start, crop_DHW))[None]
    output = network(crop, torch.tensor([0]))
    grid = MaskUnitGrid(crop_DHW, network.unit_DHW)
    units_BGP = rebuilt_units(output, to_units(crop, grid), setup.pretrain.mae.normalise_target)
    is_hidden_DHW = spread_units(output.is_hidden_BG, grid, grid.unit_DHW)[0]
    return crop[0, 0].numpy(), is_hidden_DHW.numpy(), from_units(units_BGP, grid)[0, 0].numpy()
