"""Each command in a manifest is one that the program has, with these options and these settings."""

import configparser
import math
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import moto
import pytest
from botocore.client import BaseClient

from data_shards.errors import InputError
from tests.command_line import parsed
from tests.deploy.manifests import KUSTOMIZATIONS, Manifest, build, of_kind, pods

JOBS = tuple(folder for folder in KUSTOMIZATIONS if folder.endswith("/jobs"))


def jobs(folder: str) -> dict[str, Manifest]:
    """name -> the RayJob's spec; the nightly one's, too."""
    found = {job["metadata"]["name"]: job["spec"] for job in of_kind(build(folder), "RayJob")}
    return found | {job["metadata"]["name"]: job["spec"]["jobTemplate"] for job in of_kind(build(folder), "RayCronJob")}


@pytest.mark.parametrize("folder", JOBS)
def test_every_job_is_a_command_that_the_program_has(folder: str) -> None:
    verbs = {name: parsed(shlex.split(spec["entrypoint"]))[0] for name, spec in jobs(folder).items()}
    expected = {
        "shards": ["shards", "build"],
        "pretrain": ["pretrain"],
        "sweep": ["sweep"],
        "nightly": ["shards", "build"],
    }
    assert verbs == {name: expected[name] for name in verbs}


@pytest.mark.parametrize(
    "entrypoint",
    [
        "maetrain pretrian small --shards /data/shards --out /data/runs/mae",
        "maetrain pretrain small --shards /data/shards --out /data/runs/mae --adress auto",
        "maetrain pretrain small --shards /data/shards",
        "maetrain pretrain smal --shards /data/shards --out /data/runs/mae",
        "maetrain pretrain small --shards /data/shards --out /data/runs/mae cluster.pretrain_worker=2",
        "maetrain pretrain small --shards /data/shards --out /data/runs/mae cluster.pretrain_workers=[8,4]",
        "maetrain shards build /data/scans",
        "maetrain shards build /data/scans /data/shards --recipe hipocampus",
    ],
)
def test_a_command_with_a_slip_in_it_is_caught(entrypoint: str) -> None:
    with pytest.raises((click.UsageError, InputError)):
        parsed(shlex.split(entrypoint))


@pytest.mark.parametrize("folder", JOBS)
def test_commands_come_through_two_shells_as_they_are(folder: str, tmp_path: Path) -> None:
    """KubeRay puts them into a script of the submitter, and Ray's job server starts them by a shell once more."""
    for spec in jobs(folder).values():
        words = shlex.split(spec["entrypoint"])
        line = spec["entrypoint"]
        for _ in range(2):
            line = subprocess.run(
                ["bash", "-c", f"echo {line}"], cwd=tmp_path, capture_output=True, text=True
            ).stdout.strip()
        assert line.split() == words


@pytest.mark.parametrize("folder", JOBS)
def test_a_retry_finds_its_run_on_the_claim_that_outlives_the_cluster(folder: str) -> None:
    for name, spec in jobs(folder).items():
        _, given, _ = parsed(shlex.split(spec["entrypoint"]))
        assert given["address"] == "auto", name
        assert spec["backoffLimit"] >= 1 and spec["shutdownAfterJobFinishes"] is True and "jobId" not in spec
        groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
        for group in groups:
            pod = group["template"]["spec"]
            (claim,) = [v["name"] for v in pod["volumes"] if v.get("persistentVolumeClaim") == {"claimName": "data"}]
            mounts = {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == claim}
            assert mounts == {"/data"}
        paths = [given[key] for key in ("out", "shards_dir", "data", "source") if given.get(key) is not None]
        assert len(paths) >= 2 and all(str(path).startswith("/data/") for path in paths), name
        if "tracking_uri" in given:
            assert given["tracking_uri"] == "http://mlflow:5000"


@pytest.mark.parametrize("folder", JOBS)
def test_each_job_takes_up_where_the_one_before_it_ended(folder: str) -> None:
    given = {name: parsed(shlex.split(spec["entrypoint"]))[1] for name, spec in jobs(folder).items()}
    assert given["pretrain"]["shards_dir"] == given["sweep"]["shards_dir"] == given["shards"]["out"]
    assert given["sweep"]["data"] == given["shards"]["source"]
    assert given["sweep"]["handovers"] == (f"{given['pretrain']['out']}/handover",)
    assert given["pretrain"]["recipe"] == given["sweep"]["recipe"] == given["shards"]["recipe"]
    assert len({str(given[name]["out"]) for name in ("shards", "pretrain", "sweep")}) == 3


def cores(quantity: str) -> float:
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


