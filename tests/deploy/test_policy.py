"""The policy over every pod of every kustomization, each rule shown to catch what it is there for."""

import re
import tomllib
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.deploy.manifests import GPU, GUIDE, K8S, KUSTOMIZATIONS, PLATFORMS, Manifest, Pod, build, of_kind, pods
from tests.deploy.policy import RULES, violations


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_every_pod_keeps_every_rule(folder: str) -> None:
    found = pods(build(folder))
    assert found
    assert {pod.where: broken for pod in found if (broken := violations(pod))} == {}


def test_no_pod_is_overlooked() -> None:
    """Counted by hand: MLflow and two stores; per Ray cluster a head and its groups; per job a submitter more."""
    count = {folder: len(pods(build(folder))) for folder in KUSTOMIZATIONS}
    assert count == {
        "base": 3 + 2,
        "base/jobs": 4 * 3,
        "base/ray": 2,
        "overlays/gpu": 3 + 3,
        "overlays/gpu/jobs": 2 * 4 + 2 * 3,
        "overlays/gpu-kueue": 3 + 2,
        "overlays/gpu-kueue/jobs": 2 * 4 + 3,
        "overlays/kueue": 3 + 2,
        "overlays/kueue/jobs": 3 * 3,
        "overlays/local": 3 + 2,
        "overlays/local/jobs": 4 * 3,
        "overlays/volcano": 3 + 2,
        "overlays/volcano/jobs": 3 * 3,
    }


def first(container: str) -> Callable[[list[Pod]], Pod]:
    return lambda found: next(pod for pod in found if container in {c["name"] for c in pod.containers})


def container_of(pod: Pod, name: str) -> Manifest:
    return next(container for container in pod.containers if container["name"] == name)


# the rule | in which container | what is done to the pod and to that container
PLANTED: list[tuple[str, str, Callable[[Manifest, Manifest], object]]] = [
    ("runs_as_somebody", "postgres", lambda pod, _: pod["securityContext"].pop("runAsNonRoot")),
    ("runs_as_somebody", "ray-worker", lambda pod, _: pod["securityContext"].update(runAsUser=0)),
    ("runs_as_somebody", "bucket", lambda _, c: c["securityContext"].update(runAsNonRoot=False)),
    ("gains_no_privilege", "ray-head", lambda _, c: c["securityContext"].pop("allowPrivilegeEscalation")),
    ("gains_no_privilege", "seaweedfs", lambda _, c: c["securityContext"].update(privileged=True)),
    ("has_no_capability", "autoscaler", lambda _, c: c["securityContext"].pop("capabilities")),
    ("has_no_capability", "ray-worker", lambda _, c: c["securityContext"]["capabilities"].update(add=["IPC_LOCK"])),
    ("is_under_seccomp", "ray-job-submitter", lambda pod, _: pod["securityContext"].pop("seccompProfile")),
    ("is_under_seccomp", "mlflow", lambda _, c: c["securityContext"].update(seccompProfile={"type": "Unconfined"})),
    ("writes_into_volumes_alone", "mlflow", lambda _, c: c["securityContext"].pop("readOnlyRootFilesystem")),
    ("writes_into_volumes_alone", "ray-worker", lambda _, c: c["volumeMounts"].pop(1)),
    ("stays_within_resources", "bucket", lambda _, c: c.pop("resources")),
    ("stays_within_resources", "autoscaler", lambda _, c: c["resources"]["limits"].pop("memory")),
    ("stays_within_resources", "ray-head", lambda _, c: c["resources"]["requests"].pop("cpu")),
    ("answers_probes", "ray-worker", lambda _, c: c.pop("livenessProbe")),
    ("answers_probes", "postgres", lambda _, c: c.pop("readinessProbe")),
    ("answers_probes", "mlflow", lambda _, c: c.pop("startupProbe")),
    ("runs_a_known_image", "mlflow", lambda _, c: c.update(image="maetrain")),
    ("runs_a_known_image", "ray-head", lambda _, c: c.update(image="registry:5000/maetrain:latest")),
    ("runs_a_known_image", "ray-head", lambda _, c: c.update(image="registry:5000/maetrain")),
    ("shares_nothing_with_its_node", "ray-worker", lambda pod, _: pod.update(hostNetwork=True)),
    ("shares_nothing_with_its_node", "ray-worker", lambda pod, _: pod["volumes"].append({"name": "h", "hostPath": {}})),
    ("shares_nothing_with_its_node", "mlflow", lambda _, c: c["ports"][0].update(hostPort=5000)),
    ("bounds_its_scratch_space", "ray-head", lambda pod, _: pod["volumes"][1]["emptyDir"].pop("sizeLimit")),
    ("cannot_ask_the_api_server", "mlflow", lambda pod, _: pod.pop("automountServiceAccountToken")),
    ("cannot_ask_the_api_server", "ray-worker", lambda pod, _: pod.update(serviceAccountName="default")),
    ("cannot_ask_the_api_server", "autoscaler", lambda pod, _: pod.update(automountServiceAccountToken=False)),
    ("cannot_ask_the_api_server", "autoscaler", lambda pod, _: pod.update(serviceAccountName="ray")),
    ("names_no_secret", "mlflow", lambda _, c: c["env"].append({"name": "AWS_SECRET_ACCESS_KEY_2", "value": "x"})),
    ("names_no_secret", "ray-head", lambda _, c: c["env"].append({"name": "RAY_AUTH_TOKEN", "value": "x"})),
    ("says_each_name_once", "ray-worker", lambda _, c: c["env"].append(c["env"][0])),
    ("says_each_name_once", "ray-head", lambda pod, _: pod["volumes"].append(pod["volumes"][0])),
    ("mounts_what_it_has", "ray-worker", lambda pod, _: pod["volumes"].pop(0)),
]


