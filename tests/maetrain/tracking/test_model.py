"""A model in MLflow segments as it does here, is there once, and holds no pickle and no path of this machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from data_shards.archive.volume import Volume
from data_shards.errors import InputError
from data_shards.preprocess import PreprocessConfig
from maetrain.evaluate.model_folder import ModelContract, load_model, save_model
from maetrain.evaluate.predict import segment
from maetrain.evaluate.serve import ServedModel
from maetrain.models.segmentation import NNFormer
from maetrain.tracking import model as module
from maetrain.tracking.mlflow_tracker import MlflowTracker
from maetrain.tracking.model import Claim, log_model, register
from maetrain.tracking.work import Tracking

from ..small import SMALL

ROOT = Path(__file__).parents[3]
GOOD = Claim(4, 0.8)
AFFINE_4X4 = np.array([[0.0, -1.2, 0, 5], [1.0, 0, 0, -3], [0, 0, 1.4, 8], [0, 0, 0, 1]])


def model_folder(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = NNFormer(SMALL, 3).eval()
    with torch.no_grad():
        network.heads[0].conv.weight.mul_(20)  # so that all classes occur
    contract = ModelContract(
        architecture=SMALL,
        class_names=("background", "a", "b"),
        channel_names=("MRI",),
        window_DHW=(16, 16, 16),
        preprocess=PreprocessConfig(intensity="zscore", spacing_mm=(1.2, 1.0, 1.3)),
        made_by={"arm": "mae", "budget": "2"},
    )
    save_model(folder, network, contract)
    return folder


def image_CXYZ() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 20, 18, 17)).astype(np.float32)


def wanted_XYZ(folder: Path) -> np.ndarray:
    network, contract = load_model(folder)
    image = Volume(image_CXYZ(), AFFINE_4X4, Path("image"))
    return segment(network, image, contract.preprocess, contract.window_DHW)


def logged(tracking: Tracking, folder: Path) -> str:
    return log_model(tracking.uri, tracking.parent_run_id, folder, "best-mae")


@pytest.fixture
def global_store(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> Tracking:
    """The store as a user's own script has it; ours does without."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    mlflow.set_tracking_uri(tracking.uri)
    yield tracking
    mlflow.set_tracking_uri("")


EVERY_STORE = pytest.mark.parametrize("tracking", ["sqlite_store", "server_store"], indirect=True)


@EVERY_STORE
def test_a_loaded_model_segments_as_ours_does(global_store: Tracking, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    uri = logged(global_store, folder)
    assert register(global_store.uri, uri, f"seg-{tmp_path.name}", GOOD).version == f"models:/seg-{tmp_path.name}/1"
    for name in (uri, f"models:/seg-{tmp_path.name}@champion"):
        got = mlflow.pyfunc.load_model(name).predict({"image": image_CXYZ(), "affine": AFFINE_4X4})
        assert got.dtype == np.uint8 and np.array_equal(got, wanted_XYZ(folder))
    assert len(np.unique(wanted_XYZ(folder))) > 1


@pytest.mark.runs
@pytest.mark.timeout(1000)
def test_mlflow_models_predict_segments_as_ours_does(tracking: Tracking, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    question, answer = tmp_path / "volume.json", tmp_path / "labels.json"
    question.write_text(json.dumps({"inputs": {"image": image_CXYZ().tolist(), "affine": AFFINE_4X4.tolist()}}))
    command = f"models predict -m {logged(tracking, folder)} -i {question} -o {answer} -t json --env-manager local"
    subprocess.run(
        [sys.executable, "-m", "mlflow", *command.split()],
        check=True,
        env={**os.environ, "MLFLOW_TRACKING_URI": tracking.uri},
        timeout=900,
    )
    assert np.array_equal(json.loads(answer.read_text())["predictions"], wanted_XYZ(folder))


def test_the_logged_folder_has_no_pickle_and_no_path_of_this_machine(tracking: Tracking, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "somewhere" / "model")
    uri = logged(tracking, folder)
    client = MlflowClient(tracking.uri)
    model = client.get_logged_model(uri.removeprefix("models:/"))
    files = [p for p in Path(model.artifact_location.removeprefix("file://")).rglob("*") if p.is_file()]
    names = {path.name for path in files}
    assert {"model.safetensors", "model.json", "MLmodel", "requirements.txt"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".py", ".pyc"))]
    for path in files:
        text = path.read_bytes().replace(model.artifact_location.encode(), b"")
        assert str(tmp_path).encode() not in text and str(ROOT).encode() not in text, path
        assert b"cloudpickle" not in text
    (requirements,) = [path.read_text() for path in files if path.name == "requirements.txt"]
    assert all(re.fullmatch(r"[a-z]+==[0-9.]+", line) for line in requirements.splitlines())
    assert "maetrain==" in requirements and "torch==" in requirements


