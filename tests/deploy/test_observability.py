"""Scrape configuration, alerts and dashboard: against a real Prometheus, and against what a real run has exported."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import ray
import yaml

from cluster.session import Resources
from data_shards.build import BuildConfig, build
from maetrain.tracking.tracker import NullTracker
from maetrain.train.wishes import Stopped
from tests.deploy.manifests import Manifest, build_with, name_of, of_kind, pods
from tests.deploy.manifests import build as manifests_of
from tests.deploy.test_network import flows, selected
from tests.deploy.test_schemas import complaints
from tests.docs.blocks import ROOT
from tests.integration.settings import tiny
from tests.integration.test_group import metrics_of_this_node, train
from tests.integration.test_launchers import setup_of
from tests.maetrain.tracking.stores import free_port, wait_for

FOLDER = ROOT / "deploy" / "observability"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
RULES = yaml.safe_load((FOLDER / "rules.yml").read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(f"{panel['title']} {target['refId']}", target) for panel in PANELS for target in panel["targets"]]
# of machines with GPUs, and of Kubernetes: a run on a laptop exports none of them
ELSEWHERE = re.compile(r"ray_node_g(pus|ram)_|kubelet_")


@pytest.fixture(scope="module")
def promtool() -> str:
    if (found := shutil.which("promtool")) is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    return found


def run(*words: str) -> str:
    done = subprocess.run(words, cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_the_configuration_and_the_rules(promtool: str) -> None:
    assert "SUCCESS" in run(promtool, "check", "config", "prometheus.yml")
    assert f"SUCCESS: {len(ALERTS)} rules" in run(promtool, "check", "rules", "--lint=all", "--lint-fatal", "rules.yml")


def test_every_alert_fires_and_keeps_still_where_it_should(promtool: str) -> None:
    run(promtool, "test", "rules", str(Path(__file__).with_name("rules_test.yml")))


def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not() -> None:
    cases = yaml.safe_load(Path(__file__).with_name("rules_test.yml").read_text())["tests"]
    asked = [(test["alertname"], bool(test.get("exp_alerts"))) for case in cases for test in case["alert_rule_test"]]
    for name in ALERTS:
        assert (name, True) in asked and (name, False) in asked, name
    assert {name for name, _ in asked} == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_it_is_and_where_its_runbook_is(name: str) -> None:
    annotations = ALERTS[name]["annotations"]
    page, _, anchor = annotations["runbook"].partition("#")
    assert page == "docs/troubleshooting.md" and anchor == name.lower()
    headings = re.findall(r"^### (\S+)\n\n(\S.*)", (ROOT / page).read_text(), re.MULTILINE)
    assert [text for heading, text in headings if heading == name], f"{page} says nothing about {name}"
    assert ALERTS[name]["labels"]["severity"] in ("critical", "warning") and "$labels" in annotations["summary"]


def test_the_page_tells_of_no_alert_that_is_not_there() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert set(re.findall(r"^### (Maetrain\w+)$", page, re.MULTILINE)) == set(ALERTS)


# Grafana


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    """By the model in Grafana's documentation: what is required, nothing of one installation's own."""
    assert DASHBOARD["uid"] == "maetrain" and DASHBOARD["title"] and "id" not in DASHBOARD
    assert isinstance(DASHBOARD["schemaVersion"], int) and DASHBOARD["schemaVersion"] >= 39
    assert "__inputs" not in DASHBOARD
    assert set(DASHBOARD["time"]) == {"from", "to"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["type"] == "timeseries" and panel["title"] and panel["datasource"] == source
        assert set(panel["fieldConfig"]) == {"defaults", "overrides"} and panel["fieldConfig"]["defaults"]["unit"]
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
        assert all(target["datasource"] == source and target["expr"] for target in panel["targets"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)


def test_panels_lie_in_the_grid_of_24_columns_beside_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert set(at) == {"h", "w", "x", "y"} and at["x"] + at["w"] <= 24
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert taken.setdefault(cell, panel["title"]) == panel["title"], cell


def test_datasource_and_run_are_chosen_by_the_reader() -> None:
    source, of_run = DASHBOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (of_run["name"], of_run["type"]) == ("run", "query")
    assert of_run["multi"] and of_run["includeAll"] and of_run["allValue"] == ".+"
    assert of_run["query"]["query"] == of_run["definition"]
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert used == {"datasource", "run"}
    for where, target in TARGETS:
        of_runs = target["expr"].count("ray_maetrain_")
        assert target["expr"].count('{run=~"$run"}') == of_runs, where


# Kubernetes


@pytest.fixture(scope="module", params=["base", "overlays/local", "overlays/gpu"])
def with_component(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    """A platform to which somebody has added the component, and its jobs."""
    folder = tmp_path_factory.mktemp("overlay")
    return build_with(FOLDER, request.param, folder) + manifests_of(f"{request.param}/jobs")


def added(manifests: list[Manifest]) -> dict[str, Manifest]:
    names = ("PodMonitor/ray", "PrometheusRule/maetrain", "NetworkPolicy/prometheus-to-ray")
    found = {name_of(m): m for m in manifests if name_of(m) in (*names, "ConfigMap/maetrain-dashboard")}
    assert len(found) == 4
    return found


def test_the_operator_gets_the_same_alerts_as_a_prometheus_of_ones_own(with_component: list[Manifest]) -> None:
    rule = added(with_component)["PrometheusRule/maetrain"]
    assert rule["spec"] == RULES and rule["apiVersion"] == "monitoring.coreos.com/v1"


def test_prometheus_may_reach_the_metrics_of_every_ray_pod_and_nothing_else(with_component: list[Manifest]) -> None:
    policy = added(with_component)["NetworkPolicy/prometheus-to-ray"]
    received = set(flows([policy], pods(with_component), "from"))
    assert received == {(who, "monitoring", 8080, True) for who in ("ray-head", "ray-worker")}
    assert policy["spec"]["policyTypes"] == ["Ingress"]


def test_every_ray_pod_is_scraped_at_a_port_that_it_has(with_component: list[Manifest]) -> None:
    monitor = added(with_component)["PodMonitor/ray"]
    assert set(monitor["spec"]) == {"selector", "podTargetLabels", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    ray_pods = [pod for pod in pods(with_component) if pod.component in ("ray-head", "ray-worker")]
    chosen = selected(monitor["spec"]["selector"], pods(with_component))
    assert [pod.where for pod in chosen] == [pod.where for pod in ray_pods] and len(chosen) > 2
    for pod in chosen:
        ports = {port["name"]: port["containerPort"] for c in pod.containers for port in c.get("ports", [])}
        assert ports[endpoint["port"]] == 8080
    for manifest in added(with_component).values():
        spaces = {m["metadata"]["namespace"] for m in of_kind(with_component, "RayCluster")}
        assert {manifest["metadata"]["namespace"]} == spaces


def test_grafanas_sidecar_finds_the_dashboard(with_component: list[Manifest]) -> None:
    config_map = added(with_component)["ConfigMap/maetrain-dashboard"]
    assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config_map["data"]["maetrain.json"]) == DASHBOARD
    assert len(json.dumps(config_map)) < 2**18, "kubectl apply keeps a copy in an annotation, of 256 KiB at most"


def test_kubernetes_takes_what_is_of_its_own_kinds(with_component: list[Manifest]) -> None:
    own = [m for m in added(with_component).values() if not m["apiVersion"].startswith("monitoring.")]
    assert len(own) == 2 and [line for manifest in own for line in complaints(manifest, None)] == []


# what a real run exports

Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def exported(ray_resources: Resources, small_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """All metrics of this node while a pretraining runs on it, as Prometheus gets them."""
    folder = tmp_path_factory.mktemp("observed")
    index = build(small_archive, folder / "shards", BuildConfig(format="zarr"))
    config = tiny("pretrain.steps=100000", "pretrain.checkpoint_every=20")
    scraped: list[str] = []

    def look() -> None:
        deadline = time.monotonic() + 240
        while not _is_whole(scraped[-1] if scraped else "") and time.monotonic() < deadline:
            time.sleep(1)
            scraped.append(metrics_of_this_node())
        os.kill(os.getpid(), signal.SIGINT)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        train(setup_of(config, index, folder / "run"), config, ray_resources, NullTracker())
    except Stopped:
        pass
    finally:
        looking.join()
    assert ray.is_initialized() and _is_whole(scraped[-1])
    return scraped[-1]


def _is_whole(text: str) -> bool:
    # of a start, the last one of a step, and of the node: each comes in a round of its own
    awaited = ("ray_maetrain_pretrain_committed_step", "ray_maetrain_pretrain_step", "ray_node_disk_free")
    return all(f"\n{name}{{" in text for name in awaited)


@pytest.fixture(scope="module")
def ask(exported: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """A real Prometheus with the shipped configuration that has scraped this text some times."""
    if (binary := shutil.which("prometheus")) is None:
        pytest.skip("needs prometheus (Debian: apt-get install prometheus)")
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    (folder / "metrics").write_text(exported)
    with served(folder) as address:
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(FOLDER / file) for file in config["rule_files"]]
        (job,) = config["scrape_configs"]
        # as Ray writes it
        (folder / "nodes.json").write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [address]}]))
        job["file_sd_configs"][0]["files"] = [str(folder / "nodes.json")]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        here = f"127.0.0.1:{port}"
        options = ["--config.file", "prometheus.yml", "--storage.tsdb.path", "data", "--web.listen-address", here]
        process = subprocess.Popen([binary, *options], cwd=folder, stderr=(folder / "log").open("wb"))

        def ask(what: str, **parameters: str) -> Any:
            with urllib.request.urlopen(f"http://{here}/api/v1/{what}?{urlencode(parameters)}", timeout=30) as answer:
                return json.load(answer)["data"]

        def has_scraped() -> bool:
            try:
                return bool(ask("query", query="count_over_time(up[1m]) > 2 and up == 1")["result"])
            except OSError:
                return False

        try:
            wait_for(has_scraped, "Prometheus", process)
            yield ask
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        extensions_map = {"": "text/plain"}

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def without_limits(expression: str) -> str:
    """An alert's expression that has a value also where it does not fire."""
    return re.sub(r"(==|>=|<=|<|>) (?=\d)", r"\1 bool ", re.sub(r" offset \w+", "", expression))


