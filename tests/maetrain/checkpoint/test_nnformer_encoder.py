"""What others get: the same features without maetrain, from the files of a handover and plain torch."""

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import CropForeground, LoadImage, Orientation, Resize
from safetensors.torch import load_file
from torch import Tensor

from data_shards.archive.volume import Volume, read_image
from data_shards.preprocess import PreprocessConfig
from data_shards.preprocess import prepare as our_prepare
from maetrain.checkpoint.encoder_input import encoder_input
from maetrain.checkpoint.handover import MODULE, PoolScan, load_encoder, read_handover, write_handover
from maetrain.checkpoint.nnformer_encoder import Encoder as StandaloneEncoder
from maetrain.checkpoint.nnformer_encoder import load_encoder as load_standalone
from maetrain.checkpoint.nnformer_encoder import prepare
from maetrain.models.config import NNFormerConfig
from maetrain.models.encoder import Encoder
from maetrain.models.segmentation import NNFormer
from maetrain.models.sizes import CONFIGS

from ..small import SMALL, hand_over, noise

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "load_encoder.py"
# fails every import of ours; that it does so is shown first
BLOCKER = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("maetrain", "data_shards", "cluster"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocker())
for ours in ("maetrain", "data_shards.preprocess", "cluster"):
    try:
        __import__(ours)
    except ImportError:
        continue
    sys.exit(f"{ours} can be imported: the blocker is broken")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
POOL = [PoolScan(case="c1", subject="anna", voxel_sha256="1" * 64)]
UNEVEN = NNFormerConfig(
    in_channels=2,
    embed_dim=8,
    num_heads=(1, 2, 2),
    decoder_heads=(1, 2),
    windows=((2, 3, 3), (3, 2, 4), (2, 2, 2)),
    stem_strides=((1, 2, 2), (2, 1, 1)),
    down_strides=((1, 2, 2), (2, 2, 2)),
    mlp_ratio=3.0,
)


def random_encoder(config: NNFormerConfig) -> Encoder:
    """Every weight random, also those that start at 0 or 1."""
    encoder = Encoder(config).eval()
    for i, parameter in enumerate(encoder.parameters()):
        parameter.data.add_(0.1 * noise(*parameter.shape, seed=i))
    return encoder


