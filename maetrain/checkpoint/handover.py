"""The encoder on its way from pretraining to finetuning, or to other programs: safetensors and a JSON contract.

handover/encoder.safetensors   weights, named as in `maetrain.models.encoder.Encoder`
handover/contract.json         what they are: architecture, geometry, intensities, origin, hashes
handover/pool.json             which scans they have seen, for the overlap check
handover/nnformer_encoder.py   the network and its preprocessing for programs without maetrain; finetuning never runs it
"""

import json
import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, RootModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_shards.errors import InputError
from data_shards.formats.files import write_text
from data_shards.preprocess import PreprocessConfig
from maetrain.checkpoint import nnformer_encoder
from maetrain.checkpoint.commit import read_model, sha256_file
from maetrain.checkpoint.encoder_input import EncoderInput, encoder_input
from maetrain.checkpoint.fingerprint import differences
from maetrain.models.config import NNFormerConfig, Triple
from maetrain.models.segmentation import NNFormer

WEIGHTS, CONTRACT, POOL, MODULE = "encoder.safetensors", "contract.json", "pool.json", "nnformer_encoder.py"
# the only encoder weight whose shape follows from the number of input channels
STEM = "encoder.stem.block1.conv1.weight"

OtherChannels = Literal["refuse", "mean", "repeat"]


class EncoderHandover(BaseModel):
    """The contract. Whoever loads the weights checks their own network and data against it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    architecture: NNFormerConfig
    crop_DHW: Triple = Field(description="voxels along D, H, W of the pretraining crops")
    preprocess: dict = Field(description="spacing and intensity settings of the shards")
    channel_names: tuple[str, ...]
    key_map: dict[str, str] = Field(description="name in the weights file -> name in the segmentation network")
    shard_index_sha256: str
    pretrain_fingerprint: str
    run: str = Field("", description="name of the pretraining run; empty = that of the folder above")
    step: int = Field(ge=0, description="optimizer steps of pretraining")
    weights_sha256: str
    pool_sha256: str = Field(description="hash of pool.json")
    input: EncoderInput | None = Field(
        None, description="what the encoder must be fed; handovers before 0018 have none"
    )
    module_sha256: str = Field("", description="hash of nnformer_encoder.py; empty = written without it")


class PoolScan(BaseModel):
    """One scan that the encoder was pretrained on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    case: str
    subject: str
    voxel_sha256: str


class Pool(RootModel[list[PoolScan]]):
    """All of them, as in the file."""


class HandoverReport(NamedTuple):
    """Names of the segmentation network that were filled, those that start anew, and weights nobody took.

    `channels` says how the input channels were brought together where their number differs, else it is empty.
    """

    matched: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    channels: str = ""

    def line(self) -> str:
        counts = f"{len(self.matched)} tensors from pretraining, {len(self.new)} new, {len(self.unused)} unused"
        return f"{counts}; {self.channels}" if self.channels else counts

    def to_json(self) -> str:
        """Every name, for the file beside a finetuned model."""
        return json.dumps(self._asdict(), indent=1)


