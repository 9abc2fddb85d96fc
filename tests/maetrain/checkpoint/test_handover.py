"""The encoder arrives as it left, and nothing else gets in."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from data_shards.errors import InputError
from maetrain.checkpoint.commit import sha256_file
from maetrain.checkpoint.handover import (
    CONTRACT,
    POOL,
    WEIGHTS,
    EncoderHandover,
    PoolScan,
    check_fits,
    load_encoder,
    read_handover,
    read_pool,
    with_channels,
    write_handover,
)
from maetrain.models.config import NNFormerConfig
from maetrain.models.encoder import Encoder
from maetrain.models.segmentation import NNFormer

from ..small import SMALL, noise

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
SCANS = [PoolScan(case="c1", subject="anna", voxel_sha256="1" * 64)]


def hand_over(folder: Path, config: NNFormerConfig = SMALL, change: Change = dict) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    weights = change(Encoder(config).state_dict())
    contract = {
        "architecture": config,
        "crop_DHW": (16, 16, 16),
        "preprocess": {"spacing_mm": None},
        "channel_names": ("MRI",),
        "shard_index_sha256": "0" * 64,
        "pretrain_fingerprint": "f" * 64,
        "step": 7,
    }
    write_handover(folder, weights, contract, SCANS)
    return weights


def state_a_hash(folder: Path) -> None:
    """Makes the contract speak of whatever lies there now, as somebody with bad intent would."""
    contract = json.loads((folder / CONTRACT).read_text())
    (folder / CONTRACT).write_text(json.dumps(contract | {"weights_sha256": sha256_file(folder / WEIGHTS)}))


def test_the_encoder_of_a_network_becomes_the_one_handed_over(tmp_path: Path) -> None:
    weights = hand_over(tmp_path)
    network = NNFormer(SMALL, 3)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    report = load_encoder(tmp_path, network)
    after = network.state_dict()
    assert all(torch.equal(after[f"encoder.{name}"], tensor) for name, tensor in weights.items())
    assert set(report.matched) == {f"encoder.{name}" for name in weights}
    assert set(report.new) == set(after) - set(report.matched) and report.unused == ()
    assert all(torch.equal(after[name], before[name]) for name in report.new)
    assert report.line() == f"{len(weights)} tensors from pretraining, {len(after) - len(weights)} new, 0 unused"


def test_the_contract_and_the_pool_come_back_as_written(tmp_path: Path) -> None:
    hand_over(tmp_path)
    handover = read_handover(tmp_path)
    assert isinstance(handover, EncoderHandover)
    assert (handover.architecture, handover.crop_DHW, handover.step) == (SMALL, (16, 16, 16), 7)
    assert read_pool(tmp_path) == SCANS


def test_a_handover_that_lost_its_pool_is_refused(tmp_path: Path) -> None:
    hand_over(tmp_path)
    (tmp_path / POOL).write_text("[]")  # "seen nobody" would pass every overlap check
    with pytest.raises(InputError, match="pool.json: missing, or not the file"):
        read_pool(tmp_path)
    (tmp_path / POOL).unlink()
    with pytest.raises(InputError, match="pool.json: missing"):
        read_pool(tmp_path)


@pytest.mark.parametrize(
    ("model", "preprocess", "channels", "named"),
    [
        (SMALL.model_copy(update={"mlp_ratio": 2.0}), None, None, "model.mlp_ratio: 4.0 -> 2.0"),
        (SMALL, {"spacing_mm": [2.0, 2.0, 2.0]}, None, "preprocess.spacing_mm"),
        (SMALL, None, ("CT",), "channels"),
    ],
)
def test_a_handover_for_other_settings_is_refused(
    tmp_path: Path, model: NNFormerConfig, preprocess: dict | None, channels: tuple[str, ...] | None, named: str
) -> None:
    hand_over(tmp_path)
    given = read_handover(tmp_path)
    check_fits(tmp_path, SMALL, given.preprocess, given.channel_names)
    decoder_differs = SMALL.model_copy(update={"supervised_scales": 2})
    check_fits(tmp_path, decoder_differs, given.preprocess, given.channel_names)
    with pytest.raises(InputError, match=named):
        check_fits(tmp_path, model, given.preprocess | (preprocess or {}), channels or given.channel_names)


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    hand_over(tmp_path)
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match="not the file the contract speaks of"):
        load_encoder(tmp_path, NNFormer(SMALL, 3))


class Trap:
    """A pickle that leaves a file behind when somebody loads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("forged", [False, True], ids=["as it is", "with a forged hash"])