def scan(seed: int = 0) -> np.ndarray:
    """(X, Y, Z): smooth values in a body, air (0) around it, more on one side than on the other."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(50, 250, (1, 1, 7, 6, 5)))
    body = torch.nn.functional.interpolate(coarse, (31, 24, 22), mode="trilinear")[0, 0].numpy()
    image = np.zeros((36, 30, 26))
    image[3:34, 2:26, 1:23] = body
    return image.astype(np.float32)


def stored(path: Path, image_RAS: np.ndarray, affine: np.ndarray, axes: str = "RAS") -> Path:
    """The scan as a file whose axes run along `axes`."""
    orientation = nibabel.orientations
    turn = orientation.ornt_transform(orientation.io_orientation(affine), orientation.axcodes2ornt(axes))
    nibabel.save(nibabel.Nifti1Image(image_RAS, affine).as_reoriented(turn), path)
    return path


def with_monai(path: Path) -> tuple[np.ndarray, list[float]]:
    """(C, D, H, W) and its spacing, as the example reads it."""
    image = Orientation("RAS")(LoadImage(image_only=True, ensure_channel_first=True)(path))
    return image.permute(0, 3, 2, 1).numpy(), image.pixdim.tolist()[::-1]


def contract_of(preprocess: PreprocessConfig) -> dict:
    return {"preprocess": preprocess.model_dump(mode="json")}


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "size_DHW"),
    [
        (SMALL, (16, 16, 16)),
        (SMALL, (20, 25, 17)),  # padded to whole windows, shifted windows masked
        (SMALL, (3, 9, 30)),  # one axis shorter than its window
        (SMALL, (1, 1, 1)),
        (UNEVEN, (9, 20, 23)),
        (CONFIGS["tiny"](1), (24, 30, 21)),
        (CONFIGS["acdc"](1), (6, 40, 36)),
    ],
)
def test_the_single_file_computes_what_our_encoder_computes(config: NNFormerConfig, size_DHW: tuple) -> None:
    ours = random_encoder(config)
    theirs = StandaloneEncoder(json.loads(config.model_dump_json())).eval()
    theirs.load_state_dict(ours.state_dict())
    volume = noise(2, config.in_channels, *size_DHW)
    for got, want in zip(theirs(volume), ours(volume), strict=True):
        torch.testing.assert_close(got, want, atol=5e-5, rtol=1e-5)


def test_it_can_be_trained() -> None:
    encoder = StandaloneEncoder(SMALL.model_dump())
    sum(feats.square().mean() for feats in encoder(noise(1, 1, 12, 12, 12))).backward()  # type: ignore[union-attr]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())


def test_a_network_with_the_published_faults_goes_without_the_file(tmp_path: Path) -> None:
    published = SMALL.model_copy(update={"published": "cubic"})
    with pytest.raises(ValueError, match="load them with maetrain"):
        StandaloneEncoder(published.model_dump())
    hand_over(tmp_path, POOL)
    hand_over(tmp_path, POOL, architecture=published)
    assert not (tmp_path / MODULE).exists() and read_handover(tmp_path).module_sha256 == ""


def test_altered_weights_are_refused_without_maetrain_too(tmp_path: Path) -> None:
    hand_over(tmp_path, POOL)
    load_standalone(tmp_path)
    content = bytearray((tmp_path / "encoder.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "encoder.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not the file that contract.json speaks of"):
        load_standalone(tmp_path)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR"])
@pytest.mark.parametrize(
    "preprocess",
    [
        PreprocessConfig(intensity="zscore"),
        PreprocessConfig(intensity="zscore", crop_to_content=False),
        PreprocessConfig(intensity="zscore", spacing_mm=(1.0, 0.9, 0.5)),
        PreprocessConfig(intensity="zscore", spacing_mm=(3.0, 2.0, 2.5), clip_percentiles=(5, 90)),
        PreprocessConfig(intensity="ct", spacing_mm=(1.0, 2.0, 0.7), ct_window_hu=(60, 200)),
    ],
    ids=["native", "whole", "finer", "coarser", "ct"],
)
def test_preparing_gives_the_voxels_of_our_shards(tmp_path: Path, axes: str, preprocess: PreprocessConfig) -> None:
    path = stored(tmp_path / "scan.nii.gz", scan(), np.diag([1.0, 1.5, 2.0, 1.0]), axes)
    want = our_prepare(read_image([path]), preprocess).volume_CDHW
    image_CDHW, spacing_mm = with_monai(path)
    got = prepare(image_CDHW, spacing_mm, contract_of(preprocess))
    assert got.shape == want.shape and got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_what_lies_below_the_ct_window_is_air() -> None:
    image_XYZ = scan() + 100
    image_XYZ[0] = -3000.0  # outside the scanner's circle
    image_XYZ[1, 2, 3] = -2000.0
    config = PreprocessConfig(intensity="ct", ct_window_hu=(100, 400))
    want = our_prepare(Volume(image_XYZ[None], np.eye(4), Path("scan")), config).volume_CDHW
    got = prepare(image_XYZ.transpose(2, 1, 0)[None], (1, 1, 1), contract_of(config))
    assert want.shape == (1, 22, 24, 31), "the body alone"
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_channels_are_prepared_apart_and_cut_together() -> None:
    second = scan(1)
    second[34, 10, 10] = 100.0  # the box around both channels is larger than the first one's
    image_CXYZ = np.stack([scan(), second])
    config = PreprocessConfig(intensity="zscore")
    want = our_prepare(Volume(image_CXYZ, np.eye(4), Path("scan")), config).volume_CDHW
    np.testing.assert_allclose(
        prepare(image_CXYZ.transpose(0, 3, 2, 1), (1, 1, 1), contract_of(config)), want, atol=2e-5
    )


def test_the_modality_decides_what_auto_means() -> None:
    image_CDHW = scan().transpose(2, 1, 0)[None]
    auto = contract_of(PreprocessConfig())
    for modality, intensity in (("CT", "ct"), ("MR", "zscore"), ("", "zscore")):
        want = prepare(image_CDHW, (1, 1, 1), contract_of(PreprocessConfig(intensity=intensity)))
        assert np.array_equal(prepare(image_CDHW, (1, 1, 1), auto, modality), want)


@pytest.mark.parametrize("spacing_mm", [None, (1.0, 0.75, 0.5)])
def test_monais_transforms_alone_do_the_steps_that_the_contract_tells(
    tmp_path: Path, spacing_mm: tuple[float, float, float] | None
) -> None:
    """Written after the words in `input.steps`; exact where the grid is not made coarser."""
    path = stored(tmp_path / "scan.nii.gz", scan(), np.diag([1.0, 1.5, 2.0, 1.0]), "LPS")
    config = PreprocessConfig(intensity="zscore", spacing_mm=spacing_mm)
    hand_over(tmp_path / "handover", POOL, preprocess=config.model_dump(mode="json"))
    contract = json.loads((tmp_path / "handover" / "contract.json").read_text())
    assert contract["input"]["orientation"] == "RAS" and contract["input"]["axes_of_RAS"] == [2, 1, 0]
    assert len(contract["input"]["steps"]) == (4 if spacing_mm is None else 5)
    image = Orientation("RAS")(LoadImage(image_only=True, ensure_channel_first=True)(path))
    above = image[image > image.min()].numpy()
    low, high = (float(p) for p in np.percentile(above, contract["preprocess"]["clip_percentiles"]))
    clipped = np.clip(above, low, high)
    image = CropForeground(select_fn=lambda x: x > x.min())(image)
    image = (image.clamp(low, high) - float(clipped.mean())) / float(clipped.std())
    if spacing_mm is not None:
        sizes = zip(image.shape[1:], image.pixdim.tolist(), spacing_mm[::-1], strict=True)
        image = Resize([round(n * mm / to) for n, mm, to in sizes], mode="trilinear", align_corners=False)(image)
    want = our_prepare(read_image([path]), config).volume_CDHW
    np.testing.assert_allclose(image.permute(0, 3, 2, 1).numpy(), want, atol=2e-4)


def test_the_contract_tells_what_comes_out() -> None:
    encoder, config = random_encoder(UNEVEN), UNEVEN
    stages = encoder_input(config, PreprocessConfig()).stages
    feats = encoder(noise(1, 2, 8, 16, 16))
    assert [(s.width, *(n // t for n, t in zip((8, 16, 16), s.stride_DHW, strict=True))) for s in stages] == [
        tuple(f.shape[1:]) for f in feats
    ]


@pytest.mark.runs
def test_the_example_gets_our_features_with_none_of_our_packages(tmp_path: Path) -> None:
    config = PreprocessConfig(intensity="zscore", spacing_mm=(1.5, 2.0, 1.2))
    encoder = random_encoder(SMALL)
    folder = tmp_path / "handover"
    contract = {
        "architecture": SMALL,
        "crop_DHW": (16, 12, 18),
        "preprocess": config.model_dump(mode="json"),
        "channel_names": ("MRI",),
        "shard_index_sha256": "0",
        "pretrain_fingerprint": "0",
        "step": 1,
    }
    write_handover(folder, encoder.state_dict(), contract, POOL)
    path = stored(tmp_path / "scan.nii.gz", scan(), np.diag([1.0, 1.5, 2.0, 1.0]), "PIL")
    out = tmp_path / "features.safetensors"
    words = [sys.executable, "-I", "-c", BLOCKER, str(EXAMPLE), str(folder), str(out), str(path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    volume = torch.from_numpy(our_prepare(read_image([path]), config).volume_CDHW)
    with torch.no_grad():
        want = encoder(middle(volume, (16, 12, 18))[None])
    got = load_file(out)
    assert len(got) == len(want)
    for s, feats in enumerate(want):
        torch.testing.assert_close(got[f"stage_{s}"], feats, atol=2e-4, rtol=1e-4)


def middle(volume_CDHW: Tensor, crop_DHW: tuple[int, int, int]) -> Tensor:
    for axis, n in enumerate(crop_DHW, start=1):
        n = min(n, volume_CDHW.shape[axis])
        volume_CDHW = volume_CDHW.narrow(axis, max(volume_CDHW.shape[axis] // 2 - n // 2, 0), n)
    return volume_CDHW


def module_of(path: Path) -> ModuleType:
    spec = spec_from_file_location("handed_over", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_file_in_the_folder_is_the_one_tested_here(tmp_path: Path) -> None:
    hand_over(tmp_path, POOL)
    encoder, contract = module_of(tmp_path / MODULE).load_encoder(tmp_path)
    assert contract["step"] == 1 and not encoder.training


def test_finetuning_needs_no_file_of_code_but_takes_no_other_one(tmp_path: Path) -> None:
    hand_over(tmp_path, POOL)
    assert not load_encoder(tmp_path, NNFormer(SMALL, 3)).unused
    with (tmp_path / MODULE).open("a") as file:
        file.write("# changed\n")
    with pytest.raises(ValueError, match=f"{MODULE}: not the file"):
        load_encoder(tmp_path, NNFormer(SMALL, 3))
    (tmp_path / MODULE).unlink()
    assert not load_encoder(tmp_path, NNFormer(SMALL, 3)).unused


def test_a_handover_from_before_the_file_still_loads(tmp_path: Path) -> None:
    hand_over(tmp_path, POOL)
    contract = json.loads((tmp_path / "contract.json").read_text())
    del contract["input"], contract["module_sha256"]
    (tmp_path / "contract.json").write_text(json.dumps(contract))
    (tmp_path / MODULE).unlink()
    assert read_handover(tmp_path).input is None
    assert not load_encoder(tmp_path, NNFormer(SMALL, 3)).unused
    assert load_standalone(tmp_path)[1]["step"] == 1
