"""The command of a job as the shell on the cluster reads it, and the name the job gets.

Whoever holds the cluster's token can read a job's command, metadata and environment, and they stay in Ray's tables
after the job. So no secret is in any of them: a job finds secrets on the cluster, in the environment of the head or in
a file there, and its command holds their names only.
"""

import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

from data_shards.errors import InputError
from maetrain.tracking.uri import without_secrets

SENT_BY = "MAETRAIN_SENT_BY"
_SECRET = re.compile(
    r"PASSW|PASSPHRASE|SECRET|TOKEN|CREDENTIAL|SALT|APIKEY|(^|_)(KEY|PWD|SAS|(PG)?PASS)(_|$)", re.IGNORECASE
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# taken as it stands: what a shell would make of a password in it is another word, or a command
_READ_VARIABLES = (
    'while IFS= read -r line || [ -n "$line" ]; do case "$line" in ""|"#"*) ;; [A-Za-z_]*=*) export "$line" ;; '
    "*) echo maetrain: --env-file {file}: a line is no NAME=VALUE >&2; exit 2 ;; esac; done < {file}"
)
_NOT_THERE = "is set neither in the environment of the head nor in --env-file"


def check_words(words: Sequence[str]) -> None:
    """InputError for a password in the words of a command."""
    for word in words:
        if (shown := without_secrets(word)) != word:
            raise InputError(
                f"{shown}: a password in a job's command can be read by everybody who reaches the cluster; leave it "
                "out, set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (PGPASSWORD for PostgreSQL) on the "
                "cluster and name them with --cluster-env, or give --env-file"
            )


def passed_on(names: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables `names` of this machine. InputError for one that is not set, and for what looks like a secret."""
    found = {}
    for name in names:
        if name not in environment:
            raise InputError(f"--env {name}: not set here; export it, or name one of the cluster's with --cluster-env")
        if looks_like_a_secret(name) or without_secrets(environment[name]) != environment[name]:
            raise InputError(
                f"--env {name}: this looks like a secret, and Ray shows a job's environment to everybody who reaches "
                f"the cluster; set it there and give --cluster-env {name}, or a file there with --env-file"
            )
        found[name] = environment[name]
    return found


def looks_like_a_secret(name: str) -> bool:
    """Whether a variable or a file of that name is likely to hold one."""
    return _SECRET.search(re.sub(r"[^A-Za-z0-9]", "_", name)) is not None


def shell_command(words: Sequence[str], cluster_env: Sequence[str] = (), env_file: str | None = None) -> str:
    """For POSIX sh. Ends at once where a variable of `cluster_env` is not set there or `env_file` can't be read."""
    steps = []
    if env_file:
        file = shlex.quote(env_file)
        steps += [f"[ -r {file} ] || {{ echo maetrain: --env-file {file} cannot be read on the head >&2; exit 2; }}"]
        steps += [_READ_VARIABLES.format(file=file)]
    for name in cluster_env:
        if not _VARIABLE.fullmatch(name):
            raise InputError(f"--cluster-env {name.partition('=')[0]}: give the name of a variable, not its value")
        steps.append(f': "${{{name}:?{_NOT_THERE}}}"')
    command = shlex.join(words)
    return "; ".join([*steps, f"exec {command}"]) if steps else command


def run_name(out: str) -> str:
    """What jobs with this --out are called: its last folder, in characters that every tool takes."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", posixpath.basename(same_place(out))).strip("-.") or "run"


def next_id(name: str, taken: Iterable[str]) -> str:
    """NAME-1, NAME-2, ...: one above the highest that is taken."""
    numbers = [int(found[1]) for id_ in taken if (found := re.fullmatch(rf"{re.escape(name)}-(\d+)", id_))]
    return f"{name}-{max(numbers, default=0) + 1}"


def same_place(place: str) -> str:
    """One spelling of a folder or bucket."""
    return place.rstrip("/") if "://" in place else posixpath.normpath(place)


def out_of(command: str) -> str | None:
    """The --out of a job that was not submitted by us."""
    try:
        words = shlex.split(command)
    except ValueError:  # an open quotation: not one of our commands
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == "--out":
            return same_place(following)
        if word.startswith("--out="):
            return same_place(word.removeprefix("--out="))
    return None


def check_sender(environment: Mapping[str, str]) -> None:
    """In the job: InputError where another version submitted it. Settings may mean something else there."""
    sent_by = environment.get(SENT_BY)
    if sent_by and sent_by != (here := version("maetrain")):
        raise InputError(
            f"submitted by maetrain {sent_by}, the cluster has {here}: install the same version on both, or send the "
            "source along with --working-dir"
        )