def complaint(ask: Ask, expression: str, shown: set[str]) -> str | None:
    """What is unknown in it. `shown`: labels that a legend or a summary names."""
    for metric, label in re.findall(
        r"\b([a-z]\w+_\w+)(?:\{(\w+)=)?", re.sub(r"by \([^)]*\)|\w+_over_time", "", expression)
    ):
        series = ask("series", **{"match[]": metric})
        if not series:
            return f"no metric {metric}"
        if label and not all(label in one for one in series):
            return f"{metric} has no label {label}"
    grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
    result = ask("query", query=expression)["result"]
    if not result:
        return "no data"
    missing = {label for one in result for label in grouped | shown if not one["metric"].get(label)}
    return f"no label {sorted(missing)}" if missing else None


def labels_in(text: str) -> set[str]:
    return set(re.findall(r"\{\{ *(?:\$labels\.)?([A-Za-z]\w*) *\}\}", text))


@pytest.mark.deploy
@pytest.mark.timeout(900)
def test_every_query_of_the_dashboard_has_data_in_a_real_run(ask: Ask) -> None:
    wrong = {}
    for where, target in TARGETS:
        if not ELSEWHERE.search(target["expr"]):
            expression = target["expr"].replace("$run", ".+")
            wrong[where] = complaint(ask, expression, labels_in(target["legendFormat"]))
    assert len(wrong) >= 15 and not {where: why for where, why in wrong.items() if why}


