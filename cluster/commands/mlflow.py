"""`maetrain mlflow up`, `down`, `status`: an MLflow server for one machine."""

import os
import sys
from pathlib import Path

import click

from cluster.arguments import FILE, FOLDER, PORT, examples

_FOLDER = click.argument("folder", type=FOLDER, default="mlflow-server", metavar="[FOLDER]")


@click.group()
def mlflow() -> None:
    """Start and stop an MLflow server on this machine."""


@mlflow.command(
    epilog=examples(
        "maetrain mlflow up",
        "maetrain mlflow up --store sqlite:///out/mlflow.db",
        "maetrain mlflow up tracking/ --store postgresql://mlflow@db/mlflow --artifacts s3://bucket/mlflow --detach",
        "maetrain mlflow up tracking/ --host 0.0.0.0 --allowed-hosts box.lab --auth --password-file admin-password",
    )
)
@_FOLDER
@click.option(
    "--store",
    metavar="URI",
    envvar="MLFLOW_BACKEND_STORE_URI",
    show_envvar=True,
    help="sqlite:///FILE or postgresql://USER@HOST/NAME. Default: sqlite in FOLDER.",
)
@click.option("--artifacts", metavar="PLACE", help="A folder, or s3://BUCKET/FOLDER. Default: artifacts in FOLDER.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=PORT, default=5000, show_default=True)
@click.option(
    "--allowed-hosts", metavar="NAME,...", default="", help="Names under which other machines, or a proxy, ask for it."
)
@click.option("--auth", is_flag=True, help="Ask for a login. The first start makes the account --admin.")
@click.option("--admin", default="admin", show_default=True, help="Name of that account.")
@click.option("--password-file", type=FILE, help="Its password, 12 characters or more; or MLFLOW_AUTH_ADMIN_PASSWORD.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Processes that answer.")
@click.option("--detach", is_flag=True, help="Return when the server answers; `maetrain mlflow down` ends it.")
def up(
    folder: Path,
    store: str | None,
    artifacts: str | None,
    host: str,
    port: int,
    allowed_hosts: str,
    auth: bool,
    admin: str,
    password_file: Path | None,
    workers: int,
    detach: bool,
) -> None:
    """Start MLflow's server on this machine and print its address; Ctrl-C ends it, and all its processes.

    FOLDER (default: mlflow-server) holds its log, and the runs, their files and the accounts that have no other place.
    """
    from cluster.console import say
    from cluster.mlflow_plan import PASSWORD, ServerPlan, check_plan
    from cluster.mlflow_process import LOG, attend, find, signals_as_interrupt, start
    from data_shards.errors import InputError
    from maetrain.tracking.uri import absolute_store

    if password_file and not auth:
        raise click.UsageError("--password-file goes with --auth")
    if (other := find(folder)) is not None:
        raise InputError(f"{folder}: its MLflow server runs already, at {other.uri}; `maetrain mlflow down` ends it")
    plan = ServerPlan(
        folder=folder,
        store=absolute_store(store or f"sqlite:///{folder / 'mlflow.db'}"),
        artifacts=_place(artifacts) if artifacts else str(folder / "artifacts"),
        host=host,
        port=port,
        names=tuple(name.strip() for name in allowed_hosts.split(",") if name.strip()),
        workers=workers,
        admin=admin if auth else None,
    )
    password = _read(password_file) if password_file else os.environ.get(PASSWORD)
    check_plan(plan, password)
    if auth and password and plan.accounts.exists():
        say(f"{plan.accounts} is there already: an account in it keeps its password")
    with signals_as_interrupt():
        running = start(plan, password)
        say(f"MLflow: {running.uri}  (log: {folder / LOG})")
        for uri in [running.uri, *plan.uris_elsewhere]:
            say(f"  --tracking-uri {uri}")
        if auth:
            say("  with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment")
        if detach:
            say(f"`maetrain mlflow down {folder}` ends it")
        else:
            say("Ctrl-C ends it")
            attend(running, folder)


@mlflow.command(epilog=examples("maetrain mlflow down"))
@_FOLDER
def down(folder: Path) -> None:
    """End the server of FOLDER with all its processes; runs and accounts stay."""
    from cluster.console import say
    from cluster.mlflow_process import end, find

    running = find(folder)
    if running is None:
        say(f"{folder}: no MLflow server runs")
        return
    end(running, folder)
    say(f"{folder}: its MLflow server has ended")


@mlflow.command(epilog=examples("maetrain mlflow status"))
@_FOLDER
def status(folder: Path) -> None:
    """Say whether the server of FOLDER runs and answers; exit 1 if it does not."""
    from cluster.console import say
    from cluster.mlflow_process import find

    running = find(folder)
    if running is None:
        say(f"{folder}: no MLflow server runs")
    else:
        say(f"{folder}: MLflow {'answers' if running.answers else 'runs, but does not answer,'} at {running.uri}")
    if running is None or not running.answers:
        sys.exit(1)


def _place(artifacts: str) -> str:
    return artifacts if "://" in artifacts else str(Path(artifacts).resolve())


def _read(password_file: Path) -> str:
    from data_shards.errors import InputError

    try:
        return password_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", "no text")
        raise InputError(f"--password-file {password_file}: can't be read ({why}); give a file with one word") from None
