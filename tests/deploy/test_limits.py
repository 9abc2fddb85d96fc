"""What pods ask for, in sum: it fits into the namespace's quota, and shared memory into the pod's own."""

import re
from collections import Counter

import pytest
from ray._private.ray_constants import DEFAULT_OBJECT_STORE_MEMORY_PROPORTION

from tests.deploy.manifests import GPU, KUSTOMIZATIONS, PLATFORMS, Manifest, build, name_of, of_kind, pods

UNITS = {"": 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
Amounts = Counter[str]  # "requests.cpu" and the like -> cores, bytes, GPUs


def amount(quantity: str | int) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([A-Za-z]*)", str(quantity)).groups()
    return float(number) * UNITS[unit]


def of_containers(containers: list[Manifest]) -> Amounts:
    total: Amounts = Counter()
    for container in containers:
        for kind, resources in container["resources"].items():
            total.update({f"{kind}.{name}": amount(quantity) for name, quantity in resources.items()})
    return total


def of_cluster(spec: Manifest, replicas: str) -> Amounts:
    """`replicas`: whether its groups are counted at their minReplicas or maxReplicas."""
    autoscaler = [spec["autoscalerOptions"]] if spec.get("enableInTreeAutoscaling") else []
    total = of_containers([*spec["headGroupSpec"]["template"]["spec"]["containers"], *autoscaler])
    for group in spec["workerGroupSpecs"]:
        one = of_containers(group["template"]["spec"]["containers"])
        total.update({name: value * group[replicas] for name, value in one.items()})
    return total


@pytest.mark.parametrize("folder", PLATFORMS)
def test_the_quota_has_room_for_the_platform_and_any_one_job_at_its_largest(folder: str) -> None:
    manifests = build(folder)
    (cluster,) = of_kind(manifests, "RayCluster")
    platform = of_cluster(cluster["spec"], "minReplicas")
    for service in of_kind(manifests, "Deployment", "StatefulSet"):
        platform.update(of_containers(service["spec"]["template"]["spec"]["containers"]))
    (quota,) = of_kind(manifests, "ResourceQuota")
    hard = {name: amount(quantity) for name, quantity in quota["spec"]["hard"].items()}
    for job in of_kind(build(f"{folder}/jobs"), "RayJob"):
        needed = platform + of_cluster(job["spec"]["rayClusterSpec"], "maxReplicas")
        needed += of_containers(job["spec"]["submitterPodTemplate"]["spec"]["containers"])
        counted = {name for name in needed if name in hard}
        assert {"requests.cpu", "requests.memory", "limits.cpu", "limits.memory"} <= counted
        assert ("requests.nvidia.com/gpu" in hard) == (folder in GPU)
        too_much = {name: (needed[name], hard[name]) for name in counted if needed[name] > hard[name]}
        assert too_much == {}, name_of(job)


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_rays_object_store_fits_into_shared_memory_and_leaves_room_beside_it(folder: str) -> None:
    for pod in pods(build(folder)):
        if pod.component not in ("ray-head", "ray-worker"):
            continue
        (mount,) = [m for m in pod.spec["containers"][0]["volumeMounts"] if m["mountPath"] == "/dev/shm"]
        (volume,) = [v["emptyDir"] for v in pod.spec["volumes"] if v["name"] == mount["name"]]
        memory_bytes = amount(pod.spec["containers"][0]["resources"]["limits"]["memory"])
        assert volume["medium"] == "Memory"
        shared_bytes = amount(volume["sizeLimit"])
        assert DEFAULT_OBJECT_STORE_MEMORY_PROPORTION * memory_bytes <= shared_bytes <= memory_bytes / 2, pod.where
