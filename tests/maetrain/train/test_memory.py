"""The memory known before a start is the memory a real engine and a real step then take."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from data_shards.errors import InputError
from maetrain.models.config import NNFormerConfig
from maetrain.models.mae import MaeConfig, MaskedAutoencoder
from maetrain.models.sizes import CONFIGS
from maetrain.train import memory
from maetrain.train.config import PretrainConfig
from maetrain.train.memory import (
    GIB,
    USABLE,
    activation_bytes,
    check,
    container_free_bytes,
    estimate,
    free_memory,
    states,
)

from ..small import SMALL, SMALL_MAE, noise

ENGINES: dict[str, tuple[str, dict]] = {
    "tiny-0": ("tiny", {"zero_stage": 0}),
    "tiny-1": ("tiny", {"zero_stage": 1}),
    "tiny-2": ("tiny", {"zero_stage": 2}),
    "tiny-3": ("tiny", {"zero_stage": 3}),
    "tiny-1-bf16": ("tiny", {"zero_stage": 1, "precision": "bf16"}),
    "tiny-2-offload": ("tiny", {"zero_stage": 2, "offload": True}),
    "tiny-2-offload-accumulated": ("tiny", {"zero_stage": 2, "offload": True, "global_batch": 2}),
    "small-3-bf16": ("small", {"zero_stage": 3, "precision": "bf16"}),
    "tiny-3-offload": ("tiny", {"zero_stage": 3, "offload": True}),
}

# In a process of its own: all tensors there are belong to the engine. Each line: a name, and bytes.
HOLD = """
import gc, json, sys, warnings
import torch
warnings.simplefilter("ignore")
from maetrain.models.mae import MaskedAutoencoder
from maetrain.models.sizes import CONFIGS
from maetrain.train.config import PretrainConfig
from maetrain.train.engine import BUCKET_ELEMENTS, Engine
from maetrain.train.group import joined_group

def held():
    # not the bucket: on a CPU the part of it that is never filled takes no memory
    gc.collect()
    found = [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.device.type == "cpu"]
    found += [o.grad for o in found if o.is_leaf and o.grad is not None]
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in found if t.numel() != BUCKET_ELEMENTS}
    return sum(storages.values())

with joined_group() as who:
    for name, (size, settings) in json.loads(sys.argv[1]).items():
        before, config = held(), PretrainConfig.model_validate(settings)
        engine = Engine(MaskedAutoencoder(CONFIGS[size](1), config.mae), config, who)
        for _ in range(2 * config.accumulation(1)):
            loss = engine(torch.randn(1, 1, *config.crop_DHW), torch.tensor([0])).loss
            engine.backward(loss)
            engine.step(1e-3)
        del loss
        print("held", name, held() - before)
        engine.close()
        del engine
