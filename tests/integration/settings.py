"""A configuration small enough that every process start, not the training, takes the time."""

from maetrain.recipes.config import RunConfig
from maetrain.recipes.load import load_recipe

TINY = (
    "model.embed_dim=8",
    "model.num_heads=[1,1,2]",
    "model.decoder_heads=[1,1]",
    "model.windows=[[2,2,2],[2,2,2],[2,2,2]]",
    "pretrain.mae.decoder_dim=24",
    "pretrain.crop_DHW=[16,16,16]",
    "pretrain.steps=6",
    "pretrain.warmup_steps=2",
    "pretrain.global_batch=4",
    "pretrain.micro_batch=2",
    "pretrain.checkpoint_every=3",
    "finetune.crop_DHW=[16,16,16]",
    "finetune.window_DHW=[40,48,40]",  # one a scan
    "finetune.steps=4",
    "finetune.monitor_every=2",
    "split.monitor_subjects=1",
    "sweep.budgets=[1,2,4]",
)


def tiny(*overrides: str) -> RunConfig:
    return load_recipe("demo", (*TINY, *overrides))