@pytest.mark.parametrize("torch_file", [False, True], ids=["pickle", "torch.save"])
def test_a_pickle_under_the_name_of_the_weights_is_refused_and_not_opened(
    tmp_path: Path, forged: bool, torch_file: bool
) -> None:
    hand_over(tmp_path)
    trap = Trap(tmp_path / "sprung")
    if torch_file:
        torch.save(trap, tmp_path / WEIGHTS)
    else:
        (tmp_path / WEIGHTS).write_bytes(pickle.dumps(trap))
    if forged:
        state_a_hash(tmp_path)
    with pytest.raises(InputError, match=WEIGHTS):
        load_encoder(tmp_path, NNFormer(SMALL, 3))
    assert not (tmp_path / "sprung").exists()


def test_a_handover_that_fits_no_weight_is_refused_with_its_widths(tmp_path: Path) -> None:
    hand_over(tmp_path)
    other = NNFormerConfig(embed_dim=20, num_heads=(1, 1, 1), decoder_heads=(1, 1), windows=((3, 3, 3),) * 3)
    with pytest.raises(InputError, match=r"none of its \d+ tensors fits the network \(widths \[8, 16, 32\]"):
        load_encoder(tmp_path, NNFormer(other, 3))


def test_a_network_with_another_window_takes_the_rest_and_reports_it(tmp_path: Path) -> None:
    weights = hand_over(tmp_path)
    report = load_encoder(tmp_path, NNFormer(SMALL.model_copy(update={"windows": ((3, 3, 3), *SMALL.windows[1:])}), 3))
    tables = tuple(f"stages.0.blocks.{i}.attn.bias.table" for i in range(2))
    assert report.unused == tables and len(report.matched) == len(weights) - 2
    assert {f"encoder.{name}" for name in tables} < set(report.new)
    assert json.loads(report.to_json())["unused"] == list(tables)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {k: t for k, t in w.items() if "conv1" not in k}, "4 tensors of the encoder are not in it"),
        (
            lambda w: w | {"stem.norm.bias": torch.full((8,), torch.nan)},
            "stem.norm.bias holds numbers that are not finite",
        ),
        (lambda w: w | {"stem.norm.bias": torch.zeros(8, dtype=torch.int8)}, "stem.norm.bias holds numbers"),
    ],
)
def test_a_handover_that_would_leave_the_encoder_random_is_refused(tmp_path: Path, change: Change, said: str) -> None:
    hand_over(tmp_path, change=change)
    network = NNFormer(SMALL, 3)
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with pytest.raises(InputError, match=said):
        load_encoder(tmp_path, network)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize("target", ["encoder.stem.norm.weight", "decoder.0.skip_block.norm1.weight"])
def test_a_key_map_that_leads_elsewhere_is_refused(tmp_path: Path, target: str) -> None:
    hand_over(tmp_path)
    contract = json.loads((tmp_path / CONTRACT).read_text())
    contract["key_map"]["stem.norm.bias"] = target
    contract["key_map"]["stem.block1.norm1.weight"] = target
    (tmp_path / CONTRACT).write_text(json.dumps(contract))
    with pytest.raises(InputError, match=f"goes to {target}, which is taken or outside the encoder"):
        load_encoder(tmp_path, NNFormer(SMALL, 3))


@pytest.mark.parametrize("how", ["mean", "repeat"])
@pytest.mark.parametrize("have", [1, 2, 3, 4])
@pytest.mark.parametrize("want", [1, 2, 3, 4])
def test_one_image_in_all_channels_gets_the_response_it_got_in_pretraining(have: int, want: int, how: str) -> None:
    weight, image = noise(5, have, 3, 3, 3), noise(1, 1, 4, 4, 4, seed=1)
    fitted = with_channels(weight, want, how)  # type: ignore[arg-type]
    before = F.conv3d(image.expand(1, have, 4, 4, 4), weight)
    torch.testing.assert_close(F.conv3d(image.expand(1, want, 4, 4, 4), fitted), before)


