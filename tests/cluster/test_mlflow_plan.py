"""What `maetrain mlflow up` refuses before it starts anything, in one line with a remedy, and what it would start."""

import configparser
import socket
from dataclasses import replace
from pathlib import Path

import click
import moto
import pytest

from cluster import mlflow_plan
from cluster.cli import cli
from cluster.mlflow_plan import ServerPlan, check_plan
from data_shards.errors import InputError

PASSWORD = "correct horse battery"


def plan(folder: Path, **changes: object) -> ServerPlan:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    whole = ServerPlan(folder, f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts"), port=port)
    return replace(whole, **changes)


def options(words: list[str]) -> dict[str, object]:
    """As MLflow's own command line reads them; it refuses those that it does not have."""
    from mlflow.cli import server

    assert words[1:4] == ["-m", "mlflow", "server"]
    given: dict[str, object] = server.make_context("server", words[4:]).params
    return given


def test_the_least_that_is_asked_for_is_fine(tmp_path: Path) -> None:
    check_plan(plan(tmp_path / "new", names=("*.example.org", "box", "box:5000", "[::1]:5000")), None)
    assert (tmp_path / "new" / "artifacts").is_dir()
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0, "others on the machine can read the runs"


# what is wrong | changes | words of the message
REFUSED = [
    ({"host": "0.0.0.0", "names": ("box",)}, "whoever reaches it.*add --auth"),
    ({"host": "10.0.0.1"}, "whoever reaches it.*add --auth"),
    ({"host": "box.lab"}, "whoever reaches it.*add --auth"),
    ({"host": "0.0.0.0", "admin": "admin"}, "add --allowed-hosts NAME"),
    ({"names": ("box", "*")}, "any page in a browser.*name the hosts"),
    ({"names": ("*:5000",)}, r"--allowed-hosts \*:5000: any page"),
    ({"names": ("*.*",)}, "any page in a browser"),
    ({"names": ("*.org",)}, "any page in a browser"),
    ({"names": ("????.example.org",)}, "any page in a browser"),
    ({"admin": "admin"}, "needs a password; give --password-file, or MLFLOW_AUTH_ADMIN_PASSWORD"),
    ({"store": "mysql://me@db/x"}, "sqlite:///FILE or postgresql://"),
    ({"store": "./mlruns"}, "sqlite:///FILE or postgresql://"),
    ({"store": "postgresql://me:secret@127.0.0.1:1/x"}, r"me:\*\*\*@127.*no database.*refused.*PGPASSWORD"),
    ({"store": "postgresql://me@127.0.0.1:port/x"}, "no database to work with"),
    ({"store": "sqlite:////nowhere/at/all/x.db"}, "no database to work with.*unable to open"),
    ({"artifacts": "gs://bucket/x"}, "give a folder or s3://BUCKET/FOLDER"),
    ({"host": "127.0.0.1.nowhere.invalid", "admin": "admin"}, "no such name"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_mistake_is_said_before_anything_starts(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    password = PASSWORD if "host" in changes else None
    with pytest.raises(InputError, match=said) as error:
        check_plan(plan(tmp_path, **changes), password)
    assert "\n" not in str(error.value) and "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("password", "said"),
    [("password1234", "that everybody knows"), ("elevenlong1", "of 11 characters"), ("", "needs a password")],
)
def test_a_password_that_is_none_is_refused_until_there_are_accounts(password: str, said: str, tmp_path: Path) -> None:
    with_login = plan(tmp_path, admin="admin")
    with pytest.raises(InputError, match=said):
        check_plan(with_login, password)
    with_login.accounts.touch()
    check_plan(with_login, password)


def test_a_file_that_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database, and long enough to be taken for the header of one\n" * 20)
    with pytest.raises(InputError, match=r"mlflow\.db: no database to work with .*file is not a database"):
        check_plan(plan(tmp_path), None)


def test_a_busy_port_is_told(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {port}: can't be listened on .*give another --port"):
            check_plan(plan(tmp_path, port=port), None)
    check_plan(plan(tmp_path, port=port), None)


def test_a_folder_that_takes_no_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for changes in ({"artifacts": str(tmp_path / "file" / "below")}, {"folder": tmp_path / "file"}):
        with pytest.raises(InputError, match=f"{tmp_path}/file.*can't be written.*--artifacts"):
            check_plan(replace(plan(tmp_path), **changes), None)


@pytest.mark.parametrize(
    ("changes", "package"),
    [
        ({"admin": "admin"}, "flask_wtf"),
        ({"store": "postgresql+psycopg://me@127.0.0.1:1/x"}, "psycopg"),
        ({"artifacts": "s3://bucket"}, "boto3"),
    ],
)
def test_a_missing_extra_is_told(
    changes: dict[str, object], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_plan, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(InputError, match=rf"needs the package {package}: pip install 'maetrain\[server\]'"):
        check_plan(plan(tmp_path, **changes), PASSWORD)


def test_a_bucket_must_take_an_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    in_bucket = plan(tmp_path, artifacts="s3://runs/of/mlflow")
    with moto.mock_aws():
        with pytest.raises(InputError, match="s3://runs/of/mlflow: can't be written .*NoSuchBucket.*AWS variables"):
            check_plan(in_bucket, None)
        client = boto3.client("s3")
        client.create_bucket(Bucket="runs")
        check_plan(in_bucket, None)
        assert client.list_objects_v2(Bucket="runs")["KeyCount"] == 0


def test_mlflow_has_the_options_and_no_password_is_among_them(tmp_path: Path) -> None:
    store = "postgresql://me:secret-of-the-database@db/x"
    of_all = plan(tmp_path, store=store, host="0.0.0.0", names=("box.lab",), admin="boss", workers=3)
    given = options(of_all.command())
    assert (given["host"], given["port"], given["workers"]) == ("0.0.0.0", of_all.port, "3")
    assert given["app_name"] == "basic-auth" and given["serve_artifacts"] is True
    assert given["artifacts_destination"] == str(tmp_path / "artifacts")
    assert "secret" not in " ".join(of_all.command())
    variables = of_all.environment(PASSWORD)
    assert variables["MLFLOW_BACKEND_STORE_URI"] == store and variables["MLFLOW_AUTH_ADMIN_PASSWORD"] == PASSWORD
    assert options(plan(tmp_path).command())["app_name"] is None
    assert "MLFLOW_AUTH_ADMIN_PASSWORD" not in plan(tmp_path).environment(PASSWORD)


# as a client or a browser says it | the origin of a page | whether both pass
ASKED = [
    ("127.0.0.1:{port}", "http://127.0.0.1:{port}", True),
    ("localhost:{port}", "http://localhost:{port}", True),
    ("box.lab:{port}", "http://box.lab:{port}", True),
    ("box.lab", "https://box.lab", True),
    ("runs.org:8443", "https://runs.org:8443", True),
    ("box.lab.evil.org", "http://box.lab.evil.org", False),
    ("evil.org:{port}", "https://evil.org", False),
]


@pytest.mark.parametrize(("host", "origin", "passes"), ASKED)
def test_the_names_that_are_allowed_pass_mlflows_own_check_and_no_other(
    host: str, origin: str, passes: bool, tmp_path: Path
) -> None:
    from mlflow.server.security_utils import is_allowed_host_header, should_block_cors_request

    named = plan(tmp_path, host="0.0.0.0", names=("box.lab", "runs.org:8443"), admin="admin")
    given = options(named.command())
    hosts, origins = (str(given[key]).split(",") for key in ("allowed_hosts", "cors_allowed_origins"))
    host, origin = host.format(port=named.port), origin.format(port=named.port)
    assert is_allowed_host_header(hosts, host) is passes
    assert should_block_cors_request(origin, "POST", origins) is not passes


@pytest.mark.parametrize(
    ("host", "names", "here", "elsewhere"),
    [
        ("127.0.0.1", (), "http://127.0.0.1:80", []),
        ("0.0.0.0", ("box", "*.lab"), "http://127.0.0.1:80", ["http://box:80"]),
        ("::", ("box:90",), "http://127.0.0.1:80", ["http://box:90"]),
        ("::1", (), "http://[::1]:80", []),
        ("10.0.0.1", (), "http://10.0.0.1:80", []),
    ],
)
def test_the_address_that_is_told_is_one_to_ask(
    host: str, names: tuple[str, ...], here: str, elsewhere: list[str], tmp_path: Path
) -> None:
    told = replace(plan(tmp_path), host=host, port=80, names=names)
    assert (told.uri, told.uris_elsewhere) == (here, elsewhere)


def test_the_accounts_file_holds_no_password_and_survives_a_percent_sign(tmp_path: Path) -> None:
    folder = tmp_path / "100% mine"
    folder.mkdir()
    with_login = plan(folder, admin="admin")
    with_login.write_accounts_file()
    assert "password" not in (folder / "basic_auth.ini").read_text()
    as_mlflow_reads = configparser.ConfigParser()
    as_mlflow_reads.read(folder / "basic_auth.ini")
    assert as_mlflow_reads["mlflow"]["database_uri"] == f"sqlite:///{with_login.accounts}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--auth", "--password-file", "nowhere"], "--password-file .*nowhere: can't be read .*No such file"),
        (["--auth", "--password-file", "short"], "a password of 5 characters"),
        (["--auth"], "needs a password"),
    ],
)
def test_the_password_comes_from_its_file(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
    (tmp_path / "short").write_text("short\n")
    with pytest.raises(InputError, match=said):
        cli.main(["mlflow", "up", "here", *words], standalone_mode=False)


def test_a_password_without_a_login_is_a_slip() -> None:
    with pytest.raises(click.UsageError, match="goes with --auth"):
        cli.main(["mlflow", "up", "--password-file", "word"], standalone_mode=False)
