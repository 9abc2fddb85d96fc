"""A model comes back as it was saved, or is refused with the reason."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from data_shards.errors import InputError
from data_shards.preprocess import PreprocessConfig
from maetrain.checkpoint.commit import sha256_file
from maetrain.evaluate.model_folder import CONTRACT, WEIGHTS, ModelContract, load_model, save_model
from maetrain.models.segmentation import NNFormer

from ..small import SMALL, noise

NETWORK = NNFormer(SMALL, 3).eval()
MODEL = ModelContract(
    architecture=SMALL,
    class_names=("background", "a", "b"),
    channel_names=("MRI",),
    window_DHW=(16, 16, 16),
    preprocess=PreprocessConfig(spacing_mm=(1.0, 2.0, 1.0)),
    made_by={"arm": "mae"},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", NETWORK, MODEL)
    return tmp_path / "model"


def change_contract(folder: Path, **changes: object) -> None:
    contract = json.loads((folder / CONTRACT).read_text()) | changes
    (folder / CONTRACT).write_text(json.dumps({k: v for k, v in contract.items() if v is not None}))


@torch.no_grad()
def test_a_model_comes_back_and_computes_the_same(folder: Path) -> None:
    network, contract = load_model(folder)
    assert contract.model_copy(update={"weights_sha256": ""}) == MODEL
    assert not network.training
    volume = noise(1, 1, 12, 10, 9)
    assert torch.equal(network(volume)[0], NETWORK(volume)[0])


def test_saving_again_replaces_the_model(folder: Path) -> None:
    other = NNFormer(SMALL, 3)
    save_model(folder, other, MODEL)
    assert torch.equal(load_model(folder)[0].heads[0].conv.weight, other.heads[0].conv.weight)


def test_a_flipped_byte_in_the_weights_is_refused(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match=f"{WEIGHTS}: missing, or not the file"):
        load_model(folder)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(InputError, match=WEIGHTS):
        load_model(folder)
    with pytest.raises(InputError, match=f"{CONTRACT} is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"window_DHW": None}, "window_DHW"),
        ({"schema_version": 2}, "schema_version"),
        ({"extra": 1}, "extra"),
        ({"window_DHW": [0, 16, 16]}, "window_DHW"),
        ({"made_by": {"budget": "four"}}, "'four'"),
    ],
)
def test_a_contract_that_does_not_fit_is_refused_by_its_key(folder: Path, changes: dict, said: str) -> None:
    change_contract(folder, **changes)
    with pytest.raises(InputError, match=said) as error:
        load_model(folder)
    assert CONTRACT in str(error.value) and "\n" not in str(error.value)


def test_a_contract_with_another_network_than_the_weights_is_refused_in_one_line(folder: Path) -> None:
    change_contract(folder, class_names=["background", "a", "b", "c"])
    with pytest.raises(InputError, match=f"{WEIGHTS}.*size mismatch") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_a_pickle_with_a_forged_hash_is_refused_and_not_opened(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    (folder / WEIGHTS).write_bytes(pickle.dumps(Trap()))
    change_contract(folder, weights_sha256=sha256_file(folder / WEIGHTS))
    with pytest.raises(InputError, match=WEIGHTS):
        load_model(folder)
    assert not (tmp_path / "sprung").exists()
