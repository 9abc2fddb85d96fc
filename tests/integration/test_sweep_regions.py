"""A sweep on scans of two channels with overlapping regions and unannotated voxels, scored on another study as well."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import nibabel as nib
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from cluster.session import Resources
from cluster.store import EXPERIMENT, own_store
from data_shards.build import BuildConfig, build
from data_shards.synthetic import SyntheticConfig, draw_scan

from .settings import TINY

pytestmark = pytest.mark.runs

REGIONS = {"whole": (1, 2, 3), "core": (2, 3), "tip": (3,)}
IGNORE = 4
SETTINGS = ("sweep.arms=[scratch,random-mae]", "sweep.budgets=[1,2]", "sweep.seeds=[0]", "finetune.steps=80")


def write_study(root: Path, persons: int, seed: int) -> Path:
    """BraTS's way of saying things: nnU-Net's layout, values that make up regions; the outermost rows unannotated."""
    config = SyntheticConfig(num_subjects=persons, shape_XYZ=(24, 28, 20), num_classes=4, seed=seed)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for person in range(persons):
        image_XYZ, label_XYZ = draw_scan(config, person, 0)
        other_XYZ, _ = draw_scan(config, person, 1)
        label_XYZ[:2] = IGNORE
        files = {f"imagesTr/p{person}_0000": image_XYZ, f"imagesTr/p{person}_0001": other_XYZ.max() - other_XYZ}
        for name, data_XYZ in (files | {f"labelsTr/p{person}": label_XYZ}).items():
            nib.save(nib.Nifti1Image(data_XYZ, np.diag([1.0, 1.0, 1.5, 1.0])), root / f"{name}.nii.gz")
    labels = {"background": 0} | {name: list(values) for name, values in REGIONS.items()} | {"ignore": IGNORE}
    header = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "regions_class_order": [1, 2, 3]}
    about = {"numTraining": persons, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(header | about))
    return root


def scores(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def command(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    from cluster import cli

    monkeypatch.setattr(sys, "argv", ["maetrain", *map(str, words)])
    cli.main()


@pytest.fixture
def global_store_after() -> Iterator[None]:
    yield
    mlflow.set_tracking_uri("")


def test_regions_are_trained_and_scored_here_and_elsewhere(
    tmp_path: Path, ray_resources: Resources, monkeypatch: pytest.MonkeyPatch, global_store_after: None
) -> None:
    own, other = write_study(tmp_path / "own", 10, seed=0), write_study(tmp_path / "other", 3, seed=5)
    for path in [*other.glob("*/p*")]:  # other persons under other names
        path.rename(path.with_name(path.name.replace("p", "q", 1)))
    index = build(own, tmp_path / "shards", BuildConfig(format="zarr"))
    out = tmp_path / "out"
    places = ("--shards", index.root, "--data", own, "--elsewhere", f"oslo={other}", "--out", out)
    command(monkeypatch, "sweep", "demo", *TINY, *SETTINGS, *places)

    here, there = scores(out / "report" / "scores.csv"), scores(out / "elsewhere" / "oslo.csv")
    for rows in (here, there):
        assert {row["class"] for row in rows} == {*REGIONS}
        assert {(row["budget"], row["arm"]) for row in rows} == {
            (b, a) for b in "12" for a in ("scratch", "random-mae")
        }
    assert {row["subject"] for row in there} == {"q0", "q1", "q2"}
    assert not {row["subject"] for row in here} & {row["subject"] for row in there}

    (job,) = (out / "jobs").glob("budget-002-scratch-seed-0*")
    command(monkeypatch, "predict", job / "model", other / "imagesTr", tmp_path / "predicted")
    found = {(row["case"], row["class"]): float(row["dice"]) for row in scores(job / "elsewhere" / "oslo.csv")}
    assert found == {
        (row["case"], row["class"]): float(row["dice"])
        for row in there
        if (row["budget"], row["arm"]) == ("2", "scratch")
    }
    assert max(found.values()) > 0.1, "it segments something"
    for (case, region), dice in found.items():
        predicted = np.asarray(nib.load(tmp_path / "predicted" / f"{case}.nii.gz").dataobj)
        label = np.asarray(nib.load(other / "labelsTr" / f"{case}.nii.gz").dataobj)
        is_known = label != IGNORE
        p, t = np.isin(predicted, REGIONS[region]) & is_known, np.isin(label, REGIONS[region])
        assert dice == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()), abs=1e-6)

    client = MlflowClient(own_store(out))
    (experiment,) = [found for found in client.search_experiments() if found.name == EXPERIMENT]
    models = client.search_logged_models([experiment.experiment_id])
    assert {model.name for model in models} == {"scratch", "random-mae"}, "the best of each arm"
    mlflow.set_tracking_uri(own_store(out))
    served = mlflow.pyfunc.load_model("models:/maetrain-own@champion")
    aliases = client.get_registered_model("maetrain-own").aliases
    assert {*aliases} == {"champion", "best-scratch", "best-random-mae"}
    champion = client.get_model_version("maetrain-own", aliases["champion"])
    (best,) = [model for model in models if model.artifact_location == champion.source]
    (job,) = (out / "jobs").glob(f"budget-002-{best.name}-seed-0*")
    files = [other / "imagesTr" / f"q1_000{channel}.nii.gz" for channel in (0, 1)]
    command(monkeypatch, "predict", job / "model", *files, tmp_path / "q1.nii.gz")
    image_CXYZ = np.stack([np.asarray(nib.load(file).dataobj, dtype=np.float32) for file in files])
    got = served.predict({"image": image_CXYZ, "affine": nib.load(files[0]).affine})
    assert np.array_equal(got, np.asarray(nib.load(tmp_path / "q1.nii.gz").dataobj))

    page = (out / "report" / "index.html").read_text()
    assert "oslo" in page and all(region in page for region in REGIONS)