@pytest.mark.deploy
def test_every_alert_knows_the_metrics_of_a_real_run(ask: Ask) -> None:
    known = {name: rule for name, rule in ALERTS.items() if not ELSEWHERE.search(rule["expr"])}
    wrong = {
        name: complaint(ask, without_limits(rule["expr"]), labels_in(rule["annotations"]["summary"]))
        for name, rule in known.items()
    }
    assert len(wrong) == len(ALERTS) - 1 and not {name: why for name, why in wrong.items() if why}
    assert {rule["name"] for group in ask("rules")["groups"] for rule in group["rules"]} == set(ALERTS)
    assert all(rule["health"] == "ok" for group in ask("rules")["groups"] for rule in group["rules"])


@pytest.mark.deploy
def test_the_list_of_runs_is_filled(ask: Ask) -> None:
    definition = DASHBOARD["templating"]["list"][1]["definition"]
    ((metric, label),) = re.findall(r"label_values\((\w+), (\w+)\)", definition)
    assert ask(f"label/{label}/values", **{"match[]": metric}) == ["run"]


@pytest.mark.deploy
def test_every_measure_of_a_run_is_on_the_dashboard(exported: str) -> None:
    measured = set(re.findall(r"^(ray_maetrain_\w+)\{", exported, re.MULTILINE))
    assert len(measured) == 13
    assert measured == set(re.findall(r"ray_maetrain_\w+", " ".join(target["expr"] for _, target in TARGETS)))


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("expression", "shown", "said"),
    [
        ("max by (run) (ray_maetrain_pretrain_lost)", {"run"}, "no metric ray_maetrain_pretrain_lost"),
        ("max by (runs) (ray_maetrain_pretrain_loss)", set(), "no label ['runs']"),
        ("max by (run) (ray_maetrain_pretrain_loss)", {"name"}, "no label ['name']"),
        (
            'max by (run) (ray_maetrain_pretrain_loss{rum=~".+"})',
            {"run"},
            "ray_maetrain_pretrain_loss has no label rum",
        ),
        ("ray_node_mem_used > 1e30", {"instance"}, "no data"),
        ("sum by (run) (avg_over_time(ray_maetrain_pretrain_step_s[15m]))", {"run"}, None),
    ],
)
def test_a_misspelt_query_is_caught(ask: Ask, expression: str, shown: set[str], said: str | None) -> None:
    assert complaint(ask, expression, shown) == said


def test_metrics_of_gpus_are_called_as_ray_calls_them() -> None:
    """No machine with a GPU is needed: Ray's own table of what it reports."""
    from ray.dashboard.modules.reporter.reporter_agent import GPU_TAG_KEYS, METRICS_GAUGES

    asked = [target for _, target in TARGETS if ELSEWHERE.search(target["expr"])]
    assert len(asked) == 2
    for target in asked:
        for metric in re.findall(r"ray_node_g\w+", target["expr"]):
            assert metric.removeprefix("ray_") in METRICS_GAUGES
        assert labels_in(target["legendFormat"]) <= {*GPU_TAG_KEYS, "instance"}
