"""What the report tells besides the scores: curves, pictures, configuration, provenance. Stored as inputs.json.

The stages that ran fill it in; the report only reads it, so a report can be written again at any time without
the models, the data or the tracking server.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_shards.errors import InputError
from data_shards.formats.files import write_text


class _Model(BaseModel):
    # A diverged run has NaN losses; they must survive the way through JSON.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


def _check_lengths(steps: list[int], **values: list[float]) -> None:
    for name, numbers in values.items():
        if len(numbers) != len(steps):
            raise ValueError(f"{len(steps)} steps but {len(numbers)} values of {name}; they must pair up")
    if any(b <= a for a, b in zip(steps, steps[1:], strict=False)):
        raise ValueError("steps must rise")


Dice = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Curve(_Model):
    """Validation Dice of one finetune job against its optimizer steps."""

    budget: int = Field(description="labelled persons the job was finetuned on", ge=1)
    arm: str = Field(description="where its encoder came from: scratch, mae, random-mae", min_length=1)
    seed: int = Field(description="seed of the job")
    steps: list[int] = Field(description="optimizer steps at which it was validated, rising")
    dice: list[Dice] = Field(description="mean foreground Dice on the validation cases at each of them, 0..1")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_lengths(self.steps, dice=self.dice)
        return self


class PretrainCurve(_Model):
    """Loss and speed of the pretraining against its optimizer steps."""

    steps: list[int] = Field(default=[], description="optimizer steps, rising")
    loss: list[float] = Field(default=[], description="mean squared error on hidden voxels at each of them")
    volumes_per_s: list[float] = Field(default=[], description="crops a second over all workers; may be empty")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _check_lengths(self.steps, loss=self.loss)
        if self.volumes_per_s:
            _check_lengths(self.steps, volumes_per_s=self.volumes_per_s)
        return self


class Picture(_Model):
    """One picture file shown in the report."""

    kind: Literal["reconstruction", "overlay"] = Field(description="which section shows it")
    caption: str = Field(description="what is seen, one or two sentences; also the text for who can't see it")
    path: str = Field(description="PNG or JPEG file, relative to the folder of inputs.json")


class Quarantined(_Model):
    """One scan that could not be used."""

    case: str = Field(description="case name")
    path: str = Field(description="file, relative to the archive")
    reason: str = Field(description="why it can't be used, one line")


class Overlap(_Model):
    """Test persons found in the pretraining pool: both numbers must be 0, or the comparison is void."""

    by_person: int = Field(description="test persons whose scans are in the pretraining pool", ge=0)
    by_voxel_hash: int = Field(description="pool volumes with the same voxels as a test scan", ge=0)


class ReportInputs(_Model):
    """Everything on the page that isn't a score."""

    title: str = Field(default="What pretraining bought", description="heading of the report")
    test_subjects: int = Field(description="persons in the fixed test set", ge=0)
    pool_volumes: int | None = Field(default=None, description="volumes in the pretraining pool; null: unknown", ge=0)
    overlap: Overlap | None = Field(default=None, description="result of the overlap check; null: not checked")
    tolerance_mm: float | None = Field(default=None, description="tolerance of surface Dice, mm; null: unknown", ge=0)
    curves: list[Curve] = Field(default=[], description="one a finetune job")
    pretrain_curve: PretrainCurve = Field(default=PretrainCurve(), description="loss and speed of pretraining")
    pictures: list[Picture] = Field(default=[], description="reconstructions and overlays, in order of showing")
    config_yaml: str = Field(default="", description="the full resolved configuration")
    provenance: dict[str, str] = Field(default={}, description="commit, versions, hardware, wall times, index sha256")
    quarantined: list[Quarantined] = Field(default=[], description="scans left out, each with its reason")
    notes: list[str] = Field(default=[], description="anything a reader must know, one sentence each")

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_text(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> "ReportInputs":
        """Read inputs.json. Raises InputError naming the file and the first thing that is wrong in it."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror or error}; `maetrain sweep --resume --out FOLDER` makes it"
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "file"
            raise InputError(
                f"{path}: {field}: {first['msg']}; remove it, or `maetrain sweep --resume --out FOLDER` makes it anew"
            ) from error
