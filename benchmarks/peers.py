"""Networks of others from scratch, on a sweep's own persons, crops, steps, loss and test persons.

    python -m benchmarks.peers RECIPE --shards SHARDS --data ARCHIVE --out FOLDER --budget 4 --budget 32 \\
        [--only unet] [--learning-rate 1e-3] [key=value ...]

MONAI's SwinUNETR (feature size 24) and UNet (five levels of 32 to 512 channels, residual), each trained by our own
finetune loop at the recipe's settings for random weights, `finetune.class_prior` among them. Their windows at the test
are as large as the crops: an instance norm must meet the share of padding that it has learnt with. A sweep with
`sweep.learning_rates` has tuned its arms, so give what suits a network as `--learning-rate`. One process, one job after
the other; the same command goes on where it was stopped. Leaves FOLDER/scores.csv in the columns of `maetrain`'s: all
jobs that are done at the settings of the last call, whichever call did them. `benchmarks.nnunet` needs a folder of its
own.
"""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import SwinUNETR, UNet
from torch import Tensor, nn

from benchmarks.ordered import check_peers, ordered, peer_parser, peer_stages, score_jobs
from data_shards.errors import InputError
from data_shards.loading.labelled import LabelledScans
from data_shards.order.streams import stream_seed
from maetrain.evaluate.metrics import CaseScore
from maetrain.evaluate.test_set import score_scans
from maetrain.finetune.config import FinetuneConfig, FinetuneJob
from maetrain.finetune.prior import Head, class_shares, start_at
from maetrain.finetune.train import fit
from maetrain.recipes.load import load_recipe
from maetrain.report.material import SCORES
from maetrain.train.group import alone

# settings of each network that aren't the recipe's
PEERS: dict[str, dict[str, Any]] = {
    "swinunetr": {"feature_size": 24},
    "unet": {"channels": [32, 64, 128, 256, 512], "strides": [2, 2, 2, 2], "num_res_units": 2},
}
MULTIPLE = {"swinunetr": 32, "unet": 16}  # by what a network halves its input in all


class Peer(nn.Module):
    """As our network is called: any size in, a list with one scale out.

    What a size lacks is filled with the lowest value of the volume and channel, as crops and windows are.
    """

    def __init__(self, network: nn.Module, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    @property
    def head(self) -> Head:
        """What its logits come from."""
        return [layer for layer in self.network.modules() if isinstance(layer, Head)][-1]

    def forward(self, volume_BCDHW: Tensor) -> list[Tensor]:
        d, h, w = volume_BCDHW.shape[2:]
        after = [x for n in (w, h, d) for x in (0, -n % self.multiple)]
        lowest_BC111 = volume_BCDHW.amin((2, 3, 4), keepdim=True)
        padded = F.pad(volume_BCDHW - lowest_BC111, after) + lowest_BC111
        return [self.network(padded)[..., :d, :h, :w]]


def build(name: str, channels: int, outputs: int) -> Peer:
    shape = {"in_channels": channels, "out_channels": outputs, **PEERS[name]}
    network = SwinUNETR(**shape) if name == "swinunetr" else UNet(spatial_dims=3, **shape)
    return Peer(network, MULTIPLE[name])


def check_sizes(names: Collection[str], finetune: FinetuneConfig) -> None:
    """InputError where SwinUNETR's deepest map would be a single voxel, which instance norm can't do."""
    if "swinunetr" in names and max(finetune.crop_DHW) <= MULTIPLE["swinunetr"]:
        raise InputError(
            f"finetune.crop_DHW = {finetune.crop_DHW}: SwinUNETR needs an axis above {MULTIPLE['swinunetr']}; set it "
            "larger, or leave SwinUNETR out by --only unet"
        )


def main(words: Sequence[str] | None = None) -> None:
    parser = peer_parser(__doc__)
    parser.add_argument("--only", choices=PEERS, help="default: both")
    parser.add_argument("--learning-rate", type=float, metavar="RATE", help="peak; default: finetune.learning_rate")
    arguments = parser.parse_intermixed_args(words)
    config, names = load_recipe(arguments.recipe, arguments.overrides), [arguments.only] if arguments.only else [*PEERS]
    rate = config.finetune.learning_rate if arguments.learning_rate is None else arguments.learning_rate
    if not 0 < rate < float("inf"):
        raise InputError(f"--learning-rate {rate:g} is not a number above 0")
    check_peers(config, arguments.budget)
    check_sizes(names, config.finetune)
    comparison = ordered(config, arguments, {name: [] for name in PEERS})
    protocol, labels, scans = comparison.protocol(), comparison.index.labels, LabelledScans(comparison.index)

    def scored(job: FinetuneJob, _: Path) -> list[CaseScore]:
        torch.manual_seed(stream_seed(job.seed, "finetune-init"))
        network = build(job.arm, len(protocol.channel_names), labels.num_outputs)
        cases = [case for subject in job.subjects for case in scans.of(subject)]
        if config.finetune.class_prior:
            start_at([network.head], class_shares(cases, labels), bool(labels.meaning.regions))
        groups = [{"params": list(network.parameters()), "rate_scale": 1.0}]
        window = config.finetune.crop_DHW
        settings = config.finetune.model_copy(update={"monitor_every": config.finetune.steps, "window_DHW": window})
        trained = fit(network, groups, job, settings, labels, cases, cases[:1], alone())
        return score_scans(trained.network, protocol.test_scans, labels, window, protocol.tolerance_mm)

    stages = peer_stages(comparison, PEERS, dict.fromkeys(PEERS, rate))
    asked = [job for job in stages if job.budget in arguments.budget and job.arm in names]
    score_jobs(stages, asked, f"learning rate {rate:g}", scored, arguments.out / SCORES)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"peers: {error}")
