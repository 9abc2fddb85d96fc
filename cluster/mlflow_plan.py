"""What an MLflow server for one machine is started with, and all that can be known to be wrong before it is.

The server is MLflow's own, with the options that `mlflow server` has. Artifacts go through it, so that only it needs
to know the folder or the bucket. Passwords go by its environment: everybody on a machine can read arguments.
"""

import configparser
import os
import re
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from data_shards.errors import InputError
from maetrain.tracking.database import check_database

PASSWORD = "MLFLOW_AUTH_ADMIN_PASSWORD"  # nosec B105 # the name of a variable
_SECRET_KEY = "MLFLOW_FLASK_SERVER_SECRET_KEY"  # nosec B105 # the name of a variable
_KNOWN_TO_ALL = "password1234"  # the password that MLflow had by default, and refuses now
_SHORTEST = 12  # characters; MLflow's own limit
_EVERYWHERE = ("0.0.0.0", "::")  # nosec B104 # to tell it when a user asks for it
# Uvicorn kills a worker that leaves its ping unanswered for 5 s; on a busy machine MLflow's imports alone take longer
_UVICORN = "--no-access-log --timeout-worker-healthcheck 120"


@dataclass(frozen=True)
class ServerPlan:
    """`folder`: where everything of the server lies that has no other place. `artifacts`: a folder, or s3://BUCKET/FOLDER.
    `names`: under which other machines, or a proxy, ask for it. `admin`: the first account; None: no login."""

    folder: Path
    store: str
    artifacts: str
    host: str = "127.0.0.1"
    port: int = 5000
    names: tuple[str, ...] = ()
    workers: int = 2
    admin: str | None = None

    @property
    def uri(self) -> str:
        """Under which this machine reaches it."""
        return f"http://{_with_port('127.0.0.1' if self.host in _EVERYWHERE else self.host, self.port)}"

    @property
    def uris_elsewhere(self) -> list[str]:
        return [f"http://{_with_port(name, self.port)}" for name in self.names if "*" not in name]

    @property
    def is_only_here(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def accounts(self) -> Path:
        return self.folder / "accounts.db"

    def command(self) -> list[str]:
        words = [sys.executable, "-m", "mlflow", "server", "--host", self.host, "--port", str(self.port)]
        words += ["--workers", str(self.workers), "--uvicorn-opts", _UVICORN]
        words += ["--serve-artifacts", "--artifacts-destination", self.artifacts]
        if self.admin is not None:
            words += ["--app-name", "basic-auth"]
        if self.names or not self.is_only_here:
            hosts = self._hosts()
            # a page of the server's own counts as another site's unless its address is named, too
            origins = [f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")]
            words += ["--allowed-hosts", ",".join(hosts), "--cors-allowed-origins", ",".join(origins)]
        return words

    def environment(self, password: str | None) -> dict[str, str]:
        """What the server needs beside the environment of this process."""
        variables = {
            "MLFLOW_BACKEND_STORE_URI": self.store,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven processes for language models
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        if self.admin is not None:
            variables |= {
                "MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "basic_auth.ini"),
                "MLFLOW_AUTH_ADMIN_USERNAME": self.admin,
                # of forms in the browser; those that are open at a restart have to be opened again
                _SECRET_KEY: os.environ.get(_SECRET_KEY) or secrets.token_hex(32),
            }
            if password is not None:
                variables[PASSWORD] = password
        return variables

    def write_accounts_file(self) -> None:
        """What MLflow reads about logins; no password is in it."""
        settings = configparser.ConfigParser(interpolation=None)
        settings["mlflow"] = {
            "default_permission": "READ",
            "database_uri": f"sqlite:///{self.accounts}".replace("%", "%%"),
            "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        }
        with (self.folder / "basic_auth.ini").open("w") as file:
            settings.write(file)

    def _hosts(self) -> list[str]:
        """As browsers and clients say them: with the port, and without one behind a proxy."""
        own = () if self.host in _EVERYWHERE else (self.host,)
        named = [host for name in self.names for host in dict.fromkeys((name, _with_port(name, self.port)))]
        here = [_with_port(name, self.port) for name in (*own, "localhost", "127.0.0.1")]
        return list(dict.fromkeys([*named, *here]))


def _with_port(name: str, port: int) -> str:
    """HOST:PORT; a name that has a port keeps it."""
    if name.count(":") > 1 and not name.startswith("["):
        name = f"[{name}]"
    return name if ":" in name.rpartition("]")[2] else f"{name}:{port}"


def _names_a_site(name: str) -> bool:
    """Not so a pattern (MLflow takes those of a shell) without two whole labels at its end: *.example.org has them."""
    pattern = re.search(r"[*?\[]", re.sub(r"^\[[0-9a-fA-F:]+\]", "", name))
    return not pattern or re.fullmatch(r"\*\.([\w-]+\.)+[\w-]+(:[0-9*]+)?", name) is not None


def check_plan(plan: ServerPlan, password: str | None) -> None:
    """All mistakes that can be known before the server starts. Raises InputError; makes the folders."""
    for package, why in _packages(plan):
        if find_spec(package) is None:
            raise InputError(f"{why} needs the package {package}: pip install 'maetrain[server]'")
    if not plan.is_only_here:
        if plan.admin is None:
            raise InputError(
                f"--host {plan.host}: whoever reaches it could change all runs; add --auth, or leave --host out and "
                "put a proxy with a login before it"
            )
        if plan.host in _EVERYWHERE and not plan.names:
            raise InputError(
                f"--host {plan.host}: MLflow answers no name that it is not told; add --allowed-hosts NAME, as others "
                "will say it"
            )
    for name in plan.names:
        if not _names_a_site(name):
            raise InputError(f"--allowed-hosts {name}: any page in a browser could reach the runs; name the hosts")
    if plan.admin is not None and not plan.accounts.exists():
        _check_password(password)
    _check_writable(plan.folder)
    if plan.artifacts.startswith("s3://"):
        _check_bucket(plan.artifacts)
    elif "://" in plan.artifacts:
        raise InputError(f"--artifacts {plan.artifacts}: give a folder or s3://BUCKET/FOLDER")
    else:
        _check_writable(Path(plan.artifacts))
    check_database(plan.store)
    _check_port(plan)


def _packages(plan: ServerPlan) -> Iterator[tuple[str, str]]:
    if plan.admin is not None:
        yield "flask_wtf", "--auth"
    if plan.store.startswith("postgresql"):
        yield "psycopg", "--store postgresql://..."
    if plan.artifacts.startswith("s3://"):
        yield "boto3", "--artifacts s3://..."


def _check_password(password: str | None) -> None:
    if not password:
        raise InputError(
            "--auth: the first start makes the admin's account and needs a password; give --password-file, or "
            f"{PASSWORD}"
        )
    if password == _KNOWN_TO_ALL or len(password) < _SHORTEST:
        fault = "that everybody knows" if password == _KNOWN_TO_ALL else f"of {len(password)} characters"
        raise InputError(
            f"--auth: a password {fault}; take one of {_SHORTEST} characters or more, none that others use"
        )


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it is read through the server
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{folder}: can't be written ({error.strerror}); give a folder of yours, for artifacts by --artifacts"
        ) from None


def _check_bucket(place: str) -> None:
    """Writes and removes an object."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, folder = place.removeprefix("s3://").partition("/")
    where = {"Bucket": bucket, "Key": f"{folder.strip('/')}/.maetrain-{secrets.token_hex(4)}".lstrip("/")}
    try:
        client = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"))
        client.put_object(**where, Body=b"")
        client.delete_object(**where)
    except (BotoCoreError, ClientError, ValueError) as error:
        raise InputError(
            f"--artifacts {place}: can't be written ({' '.join(str(error).split())}); look at the bucket's name, the "
            "AWS variables, and MLFLOW_S3_ENDPOINT_URL of a store of your own"
        ) from None


def _check_port(plan: ServerPlan) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(plan.host, plan.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that just ended don't count
            listener.bind(address)
    except socket.gaierror as error:
        raise InputError(f"--host {plan.host}: no such name here ({error.strerror}); give an address") from None
    except OSError as error:
        raise InputError(
            f"--host {plan.host} --port {plan.port}: can't be listened on ({error.strerror}); another server may run "
            "there: give another --port"
        ) from None
