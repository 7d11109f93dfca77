"""What the cluster's Prometheus and autoscalers are told: series that exist, rules made of ours."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.telemetry.series import LATENCY_S
from tests.monitoring import MATCHER, RULES, exposing, rules, selectors, start_prometheus
from tests.test_deploy.kubernetes import FOLDER, Manifest, built, container, kustomize, of_kind
from tests.test_deploy.kubernetes import parsed as manifests_of
from tests.test_deploy.test_monitoring_files import needs_promtool, promtool, selects
from tests.test_end_to_end.conftest import free_port
from tests.test_service.test_telemetry.test_metrics import VRAM, Read
from tools.kubernetes_rules import MADE, WRITTEN, prometheus_rule

KEDA, HPA, HPA_CPU = "components/keda", "components/hpa", "components/hpa-cpu"
OF_THE_TARGET = {"namespace", "pod", "service", "container", "job", "instance"}
"""Labels that the operator or our monitor sets, not the service."""

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs Debian's package prometheus"
)


def scaled_object() -> dict[str, Any]:
    spec: dict[str, Any] = of_kind(built("overlays/cpu", KEDA), "ScaledObject")["spec"]
    return spec


def autoscaler(component: str) -> dict[str, Any]:
    made = built("overlays/cpu", component)
    spec: dict[str, Any] = of_kind(made, "HorizontalPodAutoscaler")["spec"]
    return spec


def adapted() -> dict[str, str]:
    """Return the PromQL of each metric that the adapter offers, for one pod."""
    text = (FOLDER / "components" / "hpa" / "adapter.yaml").read_text()
    found = {}
    for rule in yaml.safe_load(text)["rules"]["custom"]:
        query = rule["metricsQuery"]
        for written, meant in (
            ("<<.Series>>", rule["seriesQuery"].partition("{")[0]),
            ("<<.LabelMatchers>>", 'namespace="world-model",pod="one"'),
            ("<<.GroupBy>>", "pod"),
        ):
            query = query.replace(written, meant)
        assert "<<" not in query
        found[rule["name"]["as"]] = query
    return found


def triggers() -> dict[str, dict[str, str]]:
    return {x["name"]: x["metadata"] for x in scaled_object()["triggers"]}


def asked() -> dict[str, str]:
    return {**{name: x["query"] for name, x in triggers().items()}, **adapted()}


def test_the_operators_rules_are_prometheus_own() -> None:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]

    assert MADE.read_text() == prometheus_rule(WRITTEN), "run: python -m tools.kubernetes_rules"
    assert yaml.safe_load(MADE.read_text())["spec"]["groups"] == groups


def test_a_file_without_groups_is_no_rules(tmp_path: Path) -> None:
    (tmp_path / "empty.yml").write_text("rules: []\n")

    with pytest.raises(ValueError, match="no groups"):
        prometheus_rule(tmp_path)


@pytest.mark.parametrize("name", ["keda", "adapter"])
def test_every_query_asks_for_series_that_the_service_has(name: str) -> None:
    queries = adapted() if name == "adapter" else {n: x["query"] for n, x in triggers().items()}
    families = list(Read(VRAM).registry.collect())

    for query in queries.values():
        for selector, matchers in selectors(query).items():
            metric = selector.partition("{")[0]
            own = [x for x in matchers if x[0] not in OF_THE_TARGET]
            found = [s.labels for family in families for s in family.samples if s.name == metric]
            assert any(selects(labels, own) for labels in found), selector


def test_the_adapter_offers_what_the_autoscaler_asks_for() -> None:
    metrics = autoscaler(HPA)["metrics"]

    assert {x["pods"]["metric"]["name"] for x in metrics} == set(adapted())


def grows(metric: str, labels: str, each_10_s: float) -> dict[str, str]:
    """Return a counter, or with 0 something that stays, as promtool reads it."""
    return {"series": f"{metric}{{{labels}}}", "values": f"1+{each_10_s:g}x60"}


def of(pod: str, namespace: str = "world-model") -> str:
    return f'namespace="{namespace}",pod="{pod}"'


WAITED, BUSY = "world_model_queue_row_seconds_total", "world_model_engine_busy_seconds_total"
# 256 and 128 rows wait; engines compute 90 and 40 % of the time. Another namespace is none of ours.
SERIES = [
    grows("world_model_ready", of("one"), 0),
    grows("world_model_ready", of("two"), 0),
    grows("world_model_ready", of("one", "other"), 0),
    grows(WAITED, of("one") + ',class="rollout"', 2560),
    grows(WAITED, of("two") + ',class="safety"', 1280),
    grows(WAITED, of("one", "other") + ',class="safety"', 99999),
    grows(BUSY, of("one"), 9),
    grows(BUSY, of("two"), 4),
    grows(BUSY, of("one", "other"), 10),
]


def checks(each_10_s: float) -> list[dict[str, str]]:
    """Return safety checks of both pods that take 25 to 50 ms: 99 of 100 take 49.75 at most."""
    return [
        grows(
            "world_model_request_seconds_bucket",
            f'{of(pod)},endpoint="/safety-check",le="{le}"',
            0 if le == "0.025" else each_10_s,
        )
        for pod in ("one", "two")
        for le in ("0.025", "0.05", "+Inf")
    ]


SOME, NONE = checks(10), checks(0)


@needs_promtool
@pytest.mark.parametrize(
    ("name", "also", "value"),
    [
        ("waiting-rows", NONE, 384.0),
        ("busy-engines", NONE, 1.3),
        ("safety-check-p99", SOME, 2 * 0.04975),
        ("safety-check-p99", NONE, 0.0),
        ("world_model_waiting_rows", NONE, 256.0),
        ("world_model_busy_engines", NONE, 0.9),
        ("world_model_safety_check_p99_seconds", SOME, 0.04975),
        ("world_model_safety_check_p99_seconds", NONE, 0.0),
    ],
)
def test_queries_say_what_is_scaled_by(
    name: str, also: list[dict[str, str]], value: float, tmp_path: Path
) -> None:
    # promtool compares every digit.
    near = f"abs(({asked()[name]}) - {value}) < bool 1e-6"
    labels = '{pod="one"}' if name in adapted() else "{}"
    expected = {"expr": near, "eval_time": "5m", "exp_samples": [{"labels": labels, "value": 1}]}
    test = {"interval": "10s", "input_series": SERIES + also, "promql_expr_test": [expected]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump({"tests": [test]}))

    promtool("test", "rules", tmp_path / "test.yml")


def test_a_scaler_that_sees_nothing_takes_nothing_away() -> None:
    spec = scaled_object()

    # No series is an error, and errors lead to the fallback, which only average values have.
    assert {x["metadata"]["ignoreNullValues"] for x in spec["triggers"]} == {"false"}
    assert {x["metricType"] for x in spec["triggers"]} == {"AverageValue"}
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"
    assert spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]


@pytest.mark.parametrize("component", [KEDA, HPA, HPA_CPU])
def test_who_scales_sets_the_replicas_alone_and_one_may_always_go(component: str) -> None:
    made = built("overlays/cpu", component)
    scaler = next(x for x in made if x["kind"] in ("ScaledObject", "HorizontalPodAutoscaler"))
    deployment = of_kind(made, "Deployment")
    spec = scaler["spec"]

    assert spec["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]
    assert of_kind(built("overlays/cpu"), "Deployment")["spec"]["replicas"] == 2
    assert spec.get("minReplicas", spec.get("minReplicaCount")) >= 2


@pytest.mark.parametrize("second", [HPA, HPA_CPU])
def test_two_scalers_do_not_build(second: str) -> None:
    with pytest.raises(ValueError, match="/spec/replicas"):
        built("overlays/cpu", KEDA, second)


def number(quantity: str) -> float:
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


def test_the_autoscalers_decide_alike() -> None:
    keda, plain, by_cpu = scaled_object(), autoscaler(HPA), autoscaler(HPA_CPU)
    targets = [number(x["pods"]["target"]["averageValue"]) for x in plain["metrics"]]

    assert targets == [float(x["threshold"]) for x in triggers().values()]
    for other in (plain, by_cpu):
        assert other["behavior"] == keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert other["minReplicas"] == keda["minReplicaCount"]
        assert other["maxReplicas"] == keda["maxReplicaCount"]


def test_more_safety_checks_are_scaled_for_before_the_alert() -> None:
    (bound,) = re.findall(r"vector\(([\d.]+)\)", rules("record")["safety_check:p99_bound_seconds"])
    target = float(triggers()["safety-check-p99"]["threshold"])

    assert target == float(bound) / 2
    assert target in LATENCY_S  # between two bounds of buckets a quantile is a guess


def test_a_busy_engine_alone_reaches_the_target_of_cpu_time() -> None:
    (metric,) = autoscaler(HPA_CPU)["metrics"]
    cores = float(container(built("overlays/cpu"))["resources"]["requests"]["cpu"])

    busy = 1 / cores  # one thread computes
    assert metric["resource"]["target"]["averageUtilization"] / 100 < busy


def test_another_namespace_is_one_in_the_queries_too() -> None:
    spec = of_kind(manifests_of(kustomize(FOLDER / "example")), "ScaledObject")["spec"]

    found = {x["metadata"]["query"]: x["metadata"]["query"] for x in spec["triggers"]}
    for query in found:
        named = [value for label, _, value in MATCHER.findall(query) if label == "namespace"]
        assert named
        assert set(named) == {"driving"}


def snake(name: str) -> str:
    return re.sub(r"([A-Z])", lambda match: f"_{match[1].lower()}", name)


def relabelings(monitor: Manifest) -> list[dict[str, Any]]:
    """Return what the Prometheus operator makes of a monitor: its own labels first, then ours."""
    (endpoint,) = monitor["spec"]["endpoints"]
    operators = [
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_service_name"], "target_label": "service"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
        {"source_labels": ["__meta_kubernetes_pod_container_name"], "target_label": "container"},
        {"source_labels": ["__meta_kubernetes_service_name"], "target_label": "job"},
        {"target_label": "endpoint", "replacement": endpoint["port"]},
    ]
    ours = [{snake(name): x for name, x in rule.items()} for rule in endpoint["relabelings"]]
    return [*operators, *ours]


@needs_prometheus
@pytest.mark.slow
def test_the_rules_find_what_the_monitor_has_scraped(tmp_path: Path) -> None:
    made = built("overlays/cpu", "components/monitoring")
    text = bytes(Read(VRAM).metrics.render())
    port = free_port()
    with exposing(text) as address:
        configuration = {
            "global": {
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "evaluation_interval": "1s",
            },
            "rule_files": ["rules.yml"],
            "scrape_configs": [
                {
                    "job_name": "serviceMonitor/world-model/world-model/0",
                    "relabel_configs": relabelings(of_kind(made, "ServiceMonitor")),
                    "static_configs": [
                        {
                            "targets": [address],
                            "labels": {
                                "__meta_kubernetes_namespace": "world-model",
                                "__meta_kubernetes_service_name": "behind-a-prefix",
                                "__meta_kubernetes_pod_name": "world-model-1a2b",
                                "__meta_kubernetes_pod_container_name": "world-model",
                            },
                        }
                    ],
                }
            ],
        }
        (tmp_path / "rules.yml").write_text(yaml.safe_dump(of_kind(made, "PrometheusRule")["spec"]))
        prometheus = start_prometheus(tmp_path, port, yaml.safe_dump(configuration))
        try:
            prometheus.wait_until_ready()
            recorded = (
                "instance_endpoint:world_model_outcomes:rate5m"
                '{job="world-model",instance="world-model-1a2b",endpoint="/safety-check"}'
            )
            prometheus.wait_until(
                "the rules were evaluated", lambda: bool(prometheus.query(recorded))
            )
            (ready,) = prometheus.query("world_model_ready")
            up = prometheus.query('up{job="world-model"} == 1')
            pushed_aside = prometheus.query('{exported_endpoint!=""}')
            alerts = [x["labels"]["alertname"] for x in prometheus.get("alerts")["alerts"]]
        finally:
            prometheus.stop()

    # What the queries of KEDA and of the adapter select by.
    assert (
        ready["metric"].items() >= {"namespace": "world-model", "pod": "world-model-1a2b"}.items()
    )
    assert len(up) == 1
    assert pushed_aside == []
    assert "WorldModelDown" not in alerts