def test_the_signature_says_what_goes_in_and_what_comes_out(global_store: Tracking, tmp_path: Path) -> None:
    model = mlflow.pyfunc.load_model(logged(global_store, model_folder(tmp_path / "model")))
    spec = {s.name: (s.type, s.shape) for s in model.metadata.signature.inputs.inputs}
    assert spec == {"image": (np.float32, (1, -1, -1, -1)), "affine": (np.float64, (4, 4))}
    (out,) = model.metadata.signature.outputs.inputs
    assert (out.type, out.shape) == (np.uint8, (-1, -1, -1))
    for wrong in (
        {"image": image_CXYZ()},
        {"image": image_CXYZ()[0], "affine": AFFINE_4X4},
        {"image": np.repeat(image_CXYZ(), 2, 0), "affine": AFFINE_4X4},
    ):
        with pytest.raises(MlflowException):
            model.predict(wrong)


def test_a_volume_of_another_shape_is_refused_in_one_line(tmp_path: Path) -> None:
    served = ServedModel(model_folder(tmp_path / "model"), torch.device("cpu"))
    with pytest.raises(InputError, match=r"image has shape \(20, 18, 17\) and affine \(4, 4\)"):
        served.predict({"image": image_CXYZ()[0], "affine": AFFINE_4X4})
    with pytest.raises(InputError, match=r"affine \(16,\)"):
        served.predict({"image": image_CXYZ(), "affine": AFFINE_4X4.ravel()})
    with pytest.raises(InputError, match="NaN or infinite"):
        served.predict({"image": np.where(image_CXYZ() > 0, np.nan, 0), "affine": AFFINE_4X4})
    with pytest.raises(InputError, match="affine is not invertible"):
        served.predict({"image": image_CXYZ(), "affine": np.diag([1.0, 0.0, 1.0, 1.0])})


