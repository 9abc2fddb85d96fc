"""`maetrain cluster`: machines by Ray's own launcher, or a head on this one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

from cluster.arguments import FILE, PORT, examples

_LOCAL = click.option("--local", is_flag=True, help="A head on this machine, with a token.")
_MACHINES = click.argument("file", type=FILE, required=False)


@click.group()
def cluster() -> None:
    """Start and stop a Ray cluster.

    FILE describes machines for Ray's launcher (`ray up`): those of a cloud, or any that ssh reaches
    (deploy/ray/cluster.yaml).
    """


@cluster.command("up", epilog=examples("maetrain cluster up --local", "maetrain cluster up deploy/ray/cluster.yaml"))
@_MACHINES
@_LOCAL
@click.option("--port", type=PORT, default=8265, show_default=True, help="Of the job server, with --local.")
@click.option("--ray-port", type=PORT, default=6379, show_default=True, help="Of Ray itself, with --local.")
@click.option("--cpus", type=click.IntRange(min=1), help="CPU cores to offer, with --local. Default: all.")
def cluster_up(file: Path | None, local: bool, port: int, ray_port: int, cpus: int | None) -> None:
    """Start the machines of FILE and Ray on them, or a head here; one that runs already is brought up to date."""
    if not _is_local(file, local):
        sys.exit(_ray("up", "--yes", str(file)))
    from cluster.head import start, token_path

    head = start(port, ray_port, cpus)
    click.echo(f"Ray is up. Its job server: {head.address}. To use it:")
    click.echo(f"  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token_path()} RAY_API_SERVER_ADDRESS={head.address}")
    click.echo("  maetrain submit pretrain small --shards /whole/path/shards --out /whole/path/runs/mae")
    click.echo("  maetrain cluster down --local")


@cluster.command("down", epilog=examples("maetrain cluster down --local", "maetrain cluster down cluster.yaml"))
@_MACHINES
@_LOCAL
def cluster_down(file: Path | None, local: bool) -> None:
    """Stop Ray and give the machines back. Runs go on later from what is on their storage."""
    if not _is_local(file, local):
        sys.exit(_ray("down", "--yes", str(file)))
    from cluster.head import running, stop

    if head := running():
        stop(head)
        click.echo(f"the head at {head.address} has ended")
    else:
        click.echo("no head runs here")


@cluster.command("status", epilog=examples("maetrain cluster status --local", "maetrain cluster status cluster.yaml"))
@_MACHINES
@_LOCAL
def cluster_status(file: Path | None, local: bool) -> None:
    """Nodes, what they have, and what is in use; exit 1 where none runs."""
    if not _is_local(file, local):
        sys.exit(_ray("exec", str(file), "RAY_AUTH_MODE=token ray status"))
    from cluster.head import running, token_path

    head = running()
    if head is None:
        click.echo("no head runs here; `maetrain cluster up --local` starts one")
        sys.exit(1)
    click.echo(f"job server: {head.address}")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_path())}
    sys.exit(_ray("status", f"--address=127.0.0.1:{head.gcs_port}"))


def _is_local(file: Path | None, local: bool) -> bool:
    """InputError for a file that describes no machines, UsageError where it is not clear what is meant."""
    if local == (file is not None):
        raise click.UsageError("give FILE, which describes machines (deploy/ray/cluster.yaml), or --local")
    if file is not None:
        _check(file)
    return local


def _check(file: Path) -> None:
    import yaml

    from data_shards.errors import InputError

    if not file.is_file():
        raise InputError(f"{file}: no such file; start from deploy/ray/cluster.yaml")
    try:
        described = yaml.safe_load(file.read_text())
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: not YAML: {error}") from None
    missing = [key for key in ("cluster_name", "provider", "auth") if key not in (described or {})]
    if missing:
        raise InputError(f"{file}: describes no cluster, {missing[0]} is missing; start from deploy/ray/cluster.yaml")


def _ray(*words: str) -> int:
    """Ray's own command line, as it is."""
    beside = Path(sys.executable).with_name("ray")
    program = str(beside) if beside.is_file() else shutil.which("ray") or "ray"
    env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.run([program, *words], env=env).returncode  # nosec B603 # no shell; the words are the user's own
