"""`maetrain shards`: from an archive to shards, and what can be asked of them."""

import sys
from pathlib import Path

import click

from cluster.arguments import ADDRESS, FILE, OVERRIDES, PATH, PLACE, examples


@click.group()
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
@ADDRESS
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
