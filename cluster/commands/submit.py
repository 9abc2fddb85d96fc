"""`maetrain submit`: the verbs that compute, with the arguments they have, as jobs of a cluster."""

import copy
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from cluster.arguments import FOLDER, JOB_SERVER, NO_BUCKET, Place, examples
from cluster.commands.shards import shards_build
from cluster.commands.train import check_sweep, pretrain, sweep


class OnCluster(click.ParamType):
    """A place on the cluster's machines, passed on as it stands.

    `is_named`: NAME= may be before it. `buckets`: it may be one.
    """

    name = "place"

    def __init__(self, is_named: bool = False, buckets: bool = False) -> None:
        self.is_named, self.buckets = is_named, buckets

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name, sign, behind = value.partition("=")
        place = behind if self.is_named and sign and "/" not in name else value
        if "://" in place:
            if not self.buckets:
                self.fail(f"{value}: {NO_BUCKET}", param, ctx)
        elif not place.startswith("/"):
            self.fail(f"{value}: paths are those of the cluster's machines; give a whole path, /...", param, ctx)
        return value


_OWN = (
    JOB_SERVER,
    click.option(
        "--env", multiple=True, metavar="NAME", help="Variable of this machine to give to the job. No secret."
    ),
    click.option("--cluster-env", multiple=True, metavar="NAME", help="Variable that must be set on the head."),
    click.option(
        "--env-file", type=OnCluster(), help="File on the cluster with NAME=VALUE lines, taken as they stand."
    ),
    click.option("--working-dir", type=FOLDER, help="Source tree to send along, without its data."),
    click.option("--follow/--no-wait", default=True, show_default=True, help="Print the log until the job ends."),
)
_NOT_THERE = ("address", "setup_only")


@click.group()
def submit() -> None:
    """Run a verb as a job of a Ray cluster; it goes on when this machine is switched off.

    All paths are those of the cluster's machines. The job is called after --out, with a number: the same command under
    the same --out goes on with the run.
    """


def _as_job(verb: str, command: click.Command, *shown: str) -> None:
    """The verb with the same arguments, those left out that a job gives itself."""
    theirs = [_on_cluster(parameter) for parameter in command.params if parameter.name not in _NOT_THERE]

    def run(**values: Any) -> None:
        from cluster.submit import Surroundings, Work
        from cluster.submit import submit as submit_work

        if command is sweep:
            check_sweep(*(values[name] for name in _ORDER))

        def words(recipe: str | None) -> list[str]:
            return [*verb.split(), *words_of(theirs, values | {"recipe": recipe})]

        work = Work(values["recipe"], values["overrides"], words, values["out"])
        around = Surroundings(values["env"], values["cluster_env"], values["env_file"], values["working_dir"])
        sys.exit(submit_work(work, around, values["address"], values["follow"]))

    for option in reversed(_OWN):
        run = option(run)
    name = verb.split()[0]
    told = f"`maetrain {verb}` as a job, with the same arguments.\n\n{inspect.cleandoc(command.help or '')}"
    job = click.command(name, help=told, epilog=examples(*shown))(run)
    job.params = [*theirs, *job.params]
    submit.add_command(job)


def _on_cluster(parameter: click.Parameter) -> click.Parameter:
    """A copy that does not look for the place on this machine."""
    theirs, shown = copy.copy(parameter), parameter.metavar or ""
    if isinstance(theirs.type, (click.Path, Place)) or "FOLDER" in shown:
        buckets = isinstance(theirs.type, Place) or theirs.name == "handovers"
        theirs.type = OnCluster(is_named="=" in shown, buckets=buckets)
    return theirs


def words_of(parameters: Sequence[click.Parameter], values: Mapping[str, Any]) -> Iterator[str]:
    """Words that a command with these parameters reads as these values: arguments first."""
    for parameter in sorted(parameters, key=lambda p: isinstance(p, click.Option)):
        value = values[parameter.name or ""]
        given = value if isinstance(value, tuple) else [value]
        for one in given:
            if one is None or one is False:
                continue
            if isinstance(parameter, click.Argument):
                yield str(one)
            else:
                yield from [parameter.opts[0]] if one is True else [parameter.opts[0], str(one)]


_ORDER = ("recipe", "shards_dir", "data", "handovers", "elsewhere", "resume")
_TO = "--address http://head:8265"
_as_job(
    "pretrain",
    pretrain,
    f"maetrain submit pretrain small --shards /shared/shards --out /shared/runs/mae {_TO}",
    f"maetrain submit pretrain mine.yaml --shards s3://bucket/shards --out s3://bucket/runs/mae {_TO} --no-wait "
    "--tracking-uri http://mlflow:5000 --cluster-env MLFLOW_TRACKING_PASSWORD",
)
_as_job(
    "sweep",
    sweep,
    "maetrain submit sweep small --shards /shared/shards --data /shared/scans --out /shared/sweep "
    f"--handover /shared/runs/mae/handover {_TO}",
    f"maetrain submit sweep --resume --out /shared/sweep {_TO}",
)
_as_job(
    "shards build",
    shards_build,
    f"maetrain submit shards /shared/scans /shared/shards --format zarr {_TO}",
)
