"""What a trained model is for: `maetrain predict`, `export` and `export-onnx`."""

import sys
from pathlib import Path

import click

from cluster.arguments import FILE, PATH, examples


@click.command(
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


@click.command(epilog=examples("maetrain export runs/mae encoder/"))
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


@click.command("export-onnx", epilog=examples("maetrain export-onnx out/jobs/JOB/model segmentation.onnx"))
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
