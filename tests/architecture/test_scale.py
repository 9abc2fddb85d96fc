"""The plan for many GPUs: formulas against hand computed values and limits, and the page against the script."""

import math
import re
from pathlib import Path

import pytest

from benchmarks import scale_constants as c
from benchmarks import scale_failures as failures
from benchmarks import scale_model as model
from benchmarks import scale_storage as storage
from benchmarks.scale import MARKER, blocks, filled
from benchmarks.scale_counts import CROP_DHW, Counts, count
from benchmarks.scale_limits import counted, memory, needs
from benchmarks.scale_manifest import cut, network, runs_of_ranks, synapse_manifest
from cluster import progress
from data_shards.formats.encoding import Encoding
from maetrain.checkpoint.fragments import RunReader
from maetrain.models.sizes import CONFIGS
from maetrain.train import engine
from maetrain.train.config import PretrainConfig

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scale.md"
# 100 M parameters, one TFLOP a step, no launches to speak of
COUNTS = Counts(100_000_000, 0.3e12, 1e12, 1, 1e9)


@pytest.fixture(scope="module")
def tables() -> dict[str, str]:
    return blocks()


def test_the_page_has_what_the_script_says(tables: dict[str, str]) -> None:
    page = PAGE.read_text()
    assert filled(page, tables) == page, "python -m benchmarks.scale --write docs/scale.md"
    assert MARKER.findall(page) == list(tables), "every table, once and in order"


def test_an_altered_figure_of_the_page_is_noticed(tables: dict[str, str]) -> None:
    page = PAGE.read_text()
    altered = page.replace("| 8 | 1 | 0.24 |", "| 8 | 1 | 0.25 |")
    assert altered != page and filled(altered, tables) == page


def test_the_text_of_the_page_has_no_figures_of_its_own() -> None:
    text = MARKER.sub("", PAGE.read_text())
    text = re.sub(r"```.*?```|`[^`]*`|\((?:19|20)\d\d\)|, 2017|ZeRO [123](?: and [123])?", "", text, flags=re.DOTALL)
    text = re.sub(r"bf16|fp32|Fp32|Llama 3|decision 0015|\"before 0015\"|^\d\. ", "", text, flags=re.MULTILINE)
    assert re.findall(r".*\d.*", text) == []


def test_the_network_is_the_one_that_is_trained() -> None:
    small, twice, again = counted(1, False), counted(2, False), counted(2, True)
    assert small.parameters == twice.parameters == 120_130_212
    assert twice.flops == pytest.approx(2 * small.flops, rel=1e-3)
    # a quarter of 153.4 G multiply-adds of the dense encoder is most of the forward pass (docs of the variant)
    assert small.forward_flops / 2 == pytest.approx(153.4e9 / 4, rel=0.03)
    assert 2.9 < small.flops / small.forward_flops < 3.0
    assert again.flops == pytest.approx(twice.flops + twice.forward_flops, rel=0.15) and again.flops > twice.flops
    assert again.saved_bytes < twice.saved_bytes / 4


def test_counting_twice_gives_the_same() -> None:
    assert count(1, False) == counted(1, False)


def test_one_gpu_communicates_nothing() -> None:
    assert model.sent_bytes(100, 1, 2) == model.gather_s(1e9, 1, 1e9) == model.all_reduce_s(1e9, 1, 1e9) == 0
    alone = model.step(COUNTS, 1)
    assert alone.comm_s == alone.wait_s == 0
    assert model.broadcast_s(1e9, 9, 1, 1e9) == 0
    assert failures.slowest_of(1, 0.1, 10, 0) == 1


@pytest.mark.parametrize(
    ("stage", "gpus", "bytes_"),
    [
        (0, 2, 2e8),  # 200 MB of bf16 gradients, half of them there and back
        (1, 2, 3e8),
        (2, 4, 4.5e8),
        (3, 4, 4.5e8),
    ],
)
def test_bytes_that_a_gpu_sends(stage: int, gpus: int, bytes_: float) -> None:
    assert model.sent_bytes(100_000_000, gpus, stage) == pytest.approx(bytes_)


