"""The command line. Thin: each verb reads its arguments and calls the piece of the pipeline of the same name."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of libraries, in all our processes

import click

from data_shards.errors import InputError
from maetrain.train.wishes import Stopped

# absolute, because Ray's workers may stand in another folder
PATH = click.Path(path_type=Path, resolve_path=True)
FOLDER = click.Path(path_type=Path, resolve_path=True, file_okay=False)
FILE = click.Path(path_type=Path, resolve_path=True, dir_okay=False)
# what a disk may say no to; any other OSError is our own mistake and keeps its traceback
ENVIRONMENT = (errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EDQUOT)


class Place(click.ParamType):
    """A folder of this machine, made absolute, or of a bucket (s3://bucket/folder)."""

    name = "place"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from data_shards.formats.files import location

        place = location(value)
        return place if "://" in str(value) else place.resolve()


PLACE = Place()
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


def examples(*lines: str) -> str:
    """An epilog of commands, one a line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def recipe_and_overrides(recipe: str | None, overrides: tuple[str, ...], default: str) -> tuple[str, tuple[str, ...]]:
    """The recipe may be left out: then the first word is already an override."""
    if recipe is None:
        return default, overrides
    return (default, (recipe, *overrides)) if "=" in recipe else (recipe, overrides)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="maetrain")
def cli() -> None:
    """Masked-autoencoder pretraining of nnFormer on 3-D medical images, and what it buys at few labels.

    Scans become shards, shards pretrain an encoder, the encoder is finetuned at several label budgets, and one
    report compares it with training from scratch.
    """


@cli.command(
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
@click.option("--address", help="Ray cluster to join; without it, Ray starts on this machine.")
def demo(recipe: str | None, overrides: tuple[str, ...], data: Path | None, out: Path, address: str | None) -> None:
    """The main job from end to end. RECIPE: `demo` without --data, else `small`.

    What was finished before is kept; a changed setting redoes what depends on it, and says so.
    """
    from cluster.demo import run_demo
    from maetrain.recipes.load import load_recipe

    name, rest = recipe_and_overrides(recipe, overrides, "small" if data else "demo")
    run_demo(load_recipe(name, rest), data, out, address)


@cli.group()
def shards() -> None:
    """Build, verify and look at shards."""


@shards.command(
    "build",
    epilog=examples(
        "maetrain shards build scans/ shards/ --format zarr",
        "MAETRAIN_SALT=... maetrain shards build dicom/ s3://bucket/shards --format webdataset",
        "maetrain shards build scans/ shards/ shards.encoding.dtype=int16 shards.preprocess.spacing_mm=[1,1,1]",
    ),
)
@click.argument("source", type=PATH)
@click.argument("out", type=PLACE)
@OVERRIDES
@click.option("--format", "format_", type=click.Choice(["zarr", "webdataset"]), help="Default: the recipe's.")
@click.option("--recipe", default="small", show_default=True, help="Recipe whose `shards` settings are used.")
@click.option("--address", help="Ray cluster to join; without it, Ray starts on this machine.")
def shards_build(
    source: Path, out: Path, overrides: tuple[str, ...], format_: str | None, recipe: str, address: str | None
) -> None:
    """Turn the archive SOURCE into shards and an index in OUT, a folder or s3://bucket/folder.

    SOURCE is in MSD, nnU-Net or BIDS layout, or any tree of NIfTI, NRRD, MHA and DICOM. Scans that can't be used go to
    the index's quarantine list with their reason; above shards.max_quarantined_share the build fails. A build that was
    stopped goes on, and one whose archive has grown adds to what is there.
    """
    from cluster.shards import run_build_verb
    from maetrain.recipes.load import load_recipe

    config = load_recipe(recipe, overrides).shards
    if format_:
        config = config.model_copy(update={"format": format_})
    run_build_verb(source, out, config, address)


@shards.command("verify", epilog=examples("maetrain shards verify shards/ --deep"))
@click.argument("folder", type=PLACE)
@click.option("--deep", is_flag=True, help="Decode every sample, too.")
def shards_verify(folder: Path, deep: bool) -> None:
    """Check sizes and hashes of all shards in FOLDER; exit 1 and name what is damaged."""
    from cluster.console import say
    from data_shards.verify import verify

    damages = verify(folder, deep)
    for damage in damages:
        say(f"damaged: {damage.shard}{f', {damage.case}' if damage.case else ''}: {damage.reason}")
    if damages:
        say("remove the files named here and run `maetrain shards build` again: it makes what is missing")
        sys.exit(1)
    say(f"{folder}: all shards are whole")


@shards.command("show", epilog=examples("maetrain shards show shards/ --sheet sheet.png"))
@click.argument("folder", type=PLACE)
@click.option("--sheet", type=FILE, help="Write a PNG of middle slices there.")
def shards_show(folder: Path, sheet: Path | None) -> None:
    """Print the table of contents of the shards in FOLDER."""
    from cluster.console import say, show_table
    from data_shards.contact_sheet import contact_sheet, describe
    from data_shards.formats.index import ShardIndex

    index = ShardIndex.load(folder)
    show_table(f"{index.name}, {index.format}", describe(index))
    if sheet:
        contact_sheet(index, sheet)
        say(f"contact sheet: {sheet}")


@cli.command(
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
@click.option("--address", help="Ray cluster to join; without it, Ray starts on this machine.")
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
    from cluster.verbs import run_pretrain_verb
    from data_shards.formats.files import absolute
    from maetrain.recipes.load import load_recipe

    how = {"fork": None if fork is None else absolute(fork), "profile": profile}
    run_pretrain_verb(load_recipe(recipe, overrides), shards_dir, out, address, tracking_uri, how, setup_only)


@cli.command(
    epilog=examples("maetrain sweep small --shards shards/ --data scans/ --handover runs/mae/handover --out sweep/")
)
@click.argument("recipe")
@OVERRIDES
@click.option("--shards", "shards_dir", type=PLACE, required=True, help="Folder of a shard index with labels.")
@click.option("--data", type=PATH, required=True, help="The archive the shards come from; test scans are read there.")
@click.option("--handover", type=PATH, help="Encoder for the arm `mae`; needed where the recipe has that arm.")
@click.option("--out", type=FOLDER, required=True, help="Folder of jobs and report.")
@click.option("--address", help="Ray cluster to join; without it, Ray starts on this machine.")
@click.option("--tracking-uri", help="MLflow store. Default: sqlite in OUT.")
def sweep(
    recipe: str,
    overrides: tuple[str, ...],
    shards_dir: Path,
    data: Path,
    handover: Path | None,
    out: Path,
    address: str | None,
    tracking_uri: str | None,
) -> None:
    """Finetune at every budget, arm and seed, score on the test persons, and write the report.

    Finished jobs are kept when the command is run again.
    """
    from cluster.verbs import run_sweep_verb
    from maetrain.recipes.load import load_recipe

    run_sweep_verb(load_recipe(recipe, overrides), shards_dir, data, handover, out, address, tracking_uri)


@cli.command(epilog=examples("maetrain evaluate out/jobs/JOB/model scans/ --out scores.csv"))
@click.argument("model", type=PATH)
@click.argument("archive", type=PATH)
@click.option("--out", type=FILE, required=True, help="CSV of scores, one row per case and class.")
@click.option("--subjects", help="Comma-separated persons to score; default: all labelled ones.")
@click.option(
    "--tolerance-mm", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Tolerance of surface Dice."
)
def evaluate(model: Path, archive: Path, out: Path, subjects: str | None, tolerance_mm: float) -> None:
    """Score the finetuned MODEL on labelled cases of ARCHIVE, in the scans' own grid and spacing."""
    from cluster.verbs import run_evaluate_verb

    run_evaluate_verb(model, archive, out, subjects.split(",") if subjects else None, tolerance_mm)


@cli.command(epilog=examples("maetrain predict out/jobs/JOB/model scan.nii.gz segmentation.nii.gz"))
@click.argument("model", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.argument("out", type=PATH)
def predict(model: Path, images: tuple[Path, ...], out: Path) -> None:
    """Segment a NIfTI image with a finetuned MODEL; OUT gets its grid and affine.

    IMAGES: one file, or one per channel in the order of the model's channel_names.
    """
    from cluster.console import say
    from maetrain.evaluate.model_folder import load_model
    from maetrain.evaluate.predict import predict_file

    network, contract = load_model(model)
    predict_file(network, images, out, contract.preprocess, contract.window_DHW)
    classes = ", ".join(f"{value} {name}" for value, name in enumerate(contract.class_names))
    say(f"{out}: {classes}")


@cli.command(epilog=examples("maetrain report out/"))
@click.argument("folder", type=PATH)
def report(folder: Path) -> None:
    """Write FOLDER/report anew from the scores and inputs of an earlier demo or sweep."""
    from cluster.verbs import run_report_verb

    run_report_verb(folder)


@cli.command(epilog=examples("maetrain export runs/mae encoder/"))
@click.argument("run", type=PATH)
@click.argument("out", type=PATH)
def export(run: Path, out: Path) -> None:
    """Write the encoder of a pretraining RUN (its newest checkpoint, or one named) to OUT.

    encoder.safetensors holds the weights, contract.json what they are.
    """
    from cluster.console import say
    from maetrain.train.export import export_encoder

    handover = export_encoder(run, out)
    say(f"{out}: encoder after {handover.step} steps, {len(handover.key_map)} tensors, {handover.weights_sha256[:12]}")


@cli.group()
def config() -> None:
    """Look at recipes and settings."""


@config.command("show", epilog=examples("maetrain config show small", "maetrain config show demo pretrain.steps=400"))
@click.argument("recipe")
@OVERRIDES
def config_show(recipe: str, overrides: tuple[str, ...]) -> None:
    """Print the full configuration that RECIPE and overrides resolve to, with meaning and unit of each setting."""
    from maetrain.recipes.load import explained, load_recipe

    click.echo(explained(load_recipe(recipe, overrides)), nl=False)


@config.command("list", epilog=examples("maetrain config list"))
def config_list() -> None:
    """List the shipped recipes."""
    from maetrain.recipes.load import purpose, recipe_names

    for name in recipe_names():
        click.echo(f"{name:<10} {purpose(name)}")


def _fail(message: str) -> None:
    click.echo(f"maetrain: {' '.join(message.split())}", err=True)
    sys.exit(2)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2, an interrupt is 130."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        _fail(f"{error.format_message()} (see maetrain --help)")
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        _fail(f"{error.filename or 'file'}: {error.strerror}; make room or give another folder")
    except Stopped as stopped:
        click.echo(f"maetrain: {stopped}", err=True)
        sys.exit(128 + stopped.signal_number)
    except (click.Abort, KeyboardInterrupt):
        click.echo("maetrain: stopped; the same command goes on from here", err=True)
        sys.exit(130)
