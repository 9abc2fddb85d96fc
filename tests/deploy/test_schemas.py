"""Every manifest of every kustomization is what Kubernetes and KubeRay take, to the last letter of each field."""

from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.deploy.manifests import GPU, K8S, KUSTOMIZATIONS, PLATFORMS, Manifest, build, name_of, of_kind

# the oldest that the guide promises, and the newest with schemas
KUBERNETES = ("1.33", "1.37")


@cache
def kuberay_schema(folder: Path, kind: str) -> Manifest:
    definition = yaml.load((folder / f"ray.io_{kind.lower()}s.yaml").read_text(), Loader=yaml.CSafeLoader)
    (version,) = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    return closed(version["schema"]["openAPIV3Schema"])


def closed(schema: Any) -> Any:
    """The schema with no room for unknown fields, and with KubeRay's numbers-or-words as such."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        return {"type": ["string", "integer"]}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        schema["additionalProperties"] = False
    return schema


def complaints(manifest: Manifest, folder: Path | None) -> list[str]:
    """What a strict server says to the manifest. `folder`: KubeRay's definitions; without it, its kinds pass."""
    group = manifest["apiVersion"]
    if group == "ray.io/v1":
        if folder is None:
            return []
        validator = jsonschema.Draft202012Validator(kuberay_schema(folder, manifest["kind"]))
        return [f"{name_of(manifest)}: {error.message}" for error in validator.iter_errors(manifest)]
    if group == "kueue.x-k8s.io/v1beta2":  # no schema at hand: the one kind and its one field
        known = manifest["kind"] == "LocalQueue" and set(manifest["spec"]) == {"clusterQueue"}
        return [] if known else [f"{name_of(manifest)}: not a LocalQueue with a clusterQueue"]
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            return [f"{name_of(manifest)}: {error.message}"]
    return []


def of_ray(manifest: Manifest) -> bool:
    return manifest["apiVersion"].startswith("ray.io/")


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_kubernetes_takes_every_manifest_of_its_own_kinds(folder: str) -> None:
    manifests = [manifest for manifest in build(folder) if not of_ray(manifest)]
    assert [line for manifest in manifests for line in complaints(manifest, None)] == []


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_kuberay_takes_every_manifest_of_its_kinds(folder: str, kuberay_schemas: Path) -> None:
    manifests = [manifest for manifest in build(folder) if of_ray(manifest)]
    assert manifests
    assert [line for manifest in manifests for line in complaints(manifest, kuberay_schemas)] == []


def test_every_folder_of_jobs_has_the_jobs_and_nothing_else() -> None:
    for folder in KUSTOMIZATIONS:
        if folder.endswith("/jobs"):
            names = {name_of(manifest) for manifest in build(folder)}
            assert names - {"RayCronJob/nightly"} == {"RayJob/shards", "RayJob/pretrain", "RayJob/sweep"}


def test_no_job_starts_with_the_platform() -> None:
    for folder in KUSTOMIZATIONS:
        if not folder.endswith("/jobs"):
            assert of_kind(build(folder), "RayJob", "RayCronJob", "Job", "CronJob") == []


def test_each_job_runs_on_a_copy_of_the_cluster_of_its_overlay() -> None:
    """A retry, too, gets what the long-lived cluster has: no second description that could lag behind."""
    for folder in PLATFORMS:
        (cluster,) = of_kind(build(folder), "RayCluster")
        for job in of_kind(build(f"{folder}/jobs"), "RayJob"):
            of_job, of_platform = job["spec"]["rayClusterSpec"], cluster["spec"]
            if folder in GPU and job["metadata"]["name"] == "shards":  # without its GPUs
                of_platform = without_gpus(of_platform)
            elif folder == "overlays/gpu-kueue":  # the long-lived cluster would hold the queue's GPUs
                assert [group["groupName"] for group in of_job["workerGroupSpecs"]] == ["cpu", "gpu"]
                of_job = without_gpus(of_job)
            assert of_job == of_platform, f"{folder}: {name_of(job)}"