def test_mean_treats_channels_alike_and_repeat_tells_them_apart() -> None:
    weight = torch.arange(2.0).view(1, 2, 1, 1, 1)  # the pretrained channels hold 0 and 1
    assert with_channels(weight, 4, "mean").flatten().tolist() == [0.25] * 4
    assert with_channels(weight, 4, "repeat").flatten().tolist() == [0, 0.5, 0, 0.5]
    assert with_channels(weight, 3, "repeat").flatten().tolist() == [0, 1, 0]
    three = torch.tensor([1.0, 10, 100]).view(1, 3, 1, 1, 1)
    assert with_channels(three, 2, "repeat").flatten().tolist() == [101, 10]


def test_an_encoder_for_other_channels_is_refused_unless_told_how_to_fit_it(tmp_path: Path) -> None:
    weights = hand_over(tmp_path)
    two = SMALL.model_copy(update={"in_channels": 2})
    preprocess = read_handover(tmp_path).preprocess
    with pytest.raises(InputError, match="channels.*set finetune.pretrained_channels=mean or repeat"):
        check_fits(tmp_path, two, preprocess, ("T1", "T2"))
    with pytest.raises(InputError, match="1 input channels, the network has 2: set finetune.pretrained_channels"):
        load_encoder(tmp_path, NNFormer(two, 3))
    check_fits(tmp_path, two, preprocess, ("T1", "T2"), "mean")
    with pytest.raises(InputError, match="model.mlp_ratio") as other:
        check_fits(tmp_path, two.model_copy(update={"mlp_ratio": 2.0}), preprocess, ("T1", "T2"), "mean")
    assert "pretrained_channels" not in str(other.value), "it is set already"
    # as many, but another: the weights would go to the wrong one, unless only the name is
    with pytest.raises(InputError, match="channels.*only the names differ.*rename them in its contract.json"):
        check_fits(tmp_path, SMALL, preprocess, ("CT",), "mean")
    network = NNFormer(two, 3)
    report = load_encoder(tmp_path, network, "mean")
    assert report.unused == () and len(report.matched) == len(weights)
    assert report.line().endswith("0 unused; 1 -> 2 input channels by mean")
    got = network.state_dict()["encoder.stem.block1.conv1.weight"]
    torch.testing.assert_close(got, weights["stem.block1.conv1.weight"].expand(-1, 2, -1, -1, -1) / 2)


@pytest.mark.parametrize("key", ["key_map", "architecture", "weights_sha256"])
def test_a_contract_without_one_of_its_keys_is_refused_by_name(tmp_path: Path, key: str) -> None:
    hand_over(tmp_path)
    contract = json.loads((tmp_path / CONTRACT).read_text())
    del contract[key]
    (tmp_path / CONTRACT).write_text(json.dumps(contract))
    with pytest.raises(InputError, match=key) as error:
        read_handover(tmp_path)
    assert str(tmp_path / CONTRACT) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"architecture": 3}'])
def test_a_garbled_contract_is_refused(tmp_path: Path, text: str) -> None:
    hand_over(tmp_path)
    (tmp_path / CONTRACT).write_text(text)
    with pytest.raises(InputError, match="not a handover contract"):
        read_handover(tmp_path)


def test_a_contract_of_another_schema_is_refused(tmp_path: Path) -> None:
    hand_over(tmp_path)
    contract = json.loads((tmp_path / CONTRACT).read_text())
    (tmp_path / CONTRACT).write_text(json.dumps(contract | {"schema_version": 2}))
    with pytest.raises(InputError, match="schema_version"):
        read_handover(tmp_path)


def test_a_folder_without_a_contract_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="maetrain export"):
        read_handover(tmp_path)


def test_a_garbled_pool_is_an_error_and_not_an_empty_pool(tmp_path: Path) -> None:
    hand_over(tmp_path)
    (tmp_path / POOL).write_text('[{"case": "c1"}]')
    with pytest.raises(InputError, match=POOL):
        read_pool(tmp_path)
