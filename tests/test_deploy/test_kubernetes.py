"""The manifests of `deploy/kubernetes/`: valid, safe, and about what the service really does."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from service import __version__
from service.server import _CUT_OFF_S, _LAST_RESORT_S
from service.settings import PREFIX, Settings
from tests.fakes.engine import ACTIONS, STATE, FakeEngine, serving
from tests.test_deploy.kubernetes import (
    FOLDER,
    ROOT,
    Manifest,
    built,
    configured,
    container,
    kustomize,
    mebibytes,
    of_kind,
    parsed,
    pod,
    pod_labels,
    validate,
)
from tests.test_deploy.test_container_files import final_stage, image_settings

OVERLAYS = ("overlays/cpu", "overlays/gpu", "overlays/mig", "overlays/kserve")
SCALERS = ("components/keda", "components/hpa", "components/hpa-cpu")
OTHERS = ("components/monitoring", "components/checkpoint", "components/tracing")
OWN = (
    "WORLD_MODEL_CHECKPOINT=/checkpoints/new",
    "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318",
)
"""Settings that the components ask a user for."""

Case = tuple[str, ...]
CASES: list[Case] = [
    *((overlay,) for overlay in OVERLAYS),
    *(("overlays/cpu", scaler) for scaler in SCALERS),
    ("overlays/mig", *OTHERS, "components/keda"),
    # Last: no Deployment is left after it for others to change.
    ("overlays/gpu", *OTHERS, "components/kserve"),
    ("example",),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "+".join(Path(x).name for x in case))
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return made(request.param)


def made(case: Case) -> list[Manifest]:
    needs_own = OTHERS[1] in case or OTHERS[2] in case
    return built(case[0], *case[1:], settings=OWN if needs_own else ())


def started(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> Settings:
    """Return the settings of a process that is started with these variables and no others."""
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return Settings()


def variables(manifests: list[Manifest]) -> dict[str, str]:
    """Return what the container's process finds: the image's, the ConfigMap's, then its own."""
    config = configured(manifests)
    found: dict[str, str] = {**image_settings(), **config}
    for entry in container(manifests)["env"]:
        if "value" in entry:
            found[entry["name"]] = entry["value"]
        elif "configMapKeyRef" in entry["valueFrom"]:
            reference = entry["valueFrom"]["configMapKeyRef"]
            assert reference["name"] == of_kind(manifests, "ConfigMap")["metadata"]["name"]
            found[entry["name"]] = config[reference["key"]]
        else:
            assert entry["name"] == "WORLD_MODEL_API_KEYS"
            found[entry["name"]] = "planner:0123456789abcdef0123456789abcdef"
    return found