def test_an_all_reduce_by_hand() -> None:
    # 8 GPUs of a node: twice 7/8 of 360 MB at 0.8 x 450 GB/s, and 14 hops
    assert model.all_reduce_s(360e6, 8, 400e9) == pytest.approx(2 * 7 / 8 * 1e-3 + 14 * c.HOP_S)
    # and 2 nodes at 0.8 x 400 GB/s: half there, half back, a hop each
    across_s = 360e6 / 320e9 + 2 * c.HOP_S
    assert model.all_reduce_s(360e6, 16, 400e9) == pytest.approx(2 * 7 / 8 * 1e-3 + 14 * c.HOP_S + across_s)
    # on 128 nodes the tree's 14 hops beat the ring's 254
    assert model.all_reduce_s(8, 1024, 400e9) == pytest.approx((14 + 14) * c.HOP_S, rel=1e-3)


def test_a_step_by_hand() -> None:
    one = model.step(COUNTS, 1, mfu=0.5, kernel_s=0)
    assert one.compute_s == pytest.approx(1e12 / 0.5 / 989e12) and one.total_s == one.compute_s + one.tell_s
    assert one.tell_s == pytest.approx(c.METRICS_S + 5 * one.compute_s * c.POST_S), "five messages a second"
    assert model.step(COUNTS, 1, mfu=1e-6).tell_s == c.METRICS_S + c.POST_S, "one a step, not more"
    eager = model.step(COUNTS._replace(kernels=1000), 1, mfu=0.5, kernel_s=1e-5)
    assert eager.local_s == pytest.approx(0.01), "the CPU is slower than the GPU"
    one_bucket = model.step(COUNTS, 64, bucket_elements=10**9)
    whole_s = model.all_reduce_s(2e8, 64, c.FAST_NET_BYTES_PER_S) + model.gather_s(2e8, 64, c.FAST_NET_BYTES_PER_S)
    assert one_bucket.comm_s == pytest.approx(whole_s), "one bucket hides nothing"
    assert model.step(COUNTS, 64).comm_s < one_bucket.comm_s


def test_memory_is_that_of_the_counted_network() -> None:
    shared, parameters = memory(8, 2), counted(2, False).parameters
    assert shared.parameters == parameters
    held = (shared.weights, shared.gradients, shared.optimizer)
    assert held == pytest.approx((2 * parameters, 2 * parameters / 8, 12 * parameters / 8), abs=50)
    # counted in two ways: kept for the backward pass, and the most at a time, with what that pass makes itself
    assert counted(2, False).saved_bytes <= shared.activations < 1.15 * counted(2, False).saved_bytes


