"""The verbs that train: `maetrain demo`, `pretrain` and `sweep`."""

from collections.abc import Sequence
from pathlib import Path

import click

from cluster.arguments import ADDRESS, FILE, FOLDER, OVERRIDES, PATH, PLACE, examples, recipe_and_overrides


@click.command(
    epilog=examples(
        "maetrain demo",
        "maetrain demo --data Task04_Hippocampus --out out-real",
        "maetrain demo pretrain.steps=400",
    )
)
@click.argument("recipe", required=False)
@OVERRIDES
@click.option("--data", type=PATH, help="Archive in MSD or nnU-Net layout; without it, synthetic scans are drawn.")
@click.option("--out", type=FOLDER, default="out", show_default=True, help="Folder for everything that is made.")
@ADDRESS
def demo(recipe: str | None, overrides: tuple[str, ...], data: Path | None, out: Path, address: str | None) -> None:
    """The main job from end to end. RECIPE: `demo` without --data, else `small`.

    What was finished before is kept; a changed setting redoes what depends on it, and says so.
    """
    from cluster.demo import run_demo
    from maetrain.recipes.load import load_recipe

    name, rest = recipe_and_overrides(recipe, overrides, "small" if data else "demo")
    run_demo(load_recipe(name, rest), data, out, address)


@click.command(
    epilog=examples(
        "maetrain pretrain small --shards shards/ --out runs/mae pretrain.steps=2000",
        "maetrain pretrain small --shards shards/ --out runs/mae cluster.pretrain_workers=[1,4]",
        "maetrain pretrain small --shards shards/ --out runs/lower --fork runs/mae pretrain.learning_rate=3e-4",
    )
)
@click.argument("recipe")
@OVERRIDES
@click.option("--shards", "shards_dir", type=PLACE, required=True, help="Folder of a shard index.")
@click.option("--out", type=PLACE, required=True, help="Folder of the run, or s3://bucket/folder; a run there goes on.")
@ADDRESS
@click.option("--tracking-uri", help="MLflow store. Default: sqlite in OUT.")
@click.option("--fork", type=PLACE, help="Run or checkpoint with other settings to begin with, where OUT has none yet.")
@click.option("--profile", is_flag=True, help="Write a torch profiler trace of some steps to OUT/profile.")
@click.option("--setup-only", type=FILE, help="Write the run's setup there, for `python -m maetrain.train`, and stop.")
def pretrain(
    recipe: str,
    overrides: tuple[str, ...],
    shards_dir: Path,
    out: Path,
    address: str | None,
    tracking_uri: str | None,
    fork: Path | None,
    profile: bool,
    setup_only: Path | None,
) -> None:
    """Pretrain a masked autoencoder on shards, in a Ray Train group under DeepSpeed.

    Test and monitor persons of the recipe's split are left out where the shards have labels. The encoder is in
    OUT/handover afterwards. Whatever ends a run, the same command goes on from its newest checkpoint, also on another
    number of workers; Ctrl-C and SIGTERM store one first.
    """
    from cluster.pretrain_verb import run_pretrain_verb
    from data_shards.formats.files import absolute
    from maetrain.recipes.load import load_recipe

    how = {"fork": None if fork is None else absolute(fork), "profile": profile}
    run_pretrain_verb(load_recipe(recipe, overrides), shards_dir, out, address, tracking_uri, how, setup_only)


@click.command(
    epilog=examples(
        "maetrain sweep small --shards shards/ --data scans/ --handover runs/mae/handover --out sweep/",
        "maetrain sweep small --shards shards/ --data scans/ --handover mae=runs/a/handover "
        "--handover long=runs/b/handover --out sweep/ sweep.arms=[scratch,mae,long,random-mae]",
        "maetrain sweep --resume --out sweep/",
    )
)
@click.argument("recipe", required=False)
@OVERRIDES
@click.option("--shards", "shards_dir", type=PLACE, help="Folder of a shard index with labels.")
@click.option("--data", type=PATH, help="The archive the shards come from; test scans are read there.")
@click.option(
    "--handover",
    "handovers",
    multiple=True,
    metavar="[ARM=]FOLDER",
    help="Encoder an arm starts from, `mae` where none is named; also in a bucket. Several for one arm: its seeds take "
    "them in turn.",
)
@click.option(
    "--elsewhere",
    multiple=True,
    metavar="NAME=FOLDER",
    help="Labelled archive of another study: every model is scored on it too, and on nothing of it trained.",
)
@click.option("--out", type=FOLDER, required=True, help="Folder of jobs and report.")
@click.option("--resume", is_flag=True, help="Go on with the sweep in OUT as it was ordered; no other settings needed.")
@ADDRESS
@click.option("--tracking-uri", help="MLflow store, kept for --resume but for its password. Default: sqlite in OUT.")
def sweep(
    recipe: str | None,
    overrides: tuple[str, ...],
    shards_dir: Path | None,
    data: Path | None,
    handovers: tuple[str, ...],
    elsewhere: tuple[str, ...],
    out: Path,
    resume: bool,
    address: str | None,
    tracking_uri: str | None,
) -> None:
    """Finetune at every budget, arm and seed, score on the test persons, and write the report.

    Finished jobs are kept when the command is run again: it does what is missing, whatever ended it before.
    """
    from cluster.order import SweepOrder, named_folder, named_handovers
    from cluster.sweep_verb import run_sweep_verb
    from maetrain.recipes.load import load_recipe

    check_sweep(recipe, shards_dir, data, handovers, elsewhere, resume)
    if resume:
        order = SweepOrder.load(out)
    else:
        assert recipe and data
        order = SweepOrder(
            config=load_recipe(recipe, overrides),
            shards=str(shards_dir),
            data=data.resolve(),
            handovers=named_handovers(handovers, out),
            elsewhere=named_folder("--elsewhere", elsewhere),
        )
    run_sweep_verb(order, out, address, tracking_uri)


def check_sweep(
    recipe: str | None,
    shards_dir: Path | str | None,
    data: Path | str | None,
    handovers: Sequence[str],
    elsewhere: Sequence[str],
    resume: bool,
) -> None:
    """UsageError for less than an order, and for an order beside --resume."""
    if resume and (recipe or shards_dir or data or handovers or elsewhere):
        raise click.UsageError("--resume takes the order from OUT; give --out, and --address or --tracking-uri")
    if not resume and not (recipe and shards_dir and data):
        raise click.UsageError("give RECIPE, --shards and --data, or --resume for a sweep that is in OUT already")
