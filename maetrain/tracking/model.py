"""The best model of an arm in MLflow: logged to its run, and registered under a name with an alias.

The logged model holds the weights (safetensors), their contract (JSON) and the name of the module that loads them, no
pickle; `maetrain.evaluate.serve` does the work and must be installed where it is served. Its signature is two named
tensors, image float32 (C, X, Y, Z) and affine float64 (4, 4), and one answer, uint8 (X, Y, Z). See docs/serving.md.

Everything here can be called again: a model with the same weights is logged once a run and registered once a name.
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from mlflow import pyfunc
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from maetrain.tracking.patience import patiently

LOADER = "maetrain.evaluate.serve"
CONTRACT = "model.json"
WEIGHTS_TAG = "maetrain.weights_sha256"
CLAIM_TAGS = ("maetrain.budget", "maetrain.dice")  # Dice of the kept weights, never on test persons
REQUIREMENTS = ("maetrain", "mlflow", "monai", "numpy", "safetensors", "torch")


def log_model(tracking_uri: str, run_id: str, folder: Path, name: str) -> str:
    """Logs the `model` folder of a finetune job to its run; the model's URI, models:/m-...

    `name` is what the run's page calls it. The contract's `made_by` (budget, arm, seed) becomes tags.
    """
    contract = json.loads((folder / CONTRACT).read_text())
    client = patiently(MlflowClient, tracking_uri)
    tags = {**contract["made_by"], WEIGHTS_TAG: contract["weights_sha256"]}
    return patiently(_log_model, client, run_id, folder, name, tags, len(contract["channel_names"]))


def _log_model(
    client: MlflowClient, run_id: str, folder: Path, name: str, tags: dict[str, str], num_channels: int
) -> str:
    run = client.get_run(run_id)
    for model in _models_of(client, run.info.experiment_id, run_id):
        if model.tags.get(WEIGHTS_TAG) == tags[WEIGHTS_TAG]:
            if model.status == LoggedModelStatus.READY:
                return model.model_uri
            client.delete_logged_model(model.model_id)  # an earlier try broke off
    model = client.create_logged_model(run.info.experiment_id, name, run_id, tags, model_type="segmentation")
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary) / "model"
        pyfunc.save_model(
            local,
            loader_module=LOADER,
            data_path=str(folder),
            mlflow_model=Model(artifact_path=model.artifact_location, run_id=run_id, model_id=model.model_id),
            signature=_signature(num_channels),
            input_example=_example(num_channels),
            pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in REQUIREMENTS],
        )
        client.log_model_artifacts(model.model_id, str(local))
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return model.model_uri


class Claim(NamedTuple):
    """What a model has to show for an alias: a larger budget wins, at the same one the Dice."""

    budget: int
    dice: float

    def __str__(self) -> str:
        return f"Dice {self.dice:.3f} at {self.budget}"


class Registered(NamedTuple):
    """Versions as models:/NAME/NUMBER: the model's own, and the alias's holder with its claim."""

    version: str
    holder: str
    claim: Claim


def register(tracking_uri: str, model_uri: str, name: str, claim: Claim, alias: str = "champion") -> Registered:
    """Registers a logged model under `name` and gives it the alias unless a better one holds it.

    Weights that have a version there already get no second one. A holder without a claim, from elsewhere, yields.
    """
    client = patiently(MlflowClient, tracking_uri)
    number = patiently(_version, client, model_uri, name)
    for tag, value in zip(CLAIM_TAGS, claim, strict=True):
        patiently(client.set_model_version_tag, name, number, tag, str(value))
    holder, held = patiently(_holder, client, name, alias) or (number, claim)
    if claim >= held:
        patiently(client.set_registered_model_alias, name, alias, number)
        holder, held = number, claim
    return Registered(f"models:/{name}/{number}", f"models:/{name}/{holder}", held)


def _holder(client: MlflowClient, name: str, alias: str) -> tuple[str, Claim] | None:
    number = client.get_registered_model(name).aliases.get(alias)
    tags = client.get_model_version(name, number).tags if number else {}
    if not {*CLAIM_TAGS} <= {*tags}:
        return None
    budget, dice = (tags[tag] for tag in CLAIM_TAGS)
    return str(number), Claim(int(budget), float(dice))


def _version(client: MlflowClient, model_uri: str, name: str) -> str:
    model = client.get_logged_model(model_uri.removeprefix("models:/"))
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tag = {WEIGHTS_TAG: model.tags[WEIGHTS_TAG]}
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.tags.items() >= tag.items():
            return str(known.version)
    # a models:/ URI would be looked up in the process's global store, which need not be this one
    source, run_id = model.artifact_location, model.source_run_id
    made = client.create_model_version(name, source, run_id, tag, model_id=model.model_id)
    return str(made.version)


def _models_of(client: MlflowClient, experiment_id: str, run_id: str) -> list[LoggedModel]:
    return list(client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"))


def _signature(num_channels: int) -> ModelSignature:
    return ModelSignature(
        Schema(
            [
                TensorSpec(np.dtype("float32"), (num_channels, -1, -1, -1), "image"),
                TensorSpec(np.dtype("float64"), (4, 4), "affine"),
            ]
        ),
        Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1))]),
    )


def _example(num_channels: int) -> dict[str, np.ndarray]:
    """Shows the form, as JSON among the artifacts; too small to segment anything."""
    voxels_CXYZ = np.arange(num_channels * 8, dtype=np.float32).reshape(num_channels, 2, 2, 2)
    return {"image": voxels_CXYZ, "affine": np.eye(4)}
