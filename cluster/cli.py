"""The command line: the verbs of `cluster.commands` under one name, and what becomes of their errors."""

import errno
import os
import sys

os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of libraries, in all our processes

import click

from cluster.commands.cluster import cluster
from cluster.commands.jobs import jobs
from cluster.commands.mlflow import mlflow
from cluster.commands.models import export, export_onnx_verb, predict
from cluster.commands.score import evaluate, report
from cluster.commands.settings import config
from cluster.commands.shards import shards
from cluster.commands.submit import submit
from cluster.commands.train import demo, pretrain, sweep
from cluster.entrypoint import check_sender
from data_shards.errors import InputError
from maetrain.train.wishes import Stopped

# what a disk, or the names a user gave, may say no to; any other OSError is our own mistake and keeps its traceback
ENVIRONMENT = (
    *(errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EDQUOT),
    *(errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="maetrain")
def cli() -> None:
    """Masked-autoencoder pretraining of nnFormer on 3-D medical images, and what it buys at few labels.

    Scans become shards, shards pretrain an encoder, the encoder is finetuned at several label budgets, and one
    report compares it with training from scratch.
    """


cli.add_command(demo)
cli.add_command(shards)
cli.add_command(pretrain)
cli.add_command(sweep)
cli.add_command(evaluate)
cli.add_command(predict)
cli.add_command(report)
cli.add_command(export)
cli.add_command(export_onnx_verb)
cli.add_command(submit)
cli.add_command(jobs)
cli.add_command(cluster)
cli.add_command(config)
cli.add_command(mlflow)


def _fail(message: str) -> None:
    click.echo(f"maetrain: {' '.join(message.split())}", err=True)
    sys.exit(2)


def main() -> None:
    """Entry point: a user's mistake is one line and exit code 2, an interrupt is 130."""
    try:
        check_sender(os.environ)
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        _fail(f"{error.format_message()} (see maetrain --help)")
    except InputError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        _fail(f"{error.filename or 'file'}: {error.strerror}; make room or give another place")
    except Stopped as stopped:
        click.echo(f"maetrain: {stopped}", err=True)
        sys.exit(128 + stopped.signal_number)
    except (click.Abort, KeyboardInterrupt):
        click.echo("maetrain: stopped; the same command goes on from here", err=True)
        sys.exit(130)