def test_every_manifest_fits_the_published_schemas(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        validate(manifest)


@pytest.mark.parametrize("kind", ["Deployment", "ScaledObject", "ServiceMonitor"])
def test_a_field_that_is_not_known_is_refused(kind: str) -> None:
    manifest = of_kind(made(("overlays/cpu", *OTHERS, "components/keda")), kind)
    manifest["spec"]["replica"] = 2

    with pytest.raises(jsonschema.ValidationError, match="replica"):
        validate(manifest)


def test_every_folder_is_built_by_these_tests() -> None:
    there = {str(x.parent.relative_to(FOLDER)) for x in FOLDER.rglob("kustomization.yaml")}

    parts = {"base", "components/kserve/pod"}  # of others
    assert there - parts == {part for case in CASES for part in case}


def test_every_manifest_is_in_the_one_namespace(manifests: list[Manifest]) -> None:
    assert len({x["metadata"]["namespace"] for x in manifests}) == 1


def test_the_service_starts_with_what_the_pod_sets(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = started(monkeypatch, variables(manifests))

    assert settings.host == "0.0.0.0"
    assert settings.keys()
    (port,) = container(manifests)["ports"]
    assert (port["name"], port["containerPort"]) == ("http", settings.port)
    assert "hostPort" not in port


def test_what_is_no_setting_is_a_variable_that_is_documented(manifests: list[Manifest]) -> None:
    tracing = (ROOT / "docs" / "tracing.md").read_text()

    for name in variables(manifests):
        if not name.startswith(PREFIX):
            assert f"`{name}`" in tracing or name == "NVIDIA_VISIBLE_DEVICES"


def service_links(service: Manifest) -> dict[str, str]:
    """Return what Kubernetes sets in pods of a Service's namespace, unless told not to."""
    name = service["metadata"]["name"].upper().replace("-", "_")
    (port,) = service["spec"]["ports"]
    number, address = port["port"], "10.96.0.7"
    link = f"{name}_PORT_{number}_TCP"
    return {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(number),
        f"{name}_SERVICE_PORT_{port['name'].upper()}": str(number),
        f"{name}_PORT": f"tcp://{address}:{number}",
        link: f"tcp://{address}:{number}",
        f"{link}_PROTO": "tcp",
        f"{link}_PORT": str(number),
        f"{link}_ADDR": address,
    }


def test_with_service_links_the_service_would_not_start_so_there_are_none(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    links = service_links(of_kind(manifests, "Service"))

    with pytest.raises(ValidationError, match="enableServiceLinks: false"):
        started(monkeypatch, {**variables(manifests), **links})
    assert pod(manifests)["enableServiceLinks"] is False


def test_a_misspelt_setting_would_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = built("overlays/cpu", settings=("WORLD_MODEL_THREAD=2",))

    with pytest.raises(ValidationError, match="WORLD_MODEL_THREADS"):
        started(monkeypatch, variables(manifests))


async def test_probes_and_scrapes_are_answered_without_a_key_and_whatever_the_host() -> None:
    manifests = made(("overlays/cpu", "components/monitoring"))
    probes = {
        name: container(manifests)[f"{name}Probe"]["httpGet"]
        for name in ("startup", "readiness", "liveness")
    }
    (scrape,) = of_kind(manifests, "ServiceMonitor")["spec"]["endpoints"]

    async with serving(FakeEngine(), api_keys="planner:0123456789abcdef") as (app, client):
        answers = {}
        for path in (*(x["path"] for x in probes.values()), scrape["path"]):
            answer = await client.get(path, headers={"Host": "10.1.2.3:8000"})
            answers[path] = answer.status_code
        locked = await client.post("/rollout", json={"state": STATE, "actions": ACTIONS})
        app.health.start_draining()
        draining = {name: await client.get(x["path"]) for name, x in probes.items()}

    assert set(answers.values()) == {200}
    assert locked.status_code == 401
    assert {x["port"] for x in probes.values()} == {"http"} == {scrape["port"]}
    assert draining["readiness"].status_code == 503
    assert draining["liveness"].status_code == 200


def test_a_start_may_take_far_longer_than_one_that_was_measured(manifests: list[Manifest]) -> None:
    table = (ROOT / "docs" / "deployment.md").read_text()
    row = re.search(r"compiled anew \| [\d.]+ s \| [\d.]+, ([\d.]+) s", table)
    probe = container(manifests)["startupProbe"]

    assert row is not None
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 10 * float(row[1])


def test_a_pod_is_given_the_time_that_it_takes_to_end(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = started(monkeypatch, variables(manifests))
    probe = container(manifests)["readinessProbe"]

    end_s = settings.drain_delay_s + settings.shutdown_timeout_s + _LAST_RESORT_S + _CUT_OFF_S
    assert pod(manifests)["terminationGracePeriodSeconds"] >= end_s + 5
    # Whoever goes by the probe sees that it drains before it refuses.
    assert settings.drain_delay_s > 2 * probe["periodSeconds"] * probe["failureThreshold"]
    assert "lifecycle" not in container(manifests)


def test_nobody_in_the_pod_can_do_more_than_serve(manifests: list[Manifest]) -> None:
    user, _, group = final_stage()["USER"].partition(":")
    spec, rights = pod(manifests), container(manifests)["securityContext"]

    assert spec["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == of_kind(manifests, "ServiceAccount")["metadata"]["name"]
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user),
        "runAsGroup": int(group),
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert rights == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert "hostPath" not in str(spec["volumes"])


def test_without_keys_no_pod_starts(manifests: list[Manifest]) -> None:
    (keys,) = (x for x in container(manifests)["env"] if x["name"] == "WORLD_MODEL_API_KEYS")

    # Without `optional` a Secret that is missing stops the start.
    assert keys["valueFrom"] == {
        "secretKeyRef": {"name": "world-model-keys", "key": "WORLD_MODEL_API_KEYS"}
    }
    assert all(x["kind"] != "Secret" for x in manifests)


def test_what_is_written_has_a_bound_and_is_no_code(manifests: list[Manifest]) -> None:
    spec, box = pod(manifests), container(manifests)
    mounts = {x["mountPath"]: x for x in box["volumeMounts"]}
    volumes = {x["name"]: x for x in spec["volumes"]}
    cache = Path(variables(manifests)["WORLD_MODEL_CACHE_DIR"])
    limit = mebibytes(box["resources"]["limits"]["ephemeral-storage"])

    writable = {path: x for path, x in mounts.items() if not x.get("readOnly")}
    assert set(writable) == {final_stage()["WORKDIR"]}
    assert {x["name"] for x in mounts.values()} == set(volumes)
    for mount in writable.values():
        assert mebibytes(volumes[mount["name"]]["emptyDir"]["sizeLimit"]) < limit
    assert not any(cache.is_relative_to(path) for path in mounts)


def test_memory_is_a_multiple_of_what_was_measured(manifests: list[Manifest]) -> None:
    text = (ROOT / "docs" / "deployment.md").read_text()
    measured = re.search(r"with such callers \| \d+ MB resident, at most (\d+) MB", text)
    resources = container(manifests)["resources"]

    assert measured is not None
    assert mebibytes(resources["limits"]["memory"]) >= 4 * float(measured[1])
    # Evicted last (QoS class Guaranteed), and whole cores.
    for name in ("cpu", "memory"):
        assert resources["requests"][name] == resources["limits"][name]
    assert resources["limits"]["cpu"] == "2"


@pytest.mark.parametrize(
    ("overlay", "device", "resource"),
    [
        ("overlays/cpu", "cpu", None),
        ("overlays/kserve", "cpu", None),
        ("overlays/gpu", "cuda", "nvidia.com/gpu"),
        ("overlays/mig", "cuda", "nvidia.com/mig-1g.10gb"),
    ],
)
def test_image_device_and_gpu_belong_together(
    overlay: str, device: str, resource: str | None
) -> None:
    manifests = built(overlay)
    limits = container(manifests)["resources"]["limits"]

    assert container(manifests)["image"] == f"world-model:{__version__}-{device}"
    assert configured(manifests)["WORLD_MODEL_DEVICE"] == device
    asked = {name: x for name, x in limits.items() if name.startswith("nvidia.com/")}
    assert asked == ({} if resource is None else {resource: "1"})
    assert container(manifests)["resources"]["requests"].items() >= asked.items()
    # The image asks for every GPU of the node; a device plugin says which one instead.
    assert (variables(manifests).get("NVIDIA_VISIBLE_DEVICES") == "void") == (device == "cpu")


def test_the_budget_of_gpu_memory_fits_the_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    manifests = built("overlays/mig")
    (gigabytes,) = re.findall(r"mig-\dg\.(\d+)gb", str(container(manifests)["resources"]["limits"]))

    budget = started(monkeypatch, variables(manifests)).vram_budget_bytes
    assert budget + 2e9 < float(gigabytes) * 1e9


def test_selectors_find_the_pods_and_ports_that_are_there(manifests: list[Manifest]) -> None:
    labels, ports = pod_labels(manifests), {x["name"] for x in container(manifests)["ports"]}
    service = of_kind(manifests, "Service")
    policy = of_kind(manifests, "NetworkPolicy")["spec"]
    selectors = [
        service["spec"]["selector"],
        of_kind(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
        *(x["labelSelector"]["matchLabels"] for x in pod(manifests)["topologySpreadConstraints"]),
        *(x["spec"]["selector"]["matchLabels"] for x in manifests if x["kind"] == "Deployment"),
    ]

    assert all(selector and selector.items() <= labels.items() for selector in selectors)
    assert {x["targetPort"] for x in service["spec"]["ports"]} <= ports
    assert {x["port"] for rule in policy["ingress"] for x in rule["ports"]} <= ports
    for monitor in (x["spec"] for x in manifests if x["kind"] == "ServiceMonitor"):
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert {x["port"] for x in monitor["endpoints"]} == {
            x["name"] for x in service["spec"]["ports"]
        }


def test_who_is_let_in_and_out_is_named(manifests: list[Manifest]) -> None:
    policy = of_kind(manifests, "NetworkPolicy")["spec"]
    traces = "OTEL_EXPORTER_OTLP_ENDPOINT" in configured(manifests)

    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert all(rule["from"] and rule["ports"] for rule in policy["ingress"])
    ways = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ways == ({4318, 53} if traces else set())
    assert all(rule["to"] for rule in policy["egress"])


def test_nodes_can_be_drained_whatever_the_number_of_replicas(manifests: list[Manifest]) -> None:
    budget = of_kind(manifests, "PodDisruptionBudget")["spec"]

    assert budget["maxUnavailable"] == 1
    assert "minAvailable" not in budget
    assert {x["whenUnsatisfiable"] for x in pod(manifests)["topologySpreadConstraints"]} == {
        "ScheduleAnyway"
    }


def test_pods_are_replaced_one_by_one_each_when_the_next_one_is_ready(
    manifests: list[Manifest],
) -> None:
    if any(x["kind"] == "InferenceService" for x in manifests):
        strategy = of_kind(manifests, "InferenceService")["spec"]["predictor"]["deploymentStrategy"]
    else:
        strategy = of_kind(manifests, "Deployment")["spec"]["strategy"]

    assert strategy["type"] == "RollingUpdate"
    assert strategy["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


def test_a_changed_setting_replaces_the_pods_and_the_users_own_value_counts() -> None:
    old = built("overlays/cpu", "components/checkpoint", settings=OWN)
    new = built("overlays/cpu", "components/checkpoint", settings=(OWN[0] + "er", OWN[1]))

    assert configured(new)["WORLD_MODEL_CHECKPOINT"] == "/checkpoints/newer"
    assert container(old)["envFrom"] != container(new)["envFrom"]


@pytest.mark.parametrize("component", ["components/checkpoint", "components/tracing"])
def test_what_a_component_asks_for_cannot_be_forgotten(component: str) -> None:
    manifests = built("overlays/cpu", component)
    (needed,) = (
        x["valueFrom"]["configMapKeyRef"]
        for x in container(manifests)["env"]
        if "configMapKeyRef" in x.get("valueFrom", {})
    )

    assert needed["key"] not in configured(manifests)  # so no pod starts
    assert "optional" not in needed


def test_kserve_gets_the_pod_of_the_deployment() -> None:
    ours, theirs = built("overlays/cpu"), built("overlays/kserve")

    expected: dict[str, Any] = pod(ours)
    expected["containers"][0]["name"] = "kserve-container"
    assert pod(theirs) == expected
    assert all(x["kind"] != "Deployment" for x in theirs)


def test_the_example_sets_its_own_namespace_registry_and_settings() -> None:
    manifests = parsed(kustomize(FOLDER / "example"))

    assert configured(manifests)["WORLD_MODEL_EXPECT_SPEC"] == "34x3"
    assert configured(manifests)["WORLD_MODEL_CHECKPOINT"].startswith("/checkpoints/")
    assert container(manifests)["image"] == f"registry.example/world-model:{__version__}-cuda"
    assert {x["metadata"]["namespace"] for x in manifests} == {"driving"}
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert of_kind(manifests, kind)["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_the_page_names_what_is_there_and_nothing_else() -> None:
    text = (ROOT / "docs" / "scale-out.md").read_text()
    section = text.partition("\n## Kubernetes\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"deploy/kubernetes/[\w./-]*[\w-]", section))

    assert all((ROOT / name).exists() for name in named)
    for folder in (*OVERLAYS, *SCALERS, *OTHERS, "components/kserve", "example"):
        assert f"`{folder}`" in section or f"deploy/kubernetes/{folder}" in section