@pytest.mark.parametrize(("rule", "container", "plant"), PLANTED)
def test_a_planted_violation_is_caught_by_its_rule_alone(
    rule: str, container: str, plant: Callable[[Manifest, Manifest], object]
) -> None:
    pod = first(container)(pods(build("overlays/gpu") + build("overlays/gpu/jobs")))
    pod = replace(pod, spec={**pod.spec})
    assert violations(pod) == {}
    plant(pod.spec, container_of(pod, container))
    assert list(violations(pod)) == [rule]


def test_every_rule_has_its_planted_violation() -> None:
    assert {rule for rule, _, _ in PLANTED} == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize("folder", PLATFORMS)
def test_accounts_give_no_token_and_every_pod_has_one_that_exists(folder: str) -> None:
    manifests = build(folder)
    accounts = of_kind(manifests, "ServiceAccount")
    assert all(account["automountServiceAccountToken"] is False for account in accounts)
    names = {account["metadata"]["name"] for account in accounts}
    named = {pod.spec.get("serviceAccountName") for pod in pods(manifests + build(f"{folder}/jobs"))}
    assert named - {None} == names
    assert (None in named) == (folder == "overlays/gpu")  # the heads with an autoscaler


@pytest.mark.parametrize("folder", PLATFORMS)
def test_priority_classes_claims_and_config_maps_exist(folder: str) -> None:
    manifests = build(folder)
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests}
    for pod in pods(manifests + build(f"{folder}/jobs")):
        assert ("PriorityClass", pod.spec["priorityClassName"]) in names, pod.where
        for volume in pod.spec["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in names, pod.where
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in names, pod.where


@pytest.mark.parametrize("folder", PLATFORMS)
def test_everything_is_in_the_one_namespace_under_the_restricted_standard(folder: str) -> None:
    manifests = build(folder)
    (namespace,) = of_kind(manifests, "Namespace")
    assert {
        mode: namespace["metadata"]["labels"][f"pod-security.kubernetes.io/{mode}"]
        for mode in ("enforce", "audit", "warn")
    } == dict.fromkeys(("enforce", "audit", "warn"), "restricted")
    whole = {"Namespace", "PriorityClass"}  # kinds of the whole cluster
    for manifest in manifests + build(f"{folder}/jobs"):
        if manifest["kind"] not in whole:
            assert manifest["metadata"]["namespace"] == "maetrain", manifest["metadata"]["name"]


def test_no_secret_is_in_any_file() -> None:
    for folder in KUSTOMIZATIONS:
        assert of_kind(build(folder), "Secret") == []
    for file in (GUIDE, *K8S.rglob("*.*")):
        text = file.read_text()
        assert not re.search(r"://[^/\s:@]+:[^/\s@]+@", text), f"{file}: a password in an address"
        assert not re.search(r"AKIA[0-9A-Z]{12}|-----BEGIN|stringData", text), file
        assert not re.search(r"secretGenerator|--from-literal=(?!username)[\w-]+=[^\"]", text), file


def test_every_secret_that_is_named_has_its_line_in_the_guide() -> None:
    made: dict[str, set[str]] = {"mlflow-tls": set()}
    for name, rest in re.findall(r"kubectl create secret generic (\S+)(.*)", GUIDE.read_text()):
        made[name] = set(re.findall(r"--from-literal=([\w-]+)=", rest))
    named: dict[str, set[str]] = {"ray-token": {"auth_token"}, "mlflow-tls": set()}
    for folder in KUSTOMIZATIONS:
        for pod in pods(build(folder)):
            for container in pod.containers:
                for variable in container.get("env", []):
                    if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                        named.setdefault(reference["name"], set()).add(reference["key"])
    assert made == named


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_every_ray_cluster_asks_for_the_token(folder: str) -> None:
    manifests = build(folder)
    specs = [manifest["spec"] for manifest in of_kind(manifests, "RayCluster")]
    specs += [manifest["spec"]["rayClusterSpec"] for manifest in of_kind(manifests, "RayJob")]
    specs += [manifest["spec"]["jobTemplate"]["rayClusterSpec"] for manifest in of_kind(manifests, "RayCronJob")]
    assert specs
    assert all(spec["authOptions"] == {"mode": "token", "secretName": "ray-token"} for spec in specs)


def test_versions_are_those_of_the_package_and_its_constraints() -> None:
    project = tomllib.loads((K8S.parents[1] / "pyproject.toml").read_text())["project"]
    constraints = (K8S.parents[1] / "constraints.txt").read_text().splitlines()
    for folder in ("base", "base/jobs"):
        images = {container["image"] for pod in pods(build(folder)) for container in pod.containers}
        ours = {image for image in images if image.startswith("maetrain")}
        assert ours == {f"maetrain:{project['version']}"}
    (cluster,) = of_kind(build("base"), "RayCluster")
    assert f"ray=={cluster['spec']['rayVersion']}" in constraints


def test_images_of_the_gpu_overlays_are_named_by_digest() -> None:
    placeholder = "0" * 64  # starts nowhere; the guide says to put the real one
    for folder in (*GPU, *(f"{platform}/jobs" for platform in GPU)):
        images = {container["image"] for pod in pods(build(folder)) for container in pod.containers}
        assert images
        for image in images:
            assert re.fullmatch(r"[\w./-]+@sha256:[0-9a-f]{64}", image), image
            if placeholder in image:
                assert "all three digests (zeros" in GUIDE.read_text()