def without_gpus(spec: Manifest) -> Manifest:
    return {**spec, "workerGroupSpecs": spec["workerGroupSpecs"][:1]}


@pytest.mark.parametrize("folder", ["overlays/kueue", "overlays/gpu-kueue"])
def test_what_waits_in_a_queue_finds_it_there_and_is_such_as_kueue_takes(folder: str) -> None:
    """Without a LocalQueue of that name it would wait for ever, without the label it would pass the queue by."""
    platform, jobs = build(folder), build(f"{folder}/jobs")
    (queue,) = of_kind(platform, "LocalQueue")
    waiting = of_kind(platform + jobs, "RayCluster", "RayJob")
    assert [name_of(manifest) for manifest in waiting].count("RayCluster/maetrain") == 1 and len(waiting) == 4
    for manifest in waiting:
        assert manifest["metadata"]["namespace"] == queue["metadata"]["namespace"]
        assert manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
        # what Kueue's webhooks ask: no autoscaler, 7 groups at most, and of a job that its cluster ends with it
        spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
        assert not spec.get("enableInTreeAutoscaling") and len(spec["workerGroupSpecs"]) <= 7
        assert all(group["minReplicas"] == group["replicas"] for group in spec["workerGroupSpecs"])
        if manifest["kind"] == "RayJob":
            assert manifest["spec"]["shutdownAfterJobFinishes"] is True and "clusterSelector" not in manifest["spec"]
    assert of_kind(jobs, "RayCronJob") == []


def test_every_component_is_built_by_some_kustomization() -> None:
    """A component has no build of its own, so one that nobody names would be checked by nobody."""
    named = set()
    for file in K8S.rglob("kustomization.yaml"):
        for component in yaml.safe_load(file.read_text()).get("components", []):
            named.add((file.parent / component).resolve())
    components = {
        file.parent
        for file in K8S.rglob("kustomization.yaml")
        if yaml.safe_load(file.read_text())["kind"] == "Component"
    }
    by_a_test = {K8S / "components" / "bucket"}  # test_network: an operator adds it
    assert named | by_a_test == components and not named & by_a_test


# what was misspelt | of which kind | where | the field as it should be, and as it is written
MISSPELT = [
    ("RayJob", "overlays/local/jobs", ("spec",), "backoffLimit", "backofLimit"),
    ("RayJob", "overlays/gpu/jobs", ("spec", "rayClusterSpec", "workerGroupSpecs", 0), "minReplicas", "minReplica"),
    ("RayCronJob", "base/jobs", ("spec", "jobTemplate"), "shutdownAfterJobFinishes", "shutDownAfterJobFinishes"),
    ("RayCluster", "base", ("spec", "authOptions"), "secretName", "secretname"),
    ("Deployment", "base", ("spec", "template", "spec", "containers", 0), "readinessProbe", "readynessProbe"),
    ("StatefulSet", "base", ("spec", "template", "spec", "securityContext"), "runAsNonRoot", "runAsNonroot"),
    ("NetworkPolicy", "base", ("spec",), "podSelector", "podSelectors"),
    ("LocalQueue", "overlays/kueue", ("spec",), "clusterQueue", "clusterqueue"),
]


@pytest.mark.parametrize(("kind", "folder", "path", "right", "wrong"), MISSPELT)
def test_a_misspelt_field_is_caught(
    kind: str, folder: str, path: tuple[str | int, ...], right: str, wrong: str, request: pytest.FixtureRequest
) -> None:
    manifest = of_kind(build(folder), kind)[0]
    schemas = request.getfixturevalue("kuberay_schemas") if of_ray(manifest) else None
    node: Any = manifest
    for key in path:
        node = node[key]
    assert complaints(manifest, schemas) == []
    node[wrong] = node.pop(right)
    assert complaints(manifest, schemas) != []