def write_handover(
    folder: Path, encoder_weights: dict[str, Tensor], contract: dict, pool: list[PoolScan]
) -> EncoderHandover:
    """`encoder_weights`: names without the "encoder." prefix. `contract`: the fields but key map, input and hashes.

    A network with the published code's faults (`architecture.published`) goes without nnformer_encoder.py.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in encoder_weights.items()}, folder / WEIGHTS)
    write_text(folder / POOL, json.dumps([scan.model_dump() for scan in pool], indent=1))
    architecture = NNFormerConfig.model_validate(contract["architecture"])
    (folder / MODULE).unlink(missing_ok=True)
    if architecture.published == "no":
        shutil.copyfile(nnformer_encoder.__file__, folder / MODULE)
    handover = EncoderHandover(
        **contract,
        key_map={name: f"encoder.{name}" for name in sorted(encoder_weights)},
        weights_sha256=sha256_file(folder / WEIGHTS),
        pool_sha256=sha256_file(folder / POOL),
        input=encoder_input(architecture, PreprocessConfig.model_validate(contract["preprocess"])),
        module_sha256=sha256_file(folder / MODULE) if (folder / MODULE).is_file() else "",
    )
    write_text(folder / CONTRACT, handover.model_dump_json(indent=1))
    return handover


def read_handover(folder: Path) -> EncoderHandover:
    """The contract in `folder`, its files' hashes checked. InputError names what is missing or altered.

    nnformer_encoder.py may be missing, because nothing here needs it, but not be another one.
    """
    path = folder / CONTRACT
    if not path.is_file():
        raise InputError(f"{folder}: no encoder handover ({CONTRACT} is missing); make one with `maetrain export`")
    try:
        handover = read_model(path, EncoderHandover)
    except ValueError as error:
        raise InputError(f"{path}: not a handover contract: {error}; export it again") from None
    for name, sha256 in ((WEIGHTS, handover.weights_sha256), (POOL, handover.pool_sha256)):
        if not (folder / name).is_file() or sha256_file(folder / name) != sha256:
            raise InputError(f"{folder / name}: missing, or not the file the contract speaks of; export it again")
    if (folder / MODULE).is_file() and sha256_file(folder / MODULE) != handover.module_sha256:
        raise InputError(f"{folder / MODULE}: not the file the contract speaks of; remove it, or export again")
    return handover


def read_pool(folder: Path) -> list[PoolScan]:
    """The scans the encoder has seen. InputError where the list is missing, altered or garbled."""
    read_handover(folder)
    path = folder / POOL
    try:
        return read_model(path, Pool).root
    except ValueError as error:
        raise InputError(f"{path}: not a list of scans: {error}; export it again") from None


def run_of(folder: Path) -> str:
    """Name of the pretraining run that the encoder is of. Reads the contract alone, checks nothing."""
    return read_model(folder / CONTRACT, EncoderHandover).run or folder.parent.name


def made_of(folder: Path) -> str:
    """`run_of`, and how long it learnt from what, for a reader."""
    contract, crop = read_model(folder / CONTRACT, EncoderHandover), " x ".join
    pool = len(read_model(folder / POOL, Pool).root)
    return (
        f"{run_of(folder)} ({contract.step} steps of crops of {crop(map(str, contract.crop_DHW))} voxels, pool of "
        f"{pool} volumes, weights {contract.weights_sha256[:12]})"
    )


def check_fits(
    folder: Path,
    model: NNFormerConfig,
    preprocess: dict,
    channel_names: tuple[str, ...],
    other_channels: OtherChannels = "refuse",
) -> None:
    """InputError where the encoder was made for another network or other data than the ones it shall go to.

    Another number of channels fits where `other_channels` says how they are brought together. As many channels with
    other names, or in another order, never do: the weights would go to the wrong ones.
    """
    handover = read_handover(folder)
    own, given = model.encoder_settings(), handover.architecture.encoder_settings()
    own_names, given_names = list(channel_names), list(handover.channel_names)
    way_out = "use its pretraining run's, or pretrain anew"
    if given["in_channels"] != own["in_channels"]:
        if other_channels == "refuse":
            way_out += "; for another number of channels set finetune.pretrained_channels=mean or repeat"
        else:
            given_names, given["in_channels"] = own_names, own["in_channels"]
    elif given_names != own_names:
        way_out += "; where only the names differ and the contrasts are the same, rename them in its contract.json"
    changed = differences(
        {"model": given, "preprocess": handover.preprocess, "channels": given_names},
        {"model": own, "preprocess": preprocess, "channels": own_names},
    )
    if changed:
        raise InputError(f"{folder}: made for other settings ({'; '.join(changed)}); {way_out}")


def with_channels(weight_KCDHW: Tensor, channels: int, how: Literal["mean", "repeat"]) -> Tensor:
    """The stem's first weight for another number of input channels: (K, C, d, h, w) -> (K, `channels`, d, h, w).

    mean: every channel gets the mean of the pretrained ones. repeat: channel c gets the pretrained channel c mod C; of
    fewer channels, c gets all pretrained ones that are c modulo their number. Both are scaled so that one image given
    to all channels gets the response it got in pretraining.
    """
    if how not in ("mean", "repeat"):
        raise ValueError(f"channels by {how!r}: use mean or repeat")
    K, C, *kernel = weight_KCDHW.shape
    if how == "mean":
        return weight_KCDHW.sum(1, keepdim=True).expand(K, channels, *kernel) / channels
    if channels < C:
        return torch.stack([weight_KCDHW[:, c::channels].sum(1) for c in range(channels)], dim=1)
    taken_from = torch.arange(channels) % C
    shares = torch.bincount(taken_from, minlength=C)[taken_from]
    return weight_KCDHW[:, taken_from] / shares.view(1, -1, 1, 1, 1)


def load_encoder(folder: Path, network: NNFormer, other_channels: OtherChannels = "refuse") -> HandoverReport:
    """Fills the encoder of a segmentation network from a handover.

    InputError where the weights are no safetensors, where the number of input channels differs and `other_channels`
    does not say what to do, where tensors are missing that the contract promises, and where no tensor fits: then the
    two networks have nothing in common, and a "pretrained" arm would quietly be a second scratch arm.
    """
    handover = read_handover(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS}: not a safetensors file ({error}); export it again") from None
    own = network.state_dict()
    matched, unused, channels = {}, [], ""
    for source, tensor in weights.items():
        target = handover.key_map.get(source, "")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise InputError(f"{folder}: {source} holds numbers that are not finite, or no fractions; export it again")
        if target and (target in matched or not target.startswith("encoder.")):
            raise InputError(
                f"{folder}: {source} goes to {target}, which is taken or outside the encoder; export it again"
            )
        if target == STEM and STEM in own and _differ_in_channels_alone(tensor, own[STEM]):
            have, want = tensor.shape[1], own[STEM].shape[1]
            if other_channels == "refuse":
                raise InputError(
                    f"{folder}: an encoder for {have} input channels, the network has {want}: set "
                    "finetune.pretrained_channels=mean or repeat"
                )
            tensor = with_channels(tensor, want, other_channels)
            channels = f"{have} -> {want} input channels by {other_channels}"
        if target in own and own[target].shape == tensor.shape:
            matched[target] = tensor
        else:
            unused.append(source)
    if not matched:
        raise InputError(
            f"{folder}: none of its {len(weights)} tensors fits the network (widths "
            f"{[handover.architecture.width(s) for s in range(handover.architecture.num_stages)]}, "
            f"{handover.architecture.in_channels} channels); use the model settings of the pretraining run"
        )
    new = tuple(name for name in own if name not in matched)
    missing = [name for name in new if name.startswith("encoder.")]
    if missing and _same_encoder(handover.architecture, network.config):
        raise InputError(
            f"{folder}: {len(missing)} tensors of the encoder are not in it, the first is {missing[0]}, though it says "
            "that it holds this network's; export it again"
        )
    network.load_state_dict(matched, strict=False)
    return HandoverReport(tuple(sorted(matched)), new, tuple(sorted(unused)), channels)


def _same_encoder(a: NNFormerConfig, b: NNFormerConfig) -> bool:
    return a.encoder_settings() | {"in_channels": 0} == b.encoder_settings() | {"in_channels": 0}


def _differ_in_channels_alone(a_KCDHW: Tensor, b_KCDHW: Tensor) -> bool:
    a, b = a_KCDHW.shape, b_KCDHW.shape
    return len(a) == len(b) == 5 and a[1] != b[1] and (a[0], *a[2:]) == (b[0], *b[2:])
