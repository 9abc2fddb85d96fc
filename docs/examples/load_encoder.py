"""Features of a scan from a pretrained encoder, with torch, MONAI and safetensors; maetrain need not be installed.

    python load_encoder.py HANDOVER features.safetensors scan.nii.gz [one file per channel ...]

HANDOVER is the folder that `maetrain export` wrote: weights, contract and the network's code (one file of plain torch).
"""

import sys

import torch
from monai.transforms import CenterSpatialCrop, LoadImage, Orientation
from safetensors.torch import save_file

handover, out, *scans = sys.argv[1:]

sys.path.insert(0, handover)
from nnformer_encoder import load_encoder, prepare  # noqa: E402

encoder, contract = load_encoder(handover)
image_CXYZ = Orientation("RAS")(LoadImage(image_only=True, ensure_channel_first=True)(scans))
spacing_mm_DHW = image_CXYZ.pixdim.tolist()[::-1]
volume_CDHW = torch.from_numpy(prepare(image_CXYZ.permute(0, 3, 2, 1), spacing_mm_DHW, contract))
crop_CDHW = CenterSpatialCrop(contract["crop_DHW"])(volume_CDHW)
with torch.no_grad():
    features = encoder(crop_CDHW[None])  # one map per stage, shallowest first: (B, E * 2**s, D_s, H_s, W_s)

save_file({f"stage_{s}": feats_BEDHW.contiguous() for s, feats_BEDHW in enumerate(features)}, out)