def test_a_model_is_logged_once_with_its_makers_as_tags(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder(tmp_path / "model")
    client = MlflowClient(tracking.uri)
    real = MlflowClient.log_model_artifacts
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", lambda *_: pytest.fail("the line was cut"))
    with pytest.raises(pytest.fail.Exception):
        logged(tracking, folder)
    monkeypatch.setattr(MlflowClient, "log_model_artifacts", real)
    uri = logged(tracking, folder)
    assert logged(tracking, folder) == uri
    (model,) = client.search_logged_models([tracking.experiment_id])
    assert (model.model_uri, model.name, model.status.value) == (uri, "best-mae", "READY")
    assert model.tags.items() >= {"arm": "mae", "budget": "2"}.items()
    outputs = client.get_run(tracking.parent_run_id).outputs.model_outputs
    assert [output.model_id for output in outputs] == [model.model_id]
    other = logged(tracking, model_folder(tmp_path / "other", seed=1))
    assert other != uri and len(client.search_logged_models([tracking.experiment_id])) == 2


def test_the_same_weights_get_no_second_version_and_the_alias_moves(tracking: Tracking, tmp_path: Path) -> None:
    name = f"seg-{tmp_path.name}"
    first = logged(tracking, model_folder(tmp_path / "model"))
    uri = f"models:/{name}/1"
    for _ in range(2):
        assert register(tracking.uri, first, name, GOOD) == (uri, uri, GOOD)
    second = logged(tracking, model_folder(tmp_path / "other", seed=1))
    assert register(tracking.uri, second, name, GOOD) == (f"models:/{name}/2", f"models:/{name}/2", GOOD)
    client = MlflowClient(tracking.uri)
    assert str(client.get_model_version_by_alias(name, "champion").version) == "2"
    elsewhere = MlflowTracker(tracking.uri, tracking.experiment_id, "a rerun").run_id
    again = log_model(tracking.uri, elsewhere, tmp_path / "model", "best-mae")
    assert again != first and register(tracking.uri, again, name, GOOD, "baseline").version == f"models:/{name}/1"
    assert str(client.get_model_version_by_alias(name, "baseline").version) == "1"
    assert len(client.search_model_versions(f"name = '{name}'")) == 2
    (version,) = [v for v in client.search_model_versions(f"name = '{name}'") if str(v.version) == "1"]
    assert version.tags[module.WEIGHTS_TAG] == load_model(tmp_path / "model")[1].weights_sha256


@pytest.mark.parametrize(
    ("newer", "moves", "remark"),
    [
        (Claim(4, 0.8), True, "as good"),
        (Claim(4, 0.7999999), False, "worse"),
        (Claim(2, 0.99), False, "better, from fewer persons"),
        (Claim(12, 0.1), True, "from more persons; 12 is more than 4 as a number"),
    ],
)
@EVERY_STORE
def test_the_alias_moves_to_what_is_at_least_as_good(
    tracking: Tracking, tmp_path: Path, newer: Claim, moves: bool, remark: str
) -> None:
    name, client = f"seg-{tmp_path.name}", MlflowClient(tracking.uri)
    register(tracking.uri, logged(tracking, model_folder(tmp_path / "model")), name, GOOD)
    second = logged(tracking, model_folder(tmp_path / "other", seed=1))
    holder = f"models:/{name}/{2 if moves else 1}"
    assert register(tracking.uri, second, name, newer) == (f"models:/{name}/2", holder, newer if moves else GOOD), (
        remark
    )
    assert f"models:/{name}/{client.get_model_version_by_alias(name, 'champion').version}" == holder


def test_a_holder_that_has_nothing_to_show_yields(tracking: Tracking, tmp_path: Path) -> None:
    name, client = f"seg-{tmp_path.name}", MlflowClient(tracking.uri)
    client.create_registered_model(name)
    client.create_model_version(name, str(tmp_path))
    client.set_registered_model_alias(name, "champion", "1")
    model = logged(tracking, model_folder(tmp_path / "model"))
    assert register(tracking.uri, model, name, GOOD).holder == f"models:/{name}/2"


@pytest.mark.runs
@pytest.mark.timeout(1000)
def test_the_example_of_the_guide_runs(tracking: Tracking, tmp_path: Path) -> None:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(image_CXYZ()[0], AFFINE_4X4), tmp_path / "scan.nii.gz")
    folder = model_folder(tmp_path / "model")
    register(tracking.uri, logged(tracking, folder), "maetrain-Hippocampus", GOOD)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    env = {**os.environ, "MLFLOW_TRACKING_URI": tracking.uri}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env, timeout=900)
    got = nibabel.load(tmp_path / "segmentation.nii.gz")
    assert np.array_equal(np.asarray(got.dataobj), wanted_XYZ(folder)) and np.allclose(got.affine, AFFINE_4X4)
    asked = json.loads((tmp_path / "volume.json").read_text())["inputs"]
    assert np.array_equal(np.float32(asked["image"]), image_CXYZ()) and set(asked) == {"image", "affine"}