@pytest.mark.parametrize("folder", JOBS)
def test_the_clusters_of_jobs_have_the_workers_they_ask_for(folder: str) -> None:
    """A rank that asks for more than a pod has would wait for ever."""
    for name in ("pretrain", "sweep"):
        spec = jobs(folder)[name]
        _, _, config = parsed(shlex.split(spec["entrypoint"]))
        groups = spec["rayClusterSpec"]["workerGroupSpecs"]
        limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups]
        gpus = [int(limit.get("nvidia.com/gpu", 0)) for limit in limits]
        of_rank = config.cluster.cpus_per_worker if name == "pretrain" else config.sweep.cpus_per_job
        ranks = [
            group["maxReplicas"] * int(min(cores(limit["cpu"]) // of_rank, gpu if any(gpus) else float("inf")))
            for group, limit, gpu in zip(groups, limits, gpus, strict=True)
        ]
        most = config.cluster.workers[1] if name == "pretrain" else config.sweep.ranks_per_job
        assert sum(ranks) >= most, f"{name}: {most} ranks, and room for {sum(ranks)}"


@pytest.mark.parametrize("folder", JOBS)
def test_a_training_sees_enough_of_its_cluster_at_the_start(folder: str) -> None:
    """It counts cores and GPUs once: with too few cores it refuses, and where it sees no GPU it trains without. What an
    autoscaler may add it sees only after a wait for it, `cluster.gpus`."""
    for name in ("pretrain", "sweep"):
        spec = jobs(folder)[name]
        _, _, config = parsed(shlex.split(spec["entrypoint"]))
        first, gpus_there, awaited = {"cpu": 0.0, "nvidia.com/gpu": 0.0}, False, config.cluster.gpus
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            pods = group["minReplicas"]
            if gpus := int(limits.get("nvidia.com/gpu", 0)):
                gpus_there, pods = True, max(pods, math.ceil(awaited / gpus))
                assert pods <= group["maxReplicas"], f"{name} waits for {awaited} GPUs"
            for resource in first:
                first[resource] += pods * cores(limits.get(resource, "0"))
        ranks = config.cluster.workers[0] if name == "pretrain" else config.sweep.ranks_per_job
        of_rank = config.cluster.cpus_per_worker if name == "pretrain" else config.sweep.cpus_per_job
        assert first["cpu"] >= ranks * of_rank, name
        assert not gpus_there or first["nvidia.com/gpu"] >= ranks, name


@pytest.mark.parametrize("folder", JOBS)
def test_the_wait_before_a_pod_is_stopped_is_longer_than_a_checkpoint_may_take(folder: str) -> None:
    for name, spec in jobs(folder).items():
        _, _, config = parsed(shlex.split(spec["entrypoint"]))
        for group in (spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            wait_s = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
            assert config.cluster.grace_s < wait_s < pod["terminationGracePeriodSeconds"] - 10, name
            # of Ray, which has the head stop the driver
            variables = {variable["name"]: variable.get("value") for variable in pod["containers"][0]["env"]}
            assert config.cluster.grace_s < int(variables["RAY_JOB_STOP_WAIT_TIME_S"]), name


def container(name: str) -> Manifest:
    return next(c for pod in pods(build("overlays/gpu")) for c in pod.containers if c["name"] == name)


def test_mlflow_is_started_with_options_that_it_has() -> None:
    from mlflow.cli import server

    mlflow = container("mlflow")
    assert mlflow["command"] == ["mlflow", "server"]
    variables = {variable["name"]: variable.get("value") for variable in mlflow["env"]}
    words = [word.replace("$(ALLOWED_HOSTS)", variables["ALLOWED_HOSTS"]) for word in mlflow["args"]]
    given = server.make_context("server", words).params
    assert variables["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false", "seven processes for language models"
    assert given["app_name"] == "basic-auth" and given["serve_artifacts"] is True
    assert given["artifacts_destination"] == "s3://mlflow"
    assert "mlflow:5000" in given["allowed_hosts"].split(",")


def test_mlflow_reads_its_accounts_from_the_same_database_and_no_password_from_the_file() -> None:
    (config_map,) = [m for m in of_kind(build("base"), "ConfigMap") if m["metadata"]["name"] == "mlflow-auth"]
    settings, shipped = configparser.ConfigParser(), configparser.ConfigParser()
    settings.read_string(config_map["data"]["basic_auth.ini"])
    spec = find_spec("mlflow")
    assert spec and spec.origin
    shipped.read(Path(spec.origin).parent / "server" / "auth" / "basic_auth.ini")
    ours = dict(settings["mlflow"])
    assert set(ours) <= set(shipped["mlflow"]) and "admin_password" not in ours
    assert f"--backend-store-uri={ours['database_uri']}" in container("mlflow")["args"]
    assert ours["authorization_function"] == shipped["mlflow"]["authorization_function"]
    variables = {variable["name"]: variable for variable in container("mlflow")["env"]}
    mounted = {mount["name"]: mount["mountPath"] for mount in container("mlflow")["volumeMounts"]}
    assert variables["MLFLOW_AUTH_CONFIG_PATH"]["value"] == f"{mounted['auth']}/basic_auth.ini"


def test_the_bucket_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pod starts again now and then; some stores refuse a bucket that is there already, so it is not asked for."""
    bucket = container("bucket")
    assert bucket["command"] == ["python", "-c"]
    (script,) = bucket["args"]
    # a store of AWS's own address is what moto stands in for
    values = {"MLFLOW_S3_ENDPOINT_URL": "https://s3.amazonaws.com"}
    for variable in bucket["env"]:
        monkeypatch.setenv(variable["name"], values.get(variable["name"], variable.get("value", "testing")))
    asked, call = [], BaseClient._make_api_call

    def noted(self: BaseClient, operation: str, given: dict[str, Any]) -> Any:
        asked.append((operation, given.get("Bucket")))
        return call(self, operation, given)

    monkeypatch.setattr(BaseClient, "_make_api_call", noted)
    with moto.mock_aws():
        for _ in range(2):
            exec(script, {})
    assert asked == [("ListBuckets", None), ("CreateBucket", "mlflow"), ("ListBuckets", None)]
    assert "--artifacts-destination=s3://mlflow" in container("mlflow")["args"]
