"""`maetrain predict` refuses a model folder with a pickle in it, in one line, and opens nothing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from cluster import cli
from data_shards.preprocess import PreprocessConfig
from maetrain.checkpoint.commit import sha256_file
from maetrain.evaluate.model_folder import CONTRACT, WEIGHTS, ModelContract, save_model
from maetrain.models.segmentation import NNFormer

from ..data_shards.helpers import write_nifti
from ..maetrain.small import SMALL
from ..trap import FORMS, Trap, trapped


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [WEIGHTS, CONTRACT])
def test_predict_refuses_a_pickle_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str, form: str
) -> None:
    model, trap = tmp_path / "model", Trap(tmp_path / "sprung")
    contract = ModelContract(
        architecture=SMALL,
        class_names=("background", "a", "b"),
        channel_names=("MRI",),
        window_DHW=(16, 16, 16),
        preprocess=PreprocessConfig(),
    )
    save_model(model, NNFormer(SMALL, 3), contract)
    (model / name).write_bytes(trapped(trap, form))
    if name == WEIGHTS:
        forged = json.loads((model / CONTRACT).read_text()) | {"weights_sha256": sha256_file(model / WEIGHTS)}
        (model / CONTRACT).write_text(json.dumps(forged))
    scan = write_nifti(tmp_path / "scan.nii.gz", np.ones((9, 9, 9), dtype=np.int16))
    monkeypatch.setattr(sys, "argv", ["maetrain", "predict", str(model), str(scan), str(tmp_path / "out.nii.gz")])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(said) == 1 and str(model / name) in said[0]
    assert not trap.is_sprung and not (tmp_path / "out.nii.gz").exists()
