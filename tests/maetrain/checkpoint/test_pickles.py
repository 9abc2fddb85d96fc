"""Nothing of a checkpoint or a handover is unpickled or run, though every hash fits."""

import json
from pathlib import Path

import pytest
from safetensors import SafetensorError

from data_shards.errors import InputError
from maetrain.checkpoint import nnformer_encoder
from maetrain.checkpoint.commit import MANIFEST, newest_committed, read_committed, sha256_file
from maetrain.checkpoint.fragments import assemble
from maetrain.checkpoint.handover import CONTRACT, MODULE, POOL, WEIGHTS, load_encoder, read_handover, read_pool
from maetrain.models.segmentation import NNFormer

from ...trap import FORMS, Trap, trapped
from ..small import SMALL
from .builders import KINDS, write_checkpoint
from .test_handover import hand_over
from .test_traversal import forge

HASHES = {WEIGHTS: "weights_sha256", POOL: "pool_sha256", MODULE: "module_sha256"}


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "sprung")


def plant(folder: Path, name: str, content: bytes) -> None:
    """Puts a file into a handover and its hash into the contract."""
    (folder / name).write_bytes(content)
    contract = json.loads((folder / CONTRACT).read_text())
    (folder / CONTRACT).write_text(json.dumps(contract | {HASHES[name]: sha256_file(folder / name)}))


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_as_a_ranks_file_is_refused_and_not_opened(tmp_path: Path, trap: Trap, form: str) -> None:
    folder = write_checkpoint(tmp_path / "checkpoints", 1)
    path = folder / "rank-00000.safetensors"
    path.write_bytes(trapped(trap, form))
    stated = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    forge(folder, lambda content: content["files"][0].update(stated))
    manifest = read_committed(folder)
    with pytest.raises(ValueError, match=r"rank-00000\.safetensors") as caught:
        assemble(folder, manifest, KINDS)
    assert "\n" not in str(caught.value) and not trap.is_sprung


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_as_manifest_is_passed_over(tmp_path: Path, trap: Trap, form: str) -> None:
    write_checkpoint(tmp_path / "checkpoints", 1)
    (write_checkpoint(tmp_path / "checkpoints", 2) / MANIFEST).write_bytes(trapped(trap, form))
    found = newest_committed(tmp_path / "checkpoints")
    assert found.manifest is not None and found.manifest.step == 1
    assert len(found.skipped) == 1 and "\n" not in found.skipped[0] and not trap.is_sprung


@pytest.mark.parametrize("form", FORMS)
def test_a_pickle_as_weights_pool_or_contract_is_refused(tmp_path: Path, trap: Trap, form: str) -> None:
    for name, use in ((WEIGHTS, lambda folder: load_encoder(folder, NNFormer(SMALL, 3))), (POOL, read_pool)):
        hand_over(tmp_path / name)
        plant(tmp_path / name, name, trapped(trap, form))
        read_handover(tmp_path / name)
        with pytest.raises(InputError, match=name) as caught:
            use(tmp_path / name)
        assert "\n" not in str(caught.value)
    hand_over(tmp_path / CONTRACT)
    (tmp_path / CONTRACT / CONTRACT).write_bytes(trapped(trap, form))
    with pytest.raises(InputError, match="not a handover contract") as caught:
        read_handover(tmp_path / CONTRACT)
    assert "\n" not in str(caught.value) and not trap.is_sprung


@pytest.mark.parametrize("form", FORMS)
def test_the_module_for_other_programs_opens_no_pickle_either(tmp_path: Path, trap: Trap, form: str) -> None:
    hand_over(tmp_path / "handover")
    plant(tmp_path / "handover", WEIGHTS, trapped(trap, form))
    with pytest.raises(SafetensorError):
        nnformer_encoder.load_encoder(tmp_path / "handover")
    assert not trap.is_sprung


def test_another_module_in_a_handover_is_refused_and_not_even_run_with_a_forged_hash(
    tmp_path: Path, trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"from pathlib import Path\nPath({str(trap.path)!r}).touch()\n".encode()
    hand_over(tmp_path / "handover")
    (tmp_path / "handover" / MODULE).write_bytes(code)
    with pytest.raises(InputError, match=f"{MODULE}: not the file the contract speaks of"):
        load_encoder(tmp_path / "handover", NNFormer(SMALL, 3))
    plant(tmp_path / "handover", MODULE, code)
    monkeypatch.chdir(tmp_path / "handover")
    assert load_encoder(tmp_path / "handover", NNFormer(SMALL, 3)).matched
    assert read_pool(tmp_path / "handover") and not trap.is_sprung
