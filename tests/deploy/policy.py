"""What a security review asks of each pod: a rule a function, which names what breaks it."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.deploy.manifests import Manifest, Pod

Rule = Callable[[Pod], Iterator[str]]


def setting(pod: Pod, container: Manifest, key: str) -> Any:
    """A field of the security context: the container's own, else the pod's."""
    own = container.get("securityContext", {})
    return own[key] if key in own else pod.spec.get("securityContext", {}).get(key)


def runs_as_somebody(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        if setting(pod, container, "runAsNonRoot") is not True or not setting(pod, container, "runAsUser"):
            yield f"{container['name']} may run as root"


def gains_no_privilege(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"{container['name']} may gain privileges"


def has_no_capability(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        capabilities = container.get("securityContext", {}).get("capabilities", {})
        if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
            yield f"{container['name']} keeps capabilities"


def is_under_seccomp(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        if setting(pod, container, "seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{container['name']} may make any system call"


def writes_into_volumes_alone(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
            yield f"{container['name']} may write into its image"
        if "/tmp" not in {mount["mountPath"] for mount in container.get("volumeMounts", [])}:
            yield f"{container['name']} has no /tmp to write into"


def stays_within_resources(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        resources = container.get("resources", {})
        for kind in ("requests", "limits"):
            if not {"cpu", "memory"} <= set(resources.get(kind, {})):
                yield f"{container['name']} has no {kind} of CPU and memory"


def answers_probes(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        if container.get("ports"):
            missing = {"startupProbe", "readinessProbe", "livenessProbe"} - set(container)
            yield from (f"{container['name']} listens and has no {probe}" for probe in sorted(missing))


def runs_a_known_image(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        image = container["image"].rpartition("/")[2]
        digest, tag = image.partition("@sha256:")[2], image.partition(":")[2]
        if not digest and tag in ("", "latest"):
            yield f"{container['name']} runs {container['image']}, whatever that is today"


def shares_nothing_with_its_node(pod: Pod) -> Iterator[str]:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(key):
            yield f"{key} is on"
    for volume in pod.spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"volume {volume['name']} is a folder of the node"
    for container in pod.containers:
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{container['name']} listens on the node's address"


def bounds_its_scratch_space(pod: Pod) -> Iterator[str]:
    for volume in pod.spec.get("volumes", []):
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} may fill the node's disk"


def cannot_ask_the_api_server(pod: Pod) -> Iterator[str]:
    token, account = pod.spec.get("automountServiceAccountToken"), pod.spec.get("serviceAccountName")
    if pod.autoscaler is not None:
        # KubeRay makes an account with a role where none is named; the autoscaler is nothing without its token
        if token is not True or account is not None:
            yield "the autoscaler needs the token of an account of its own"
    elif token is not False or account in (None, "default"):
        yield "has a token of the API server, or the account that everybody has"


def names_no_secret(pod: Pod) -> Iterator[str]:
    for container in pod.containers:
        for variable in container.get("env", []):
            if re.search(r"PASSWORD|SECRET|TOKEN|SALT|ACCESS_KEY|CREDENTIAL", variable["name"]) and "value" in variable:
                yield f"{container['name']} has {variable['name']} in clear"


def says_each_name_once(pod: Pod) -> Iterator[str]:
    """The API server refuses a list with a name twice, and kustomize's patches may make one."""
    volumes = [volume["name"] for volume in pod.spec.get("volumes", [])]
    lists = [("volume", volumes), ("container", [container["name"] for container in pod.containers])]
    for container in pod.containers:
        lists.append((f"{container['name']} variable", [v["name"] for v in container.get("env", [])]))
        lists.append((f"{container['name']} mount", [m["mountPath"] for m in container.get("volumeMounts", [])]))
    for what, names in lists:
        yield from (f"{what} {name} twice" for name in sorted({name for name in names if names.count(name) > 1}))


def mounts_what_it_has(pod: Pod) -> Iterator[str]:
    """`database` and `objects` are of claims that a StatefulSet makes beside its template."""
    volumes = {volume["name"] for volume in pod.spec.get("volumes", [])} | {"database", "objects"}
    for container in pod.containers:
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{container['name']} mounts {mount['name']}, which is no volume"


RULES: tuple[Rule, ...] = (
    runs_as_somebody,
    gains_no_privilege,
    has_no_capability,
    is_under_seccomp,
    writes_into_volumes_alone,
    stays_within_resources,
    answers_probes,
    runs_a_known_image,
    shares_nothing_with_its_node,
    bounds_its_scratch_space,
    cannot_ask_the_api_server,
    names_no_secret,
    says_each_name_once,
    mounts_what_it_has,
)


def violations(pod: Pod) -> dict[str, list[str]]:
    """rule -> what breaks it."""
    found = {rule.__name__: list(rule(pod)) for rule in RULES}
    return {name: lines for name, lines in found.items() if lines}