"""


def config_of(settings: dict) -> PretrainConfig:
    return PretrainConfig(**({"crop_DHW": (16, 16, 16), "micro_batch": 1, "global_batch": 1} | settings))


@pytest.mark.runs
def test_the_states_are_what_an_engine_holds() -> None:
    cases = {n: (size, config_of(settings).model_dump(mode="json")) for n, (size, settings) in ENGINES.items()}
    run = subprocess.run(
        [sys.executable, "-c", HOLD, json.dumps(cases)], capture_output=True, text=True, timeout=200, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    held = {name: int(n) for word, name, n in (line.split() for line in run.stdout.splitlines() if "held" in line)}
    assert set(held) == set(ENGINES)
    for name, (size, settings) in ENGINES.items():
        known = estimate(CONFIGS[size](1), config_of(settings), 1, "cpu")
        # below stage 3 gradients are there during a step alone
        gradients = known.gradients if settings["zero_stage"] == 3 else 0
        said = known.weights + known.optimizer + known.offloaded + gradients
        assert said == pytest.approx(held[name], rel=0.05), name


SIZES = [
    (CONFIGS["tiny"](1), MaeConfig(mode="visible"), (32, 32, 32), torch.float32),
    (CONFIGS["tiny"](2), MaeConfig(mode="dense", ignore_flat=0.0), (32, 32, 32), torch.float32),
    (CONFIGS["tiny"](1), MaeConfig(mode="dense"), (32, 32, 32), torch.bfloat16),
    (CONFIGS["base"](1), MaeConfig(mode="visible", normalise_target=True), (32, 32, 48), torch.float32),
    (
        CONFIGS["tiny"](1).model_copy(update={"recompute": ("stem", 0, 1, 2)}),
        MaeConfig(mode="dense"),
        (32, 32, 32),
        torch.float32,
    ),
]


@pytest.mark.parametrize(
    ("model", "mae", "crop_DHW", "dtype"), SIZES, ids=["visible", "dense", "bf16", "base", "again"]
)
def test_activations_cover_what_autograd_saves_and_not_much_more(
    model: NNFormerConfig, mae: MaeConfig, crop_DHW: tuple[int, int, int], dtype: torch.dtype
) -> None:
    network = MaskedAutoencoder(model, mae).to(dtype)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    volume_BCDHW = noise(2, model.in_channels, *crop_DHW).to(dtype)
    saved: dict[int, Tensor] = {volume_BCDHW.untyped_storage().data_ptr(): volume_BCDHW}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network(volume_BCDHW, torch.tensor([1, 2]))
    really = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    counted = activation_bytes(model, mae, crop_DHW, 2, "bf16" if dtype == torch.bfloat16 else "fp32")
    # recomputed parts save nothing, and need their memory for a while in the backward pass
    assert really <= 1.01 * counted
    assert model.recompute or counted <= 1.25 * really


def test_counting_leaves_nothing_behind_that_a_real_step_would_meet() -> None:
    activation_bytes(SMALL, SMALL_MAE, (16, 16, 16), 3)
    output = MaskedAutoencoder(SMALL, SMALL_MAE)(noise(1, 1, 16, 16, 16), torch.tensor([0]))
    output.loss.backward()
    assert output.loss.device.type == "cpu" and float(output.loss.detach()) > 0


def test_recomputing_needs_less_and_a_larger_batch_in_proportion_more() -> None:
    model, mae = CONFIGS["tiny"](1), MaeConfig(mode="dense")
    plain = activation_bytes(model, mae, (32, 32, 32), 2)
    again = activation_bytes(model.model_copy(update={"recompute": ("stem", 0, 1, 2)}), mae, (32, 32, 32), 2)
    assert again < 0.7 * plain
    assert activation_bytes(model, mae, (32, 32, 32), 4) == pytest.approx(2 * plain, rel=0.1)
    assert activation_bytes(model, mae, (32, 32, 32), 2, "bf16") < 0.7 * plain


def test_the_published_network_at_its_crop_is_counted_in_seconds_and_without_memory() -> None:
    before = psutil.Process().memory_info().rss
    config = PretrainConfig(crop_DHW=(128, 128, 128), micro_batch=1, global_batch=8)
    said = estimate(CONFIGS["synapse"](1), config, 8, "cuda")
    assert said.parameters == pytest.approx(120e6, rel=0.01) and said.activations > GIB
    assert psutil.Process().memory_info().rss - before < 0.2 * GIB


@pytest.mark.parametrize(
    ("stage", "bytes_of_a_parameter"),
    [(0, 16), (1, 8 + 12 / 4), (2, 4 + 16 / 4), (3, 20 / 4)],
    ids=["all on all", "states shared", "gradients too", "weights too"],
)
def test_each_stage_shares_one_more_part(stage: int, bytes_of_a_parameter: float) -> None:
    assert states(1_000_000, 4, stage).total == bytes_of_a_parameter * 1_000_000
    assert stage == 0 or states(1_000_000, 4, stage, 2).total == pytest.approx(
        {1: 4 + 12 / 4, 2: 2 + 14 / 4, 3: 16 / 4}[stage] * 1_000_000
    )


def test_a_stage_with_more_ranks_needs_less_of_each() -> None:
    config = config_of({"global_batch": 8, "zero_stage": 2})
    two, eight = (estimate(CONFIGS["small"](1), config, ranks, "cpu") for ranks in (2, 8))
    assert eight.optimizer == pytest.approx(two.optimizer / 4, abs=16)
    assert eight.snapshot == pytest.approx(two.snapshot / 4, abs=16) and eight.weights == two.weights


def test_too_little_is_told_with_the_way_out_that_fits() -> None:
    model, everything = CONFIGS["tiny"](1), "[stem,0,1,2]"
    config = PretrainConfig(
        crop_DHW=(64, 64, 64), micro_batch=4, global_batch=32, zero_stage=1, mae=MaeConfig(mode="dense")
    )
    needed = estimate(model, config, 8, "cuda")
    check(needed, int(1.1 * needed.device_bytes), 100 * needed.host_bytes, 8)
    for changed, recompute, advice in (
        ({"zero_stage": 3}, (), "use pretrain.zero_stage=3"),
        ({"zero_stage": 3, "offload": True}, (), "use pretrain.zero_stage=3 pretrain.offload=true"),
        ({}, ("stem", 0, 1, 2), f"use model.recompute={everything}"),
        ({"micro_batch": 2}, ("stem", 0, 1, 2), f"use pretrain.micro_batch=2 model.recompute={everything}"),
    ):
        lighter = model.model_copy(update={"recompute": recompute})
        enough = estimate(lighter, config.model_copy(update=changed), 8, "cuda").device_bytes / USABLE + 1
        with pytest.raises(InputError) as error:
            check(needed, int(enough), 100 * needed.host_bytes, 8)
        assert f"{needed.device_bytes / GIB:.2f} GiB, free are {enough / GIB:.2f}" in str(error.value)
        assert "\n" not in str(error.value) and str(error.value).endswith(advice)
    with pytest.raises(InputError, match="use a smaller pretrain.crop_DHW or model"):
        check(needed, GIB // 10, 100 * needed.host_bytes, 8)


def test_what_a_message_advises_really_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = PretrainConfig(micro_batch=4, global_batch=16, crop_DHW=(64, 64, 64), mae=MaeConfig(mode="dense"))
    monkeypatch.setattr(memory, "HOST_PROCESS_BYTES", 0)
    needed = estimate(CONFIGS["tiny"](1), config, 2, "cpu")
    free = int(0.6 * 2 * needed.host_bytes)
    with pytest.raises(InputError, match=r"2 ranks on this machine need .* GiB of host memory, free are .*") as error:
        check(needed, 0, free, 2)
    words = dict(word.split("=") for word in str(error.value).rpartition("use ")[2].split())
    assert words and set(words) <= {"pretrain.zero_stage", "pretrain.micro_batch", "model.recompute"}
    again = tuple(
        int(part) if part.isdigit() else part for part in words.get("model.recompute", "[]")[1:-1].split(",") if part
    )
    lighter = config.model_copy(update={k[9:]: int(v) for k, v in words.items() if k.startswith("pretrain.")})
    check(estimate(CONFIGS["tiny"](1).model_copy(update={"recompute": again}), lighter, 2, "cpu"), 0, free, 2)


def test_free_memory_is_that_of_the_container(tmp_path: Path) -> None:
    here = tmp_path / "cgroup" / "pod" / "worker"
    here.mkdir(parents=True)
    membership = tmp_path / "membership"
    membership.write_text("0::/pod/worker\n")
    for folder, most, used, cached in ((here, "max", 3 * 10**8, 0), (here.parent, 10**9, 8 * 10**8, 10**8)):
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cached}\n")
    assert container_free_bytes(membership, tmp_path / "cgroup") == 3 * 10**8

    first = tmp_path / "v1" / "memory"
    first.mkdir(parents=True)
    membership.write_text("5:cpu,cpuacct:/x\n4:memory:/not/seen/inside\n0::/\n")
    for name, text in (("limit_in_bytes", 10**9), ("usage_in_bytes", 4 * 10**8), ("stat", "total_inactive_file 0")):
        (first / f"memory.{name}").write_text(f"{text}\n")
    assert container_free_bytes(membership, tmp_path / "v1") == 6 * 10**8
    (first / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert container_free_bytes(membership, tmp_path / "v1") is None
    assert container_free_bytes(tmp_path / "none", tmp_path) is None
    assert free_memory(torch.device("cpu"))[1] <= psutil.virtual_memory().total
