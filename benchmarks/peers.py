"""Networks of others from scratch, on a sweep's own persons, crops, steps, loss and test persons.

    python -m benchmarks.peers RECIPE --shards SHARDS --data ARCHIVE --out FOLDER --budget 4 --budget 32 [key=value ...]

MONAI's SwinUNETR (feature size 24) and UNet (five levels of 32 to 512 channels, residual), each trained by our own
finetune loop at the recipe's settings for random weights. One process, one job after the other; the same command goes
on where it was stopped. Leaves FOLDER/scores.csv in the columns of `maetrain`'s.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets import SwinUNETR, UNet
from torch import Tensor, nn

from benchmarks.ordered import order_parser, ordered, score_jobs
from data_shards.loading.labelled import LabelledScans
from data_shards.order.streams import stream_seed
from maetrain.evaluate.metrics import CaseScore
from maetrain.evaluate.test_set import score_scans
from maetrain.finetune.config import FinetuneJob
from maetrain.finetune.train import fit
from maetrain.finetune.validation import hold_out
from maetrain.recipes.load import load_recipe
from maetrain.train.group import alone

PEERS = ("swinunetr", "unet")
MULTIPLE = 32  # SwinUNETR halves its input five times


class Peer(nn.Module):
    """As our network is called: any size in, a list with one scale out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, volume_BCDHW: Tensor) -> list[Tensor]:
        d, h, w = volume_BCDHW.shape[2:]
        after = [x for n in (w, h, d) for x in (0, -n % MULTIPLE)]
        padded = F.pad(volume_BCDHW, after, value=float(volume_BCDHW.min()))
        return [self.network(padded)[..., :d, :h, :w]]


def build(name: str, channels: int, outputs: int) -> Peer:
    if name == "swinunetr":
        return Peer(SwinUNETR(in_channels=channels, out_channels=outputs, feature_size=24))
    return Peer(UNet(3, channels, outputs, channels=(32, 64, 128, 256, 512), strides=(2, 2, 2, 2), num_res_units=2))


def main(words: Sequence[str] | None = None) -> None:
    parser = order_parser(__doc__)
    parser.add_argument("--budget", type=int, action="append", required=True, help="one of the sweep's; again for more")
    parser.add_argument("--only", choices=PEERS, help="default: both")
    arguments = parser.parse_intermixed_args(words)
    config = load_recipe(arguments.recipe, arguments.overrides)
    comparison = ordered(config, arguments, {name: [] for name in ([arguments.only] if arguments.only else PEERS)})
    protocol, labels, scans = comparison.protocol(), comparison.index.labels, LabelledScans(comparison.index)

    def scored(job: FinetuneJob) -> list[CaseScore]:
        torch.manual_seed(stream_seed(job.seed, "finetune-init"))
        network = build(job.arm, len(protocol.channel_names), labels.num_outputs)
        groups = [{"params": list(network.parameters()), "rate_scale": 1.0}]
        cases = [case for subject in job.subjects for case in scans.of(subject)]
        train_cases, _ = hold_out(cases, job.subjects, config.finetune.validation_share)
        settings = config.finetune.model_copy(update={"monitor_every": config.finetune.steps})
        trained = fit(network, groups, job, settings, labels, train_cases, cases[:1], alone())
        window = config.finetune.window_DHW
        return score_scans(trained.network, protocol.test_scans, labels, window, protocol.tolerance_mm)

    score_jobs(comparison, arguments.budget, scored)


if __name__ == "__main__":
    main()
