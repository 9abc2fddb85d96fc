"""A finetuned network on disk: safetensors and a JSON contract, enough to segment a file with.

model/model.safetensors
model/model.json
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from data_shards.errors import InputError
from data_shards.formats.files import write_text
from data_shards.labels import PLAIN, LabelMeaning, Labels
from data_shards.preprocess import PreprocessConfig
from maetrain.checkpoint.commit import read_model, sha256_file
from maetrain.models.config import NNFormerConfig
from maetrain.models.segmentation import NNFormer

WEIGHTS, CONTRACT = "model.safetensors", "model.json"


class ModelContract(BaseModel):
    """What the weights are and what they must be fed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    architecture: NNFormerConfig
    class_names: tuple[str, ...] = Field(description="position = label value; 0 is the background")
    meaning: LabelMeaning = Field(PLAIN, description="regions and the ignore value, where there are some")
    channel_names: tuple[str, ...]
    window_DHW: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(
        description="sliding window of inference, voxels along D, H, W"
    )
    preprocess: PreprocessConfig
    trained_on: tuple[str, ...] = Field(
        (), description="hashes of the voxels of the labelled scans it learnt from or was chosen by"
    )
    made_by: dict[str, str] = Field(default_factory=dict, description="budget, arm, seed and the like")
    weights_sha256: str = ""

    @model_validator(mode="after")
    def _names_its_job(self) -> Self:
        _ = self.job
        return self

    @property
    def job(self) -> tuple[int, str, int]:
        """Budget, arm and seed for a table of scores, where it doesn't know them 1, model and 0."""
        return int(self.made_by.get("budget", 1)), self.made_by.get("arm", "model"), int(self.made_by.get("seed", 0))

    @property
    def labels(self) -> Labels:
        return Labels(self.class_names, self.meaning)


def save_model(folder: Path, network: nn.Module, contract: ModelContract) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}, folder / WEIGHTS)
    contract = contract.model_copy(update={"weights_sha256": sha256_file(folder / WEIGHTS)})
    write_text(folder / CONTRACT, contract.model_dump_json(indent=1))


def load_model(folder: Path) -> tuple[NNFormer, ModelContract]:
    """The network in eval mode and its contract. InputError names what is missing or altered."""
    path = folder / CONTRACT
    if not path.is_file():
        raise InputError(f"{folder}: no model there ({CONTRACT} is missing); give the `model` folder of a finetune job")
    try:
        contract = read_model(path, ModelContract)
    except ValueError as error:
        raise InputError(f"{path}: not a model contract: {error}; copy the folder again") from None
    if not (folder / WEIGHTS).is_file() or sha256_file(folder / WEIGHTS) != contract.weights_sha256:
        raise InputError(f"{folder / WEIGHTS}: missing, or not the file that {CONTRACT} speaks of; copy both again")
    network = NNFormer(contract.architecture, contract.labels.num_outputs)
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{folder / WEIGHTS}: not the weights that {CONTRACT} speaks of ({why})") from None
    return network.eval(), contract