def test_chunks_of_a_crop_by_trying_all_places() -> None:
    def touched(side: int) -> float:
        return sum((start + side - 1) // 32 - start // 32 + 1 for start in range(32)) / 32

    assert model.chunks_of_crop() == pytest.approx(touched(64) * touched(128) ** 2)


def test_a_group_is_cut_in_equal_parts() -> None:
    # 11 elements and 1 of padding on 2 ranks
    assert cut([("a", 4), ("b", 5), ("c", 2)], 2) == [
        [("a", 0, 4), ("b", 0, 2)],
        [("b", 2, 5), ("c", 0, 2)],
    ]
    assert cut([("a", 3)], 4) == [[("a", 0, 2)], [("a", 2, 3)], [], []], "more ranks than there is to share"


@pytest.mark.parametrize("ranks", [1, 8, 64, 1024])
def test_the_runs_of_all_ranks_are_the_network(ranks: int) -> None:
    manifest = synapse_manifest(ranks, 3)
    RunReader(Path("nowhere"), manifest)  # raises where an element is missing or twice
    assert len(manifest.files) == len(runs_of_ranks(ranks)) == ranks
    held = [sum(stop - start for _, start, stop in mine) for mine in runs_of_ranks(ranks)]
    assert sum(held) == sum(parameter.numel() for parameter in network().values()) == 120_130_212


def test_resume_by_hand() -> None:
    size = storage.Size(120_130_212, 1024, 1000)
    parts = storage.resume_s(size)
    hashed = 12 * 120_130_212 + size.curve_bytes
    assert parts["first rank hashes all"] == pytest.approx(hashed / 1.224e9 + hashed / 12.5e9 + 1026 / 20_000)
    assert parts["first rank reads the curve"] == pytest.approx(1000 * c.CURVE_LINES_S + 2 * size.curve_bytes / 12.5e9)
    small = storage.resume_s(size._replace(gpus=8))
    assert small["first rank hashes all"] == pytest.approx(parts["first rank hashes all"], rel=0.05), "not by size"
    assert storage.bucket_s(size) == pytest.approx(2 * 1026 * 0.15)


def test_a_curve_costs_by_its_steps() -> None:
    none, long = storage.Size(120_130_212, 8, 0), storage.Size(120_130_212, 8, 1e6)
    assert storage.stall_s(none) == storage.stall_s(long), "nobody waits for it"
    assert storage.store_s(long)["curve and manifest"] > storage.store_s(none)["curve and manifest"] + 0.4
    assert storage.resume_s(none)["first rank reads the curve"] == 0
    assert storage.resume_s(long)["first rank reads the curve"] > 1e6 * c.CURVE_LINES_S


def test_checkpoints_of_all_sizes_have_the_same_state() -> None:
    small, large = storage.Size(100_000_000, 8, 0), storage.Size(100_000_000, 1024, 0)
    assert small.state_bytes == large.state_bytes == 1.2e9
    assert storage.store_s(small)["hash"] == pytest.approx(1.2e9 / 8 / c.HASH_BYTES_PER_S)
    assert storage.store_s(large)["remove the old one"] == pytest.approx(1026 * c.REMOVE_S)
    assert storage.stall_s(small)["copy"] == pytest.approx(0.15e9 / 25e9 + 0.15e9 / c.FRESH_COPY_BYTES_PER_S)
    assert storage.stall_s(storage.Size(100, 1, 0))["files' descriptions"] == 0


def test_before_0015_all_waited_and_every_rank_read_all() -> None:
    size = storage.Size(120_130_212, 1024, 48_828)
    before = storage.before_0015(size)
    assert before.save_s > 50 * sum(storage.stall_s(size).values())
    assert before.resume_s > 1024 * size.state_bytes / c.STORAGE_BYTES_PER_S + 1024**2 / c.OPENS_PER_S
    assert before.resume_s > 10 * sum(storage.resume_s(size).values())


def test_constants_of_the_code_are_the_codes() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    assert DeepSpeedZeroConfig().reduce_bucket_size == c.DEEPSPEED_BUCKET_ELEMENTS
    assert c.BUCKET_ELEMENTS == engine.BUCKET_ELEMENTS == 2**24, "the page's table says 2^24"
    assert PretrainConfig().checkpoint_every == c.CHECKPOINT_EVERY
    assert 1 / progress._BAR_EVERY_S == c.MESSAGES_PER_S
    assert Encoding.model_fields["max_chunk"].default == model.CHUNK
    assert all(side % stride == 0 for side, stride in zip(CROP_DHW, CONFIGS["synapse"](1).total_stride, strict=True))
    assert 4 * len(("weight", *engine.MOMENTS)) == c.STATE_BYTES


def test_failures_add_up_over_gpus_and_nodes() -> None:
    assert 86400 / model.mtbf_s(16384, False) == pytest.approx(419 / 54)
    assert 3600 / model.mtbf_s(1024, True) == pytest.approx(128 * 0.05, rel=0.01)
    assert model.mtbf_s(8, False) == pytest.approx(2 * model.mtbf_s(16, False))


def test_young_by_hand_and_daly_near_it_where_saving_is_short() -> None:
    assert failures.young_interval_s(50, 10_000) == 1000
    assert failures.daly_interval_s(1e-3, 1e6) == pytest.approx(failures.young_interval_s(1e-3, 1e6), rel=1e-3)
    assert failures.daly_interval_s(300, 100) == 100, "saving takes longer than a failure away"


@pytest.mark.parametrize("mtbf_s", [500.0, 5_000.0, 500_000.0])
def test_dalys_interval_loses_least(mtbf_s: float) -> None:
    best_s = failures.daly_interval_s(10, mtbf_s)
    lost = [failures.lost_share(best_s * factor, 10, 60, mtbf_s) for factor in (0.5, 1, 2)]
    assert min(lost) == lost[1]


def test_lost_time_in_the_limits() -> None:
    never = failures.lost_share(90, 10, 60, 1e12)
    assert never == pytest.approx(0.1, rel=1e-3), "without failures the saving is lost"
    exact, first = (f(2000, 10, 60, 1e6) for f in (failures.lost_share, failures.lost_share_first_order))
    assert exact == pytest.approx(first, rel=0.02)
    assert failures.lost_share(1000, 10, 3000, 100) > 0.999999, "a restart that is never done"


@pytest.mark.parametrize(
    ("interval_s", "save_s", "restart_s", "mtbf_s"),
    [
        (1000, 5, 100, 200_000),  # many checkpoints between failures
        (50, 2.5, 150, 560),  # preemptible, 128 nodes
        (400, 1, 20, 300),  # most intervals fail
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_simulation_agrees_with_the_formula(
    interval_s: float, save_s: float, restart_s: float, mtbf_s: float, seed: int
) -> None:
    simulated = failures.simulated_lost_share(interval_s, save_s, restart_s, mtbf_s, 40_000, seed)
    assert simulated == pytest.approx(failures.lost_share(interval_s, save_s, restart_s, mtbf_s), rel=0.03)


def test_the_slowest_of_many() -> None:
    # mean of the larger of two normal values: 1 / sqrt(pi) deviations
    assert failures.slowest_of(2, 0.1, 100_000, 0) == pytest.approx(1 + 0.1 / math.sqrt(math.pi), abs=1e-3)
    assert failures.slowest_of(1024, 0.1, 500, 0) == pytest.approx(1 + 0.1 * 3.25, rel=0.01)


def test_limits_grow_with_the_group() -> None:
    small, large = ({need.what: need.ratio for need in needs(n, 0)} for n in (8, 1024))
    for what in ("reading from the shared file system", "requests to one bucket prefix", "global batch"):
        assert large[what] > 50 * small[what]
    assert large["curve in a checkpoint against the state"] < small["curve in a checkpoint against the state"]
    assert large["GPU memory, ZeRO 2"] < small["GPU memory, ZeRO 2"]


def test_every_constant_says_where_it_is_from() -> None:
    assert {constant.kind for constant in c.TABLE} == {"measured", "document", "assumed"}
    assert all(constant.source and constant.value > 0 for constant in c.TABLE)
    results = "\n".join(path.read_text() for path in (ROOT / "benchmarks" / "results").glob("*.md"))
    # shown as they are in the files
    figures = (
        "314.6",
        "45.44",
        "70.54",
        "1.184",
        "0.757 (0.677-0.786)",
    )
    assert all(figure in results for figure in figures)
    second_run = results.split("second run: as in decision 0015")[1]
    ours = [constant for constant in c.TABLE if constant.source.startswith("scale.md")]
    assert len(ours) == 13
    for constant in ours:
        assert f"{constant.value:.4g} (" in second_run, constant
