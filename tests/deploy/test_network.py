"""Who may speak with whom: read off the policies from both ends, and compared with a table written by hand."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.manifests import GPU, K8S, PLATFORMS, Manifest, Pod, build, build_with, name_of, of_kind, pods
from tests.deploy.test_schemas import complaints

COMPONENT = "app.kubernetes.io/component"
ANY = 0  # every port
OUTSIDE = "outside"  # another namespace

# from | to | port
FLOWS = {
    ("ray-head", "ray-head", ANY),
    ("ray-head", "ray-worker", ANY),
    ("ray-worker", "ray-head", ANY),
    ("ray-worker", "ray-worker", ANY),
    ("ray-submitter", "ray-head", 8265),
    ("ray-head", "mlflow", 5000),
    ("ray-worker", "mlflow", 5000),
    ("mlflow", "postgres", 5432),
    ("mlflow", "objectstore", 8333),
}
# of other namespaces, by the namespace's name or the address
FROM_OUTSIDE = {("kuberay-system", "ray-head", 8265)}
TO_OUTSIDE = {(who, "kube-system", 53) for flow in FLOWS for who in flow[:2]}
INGRESS = {("traefik", "mlflow", 5000)}
AUTOSCALER = {("ray-head", "192.0.2.1/32", 6443)}  # of the block for documentation: nobody's


def pods_of(folder: str) -> list[Pod]:
    return pods(build(folder) + build(f"{folder}/jobs"))


def selected(selector: Manifest, found: list[Pod]) -> list[Pod]:
    def fits(pod: Pod) -> bool:
        labels = selector.get("matchLabels", {})
        return all(pod.labels.get(key) == value for key, value in labels.items()) and all(
            rule["operator"] == "In" and pod.labels.get(rule["key"]) in rule["values"]
            for rule in selector.get("matchExpressions", [])
        )

    return [pod for pod in found if fits(pod)]


def flows(policies: list[Manifest], found: list[Pod], way: str) -> Iterator[tuple[str, str, int, bool]]:
    """(of the policy, of the rule, port, whether the other is outside) for each rule of that way, from or to."""
    for policy in policies:
        spec = policy["spec"]
        own = {pod.component for pod in selected(spec["podSelector"], found)}
        assert own, f"{name_of(policy)} selects no pod"
        for rule in spec.get("ingress" if way == "from" else "egress", []):
            ports = [port["port"] for port in rule.get("ports", [{"port": ANY}])]
            for peer in rule[way]:
                outside = "namespaceSelector" in peer or "ipBlock" in peer
                for other in others(peer, found, name_of(policy)):
                    yield from ((one, other, port, outside) for one in own for port in ports)


def others(peer: dict[str, Any], found: list[Pod], where: str) -> set[str]:
    if "ipBlock" in peer:
        return {peer["ipBlock"]["cidr"]}
    if "namespaceSelector" in peer:
        assert peer["podSelector"]["matchLabels"], f"{where}: every pod of a namespace"
        return {peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]}
    names = {pod.component for pod in selected(peer["podSelector"], found)}
    assert names, f"{where}: a peer that no pod is"
    return names


@pytest.mark.parametrize("folder", PLATFORMS)
def test_what_one_end_may_send_the_other_may_receive_and_nothing_else_flows(folder: str) -> None:
    found, policies = pods_of(folder), of_kind(build(folder), "NetworkPolicy")
    sent = set(flows(policies, found, "to"))
    received = {(other, own, port, outside) for own, other, port, outside in flows(policies, found, "from")}
    inside = {flow[:3] for flow in sent if not flow[3]}
    assert inside == {flow[:3] for flow in received if not flow[3]} == FLOWS
    assert {flow[:3] for flow in received if flow[3]} == FROM_OUTSIDE | (INGRESS if folder in GPU else set())
    autoscaler = AUTOSCALER if folder == "overlays/gpu" else set()
    assert {flow[:3] for flow in sent if flow[3]} == TO_OUTSIDE | autoscaler


@pytest.mark.parametrize("folder", PLATFORMS)
def test_all_else_is_denied(folder: str) -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of_kind(build(folder), "NetworkPolicy")}
    assert policies["deny-all"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for name, spec in policies.items():
        types = [kind for kind in ("Ingress", "Egress") if kind.lower() in spec]
        if name != "deny-all":
            assert spec["policyTypes"] == types, name


@pytest.mark.parametrize("folder", PLATFORMS)
def test_the_ports_of_policies_are_open_at_the_pods(folder: str) -> None:
    found = pods_of(folder)
    listening = {component: set[int]() for component in {pod.component for pod in found}}
    for pod in found:
        listening[pod.component] |= pod.ports
    policies = of_kind(build(folder), "NetworkPolicy")
    for own, _, port, _ in flows(policies, found, "from"):
        assert port == ANY or port in listening[own], f"nothing of {own} listens on {port}"


@pytest.mark.parametrize("folder", PLATFORMS)
def test_services_stay_inside_and_reach_a_port_of_a_pod(folder: str) -> None:
    manifests = build(folder)
    found = pods(manifests)
    services = of_kind(manifests, "Service")
    assert {service["metadata"]["name"] for service in services} == {"mlflow", "postgres", "objectstore"}
    for service in services:
        spec = service["spec"]
        assert spec.get("type", "ClusterIP") == "ClusterIP" and "externalIPs" not in spec
        for pod in (reached := selected({"matchLabels": spec["selector"]}, found)):
            named = {port["name"]: port["containerPort"] for c in pod.containers for port in c.get("ports", [])}
            assert all(named[port["targetPort"]] == port["port"] for port in spec["ports"])
        assert reached, name_of(service)


@pytest.mark.parametrize("folder", PLATFORMS)
def test_ray_opens_nothing_to_the_outside(folder: str) -> None:
    manifests = build(folder) + build(f"{folder}/jobs")
    heads = [spec["headGroupSpec"] for spec in specs_with(manifests, "headGroupSpec")]
    assert heads
    for head in heads:
        assert head["serviceType"] == "ClusterIP"
        assert not {"enableIngress", "ingressOptions", "headService"} & set(head)


def specs_with(node: Any, key: str) -> Iterator[Manifest]:
    if isinstance(node, dict):
        if key in node:
            yield node
        for below in node.values():
            yield from specs_with(below, key)
    elif isinstance(node, list):
        for below in node:
            yield from specs_with(below, key)


@pytest.mark.parametrize("folder", PLATFORMS)
def test_the_component_for_a_bucket_opens_the_one_way_to_it(folder: str, tmp_path: Path) -> None:
    found = build_with(K8S / "components" / "bucket", folder, tmp_path)
    more = [p for p in of_kind(found, "NetworkPolicy") if name_of(p) not in {name_of(old) for old in build(folder)}]
    assert {p["metadata"]["namespace"] for p in more} == {"maetrain"}
    assert [line for policy in more for line in complaints(policy, None)] == []
    assert set(flows(more, pods(found), "to")) == {
        (who, "192.0.2.2/32", 443, True) for who in ("ray-head", "ray-worker")
    }


@pytest.mark.parametrize("folder", PLATFORMS)
def test_the_one_way_in_is_an_ingress_to_mlflow_under_tls(folder: str) -> None:
    manifests = build(folder)
    ingresses = of_kind(manifests, "Ingress")
    assert len(ingresses) == (folder in GPU)
    for ingress in ingresses:
        secured = {host for tls in ingress["spec"]["tls"] for host in tls["hosts"] if tls["secretName"]}
        assert "defaultBackend" not in ingress["spec"]
        for rule in ingress["spec"]["rules"]:
            assert rule["host"] in secured
            backends = [path["backend"]["service"] for path in rule["http"]["paths"]]
            assert backends == [{"name": "mlflow", "port": {"name": "http"}}]
            (mlflow,) = of_kind(manifests, "Deployment")
            variables = mlflow["spec"]["template"]["spec"]["containers"][0]["env"]
            (hosts,) = [variable["value"] for variable in variables if variable["name"] == "ALLOWED_HOSTS"]
            assert rule["host"] in hosts.split(",")


@pytest.mark.parametrize("folder", PLATFORMS)
def test_the_quota_allows_no_service_that_opens_a_port(folder: str) -> None:
    (quota,) = of_kind(build(folder), "ResourceQuota")
    assert quota["spec"]["hard"]["services.nodeports"] == quota["spec"]["hard"]["services.loadbalancers"] == "0"


@pytest.mark.parametrize("folder", PLATFORMS)
def test_disruption_budgets_are_of_pods_that_exist(folder: str) -> None:
    found = pods_of(folder)
    for budget in of_kind(build(folder), "PodDisruptionBudget"):
        chosen = {pod.component for pod in selected(budget["spec"]["selector"], found)}
        assert chosen == {budget["metadata"]["name"]}
        if budget["metadata"]["name"].startswith("ray-"):
            # of pods without a scale, which Ray's are, only this form counts
            assert isinstance(budget["spec"]["minAvailable"], int)


def test_every_address_in_the_manifests_is_a_service_of_ours() -> None:
    known = {
        (service["metadata"]["name"], port["port"])
        for service in of_kind(build("base"), "Service")
        for port in service["spec"]["ports"]
    }
    for file in K8S.rglob("*.yaml"):
        for host, port in re.findall(r"(?:http://|@)([a-z][\w.-]*):(\d+)", file.read_text()):
            assert (host, int(port)) in known, f"{file.name}: {host}:{port}"
