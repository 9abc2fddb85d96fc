"""The command line. Thin: each verb reads its arguments and calls the piece of the pipeline of the same name."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of libraries, in all our processes

import click

from cluster.mlflow_verbs import mlflow
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
    from cluster.pretrain_verb import run_pretrain_verb
    from data_shards.formats.files import absolute
    from maetrain.recipes.load import load_recipe

    how = {"fork": None if fork is None else absolute(fork), "profile": profile}
    run_pretrain_verb(load_recipe(recipe, overrides), shards_dir, out, address, tracking_uri, how, setup_only)


@cli.command(
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
@click.option("--address", help="Ray cluster to join; without it, Ray starts on this machine.")
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

    if resume:
        if recipe or shards_dir or data or handovers or elsewhere:
            raise click.UsageError("--resume takes the order from OUT; give --out, and --address or --tracking-uri")
        order = SweepOrder.load(out)
    elif not (recipe and shards_dir and data):
        raise click.UsageError("give RECIPE, --shards and --data, or --resume for a sweep that is in OUT already")
    else:
        order = SweepOrder(
            config=load_recipe(recipe, overrides),
            shards=str(shards_dir),
            data=data.resolve(),
            handovers=named_handovers(handovers, out),
            elsewhere=named_folder("--elsewhere", elsewhere),
        )
    run_sweep_verb(order, out, address, tracking_uri)


@cli.command(
    epilog=examples(
        "maetrain evaluate out/jobs/JOB/model scans/ --out scores.csv",
        "maetrain evaluate --predictions nnunet/predicted scans/ scores.csv --arm nnunet --budget 8 --seed 1",
    )
)
@click.argument("paths", type=PATH, nargs=-1, required=True, metavar="[MODEL] ARCHIVE [OUT]")
@click.option("--out", type=FILE, help="CSV of scores, one row per case and class; or OUT as the last argument.")
@click.option("--predictions", type=FOLDER, help="Score the NIfTI files in this folder instead of a MODEL.")
@click.option("--arm", help="What the table calls these predictions; needed with --predictions.")
@click.option("--budget", type=click.IntRange(min=1), help="Labelled persons they learnt from. Default: 1.")
@click.option("--seed", type=int, help="Seed of their training. Default: 0.")
@click.option("--subjects", help="Comma-separated persons to score; default: all labelled ones.")
@click.option(
    "--tolerance-mm", type=click.FloatRange(min=0), default=1.0, show_default=True, help="Tolerance of surface Dice."
)
def evaluate(
    paths: tuple[Path, ...],
    out: Path | None,
    predictions: Path | None,
    arm: str | None,
    budget: int | None,
    seed: int | None,
    subjects: str | None,
    tolerance_mm: float,
) -> None:
    """Score the finetuned MODEL on labelled cases of ARCHIVE, in the scans' own grid and spacing.

    With --predictions, score segmentations that any program has written: one file a case, called as the case
    (NAME.nii.gz) and in the grid of its label.
    """
    from cluster.score_verbs import run_evaluate_verb, run_predictions_verb

    named = paths if out is None else (*paths, out)
    persons = subjects.split(",") if subjects else None
    if predictions is not None:
        if len(named) != 2 or not arm:
            raise click.UsageError("--predictions FOLDER needs ARCHIVE, OUT and --arm NAME, and no MODEL")
        job = (1 if budget is None else budget, arm, 0 if seed is None else seed)
        run_predictions_verb(predictions, *named, persons, tolerance_mm, job)
        return
    if len(named) != 3:
        raise click.UsageError("give MODEL ARCHIVE --out OUT, or --predictions FOLDER ARCHIVE OUT --arm NAME")
    if arm is not None or budget is not None or seed is not None:
        raise click.UsageError("--arm, --budget and --seed go with --predictions; a MODEL knows its own")
    run_evaluate_verb(*named, persons, tolerance_mm)


@cli.command(
    epilog=examples(
        "maetrain predict out/jobs/JOB/model scan.nii.gz segmentation.nii.gz",
        "maetrain predict out/jobs/JOB/model t1.nii.gz flair.nii.gz segmentation.nii.gz",
        "maetrain predict out/jobs/JOB/model scans/ segmentations/ --skip-existing",
        "maetrain predict out/jobs/JOB/model scans/ segmentations/ --overlap 0.75 --mirror D --mirror H",
    )
)
@click.argument("model", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.argument("out", type=PATH)
@click.option(
    "--overlap",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.5,
    show_default=True,
    help="Share of a window that the next one covers again; more is slower and smoother.",
)
@click.option(
    "--windows-at-once",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Windows in one pass of the network: more for a GPU, fewer where memory is short.",
)
@click.option(
    "--mirror",
    type=click.Choice(["D", "H", "W"]),
    multiple=True,
    help="Average over flips along this axis, too (D up-down, H front-back, W left-right); twice the time each. "
    "W is wrong where left and right are different classes.",
)
@click.option("--skip-existing", is_flag=True, help="Keep segmentations that this model and these settings have made.")
def predict(
    model: Path,
    images: tuple[Path, ...],
    out: Path,
    overlap: float,
    windows_at_once: int,
    mirror: tuple[str, ...],
    skip_existing: bool,
) -> None:
    """Segment scans with a finetuned MODEL; each segmentation gets its scan's grid and affine.

    IMAGES: one file, or one per channel in the order of the model's channel_names, and OUT a NIfTI file. Or a folder
    of scans (nnU-Net's case_0000, case_0001 are channels of one case; of an MSD archive, its imagesTs), and OUT a
    folder: a scan that can't be segmented is told at the end, with exit code 1. Uses a GPU where there is one.
    """
    from cluster.predict import run_predict_verb
    from maetrain.evaluate.sliding import Sliding

    how = Sliding(overlap, windows_at_once, tuple("DHW".index(axis) for axis in sorted(set(mirror))))
    if failed := run_predict_verb(model, images, out, how, skip_existing):
        for error in failed:
            click.echo(f"maetrain: {error}", err=True)
        sys.exit(1)


@cli.command(epilog=examples("maetrain report out/", "maetrain report docs/results/NAME --out report/ --arm mae"))
@click.argument("folder", type=PATH)
@click.option("--out", type=FOLDER, help="Where to write. Default: FOLDER/report.")
@click.option("--arm", help="The arm the report is about. Default: mae, or the first beside scratch.")
def report(folder: Path, out: Path | None, arm: str | None) -> None:
    """Write the report anew from FOLDER/scores.csv, or FOLDER/report/scores.csv as a sweep leaves it.

    Beside it may lie inputs.json (configuration, provenance, pictures), curves.csv (validation curves), and
    elsewhere/NAME.csv (scores of the same models on cases from another scanner or study).
    """
    from cluster.score_verbs import run_report_verb

    run_report_verb(folder, out, arm)


@cli.command(epilog=examples("maetrain export runs/mae encoder/"))
@click.argument("run", type=PATH)
@click.argument("out", type=PATH)
def export(run: Path, out: Path) -> None:
    """Write the encoder of a pretraining RUN (its newest checkpoint, or one named) to OUT.

    encoder.safetensors holds the weights, contract.json what they are and must be fed, nnformer_encoder.py the network
    for programs that have torch but not maetrain (docs/examples/load_encoder.py).
    """
    from cluster.console import say
    from maetrain.train.export import export_encoder

    handover = export_encoder(run, out)
    say(f"{out}: encoder after {handover.step} steps, {len(handover.key_map)} tensors, {handover.weights_sha256[:12]}")


@cli.command("export-onnx", epilog=examples("maetrain export-onnx out/jobs/JOB/model segmentation.onnx"))
@click.argument("model", type=PATH)
@click.argument("out", type=FILE)
def export_onnx_verb(model: Path, out: Path) -> None:
    """Write a finetuned MODEL as ONNX: a batch of windows in, logits of full resolution out.

    Class names, channels, window and preprocessing are in the file's metadata. The file is run by onnxruntime beside
    torch before it is there.
    """
    from cluster.console import say
    from maetrain.evaluate.onnx_export import export_onnx

    difference = export_onnx(model, out)
    say(f"{out}: logits differ from torch's by {difference:.1e} at most")


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


cli.add_command(mlflow)


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
