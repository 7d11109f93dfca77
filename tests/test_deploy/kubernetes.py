"""The manifests of `deploy/kubernetes/`, built by kustomize itself."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.conftest import lacks
from tests.test_deploy.custom_resources import OF_THE_PREDICTOR, SCHEMAS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OLDEST, NEWEST = "1.30", "1.37"
"""Kubernetes whose schemas the manifests must fit, and so all between."""

Manifest = dict[str, Any]


def _command() -> list[str]:
    if not shutil.which("kustomize") and not shutil.which("kubectl"):
        lacks("needs kubectl (1.32 is new enough) or kustomize 5")
    return ["kustomize", "build"] if shutil.which("kustomize") else ["kubectl", "kustomize"]


def kustomize(folder: Path) -> str:
    """Return what kustomize makes of a folder.

    Raises:
        ValueError: It refuses; with its words.
    """
    run = subprocess.run([*_command(), folder], capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise ValueError(run.stderr)
    return run.stdout


@functools.cache
def _built(overlay: str, components: tuple[str, ...], settings: tuple[str, ...]) -> str:
    own: dict[str, Any] = {"resources": [overlay], "components": list(components)}
    if settings:
        own["configMapGenerator"] = [
            {"name": "world-model-settings", "behavior": "merge", "literals": list(settings)}
        ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for part in ("resources", "components"):
            own[part] = [os.path.relpath(FOLDER / x, folder) for x in own[part]]
        (folder / "kustomization.yaml").write_text(json.dumps(own))
        return kustomize(folder)


def built(overlay: str, *components: str, settings: tuple[str, ...] = ()) -> list[Manifest]:
    """Return the manifests of a user's own kustomization.

    Args:
        overlay: Folder below `deploy/kubernetes`.
        components: Folders below it that are added.
        settings: `NAME=value` that the user adds.

    Raises:
        ValueError: Kustomize refuses.
    """
    return parsed(_built(overlay, components, settings))


def parsed(text: str) -> list[Manifest]:
    """Return the manifests of a stream of YAML."""
    # In C, where PyYAML has it: many times faster.
    return list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def of_kind(manifests: list[Manifest], kind: str) -> Manifest:
    """Return the only manifest of a kind."""
    (found,) = (x for x in manifests if x["kind"] == kind)
    return found


def pod(manifests: list[Manifest]) -> Manifest:
    """Return the specification of the service's pods."""
    kinds = {x["kind"] for x in manifests}
    if "InferenceService" in kinds:
        predictor = of_kind(manifests, "InferenceService")["spec"]["predictor"]
        return {name: x for name, x in predictor.items() if name not in OF_THE_PREDICTOR}
    spec: Manifest = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]
    return spec


def pod_labels(manifests: list[Manifest]) -> dict[str, str]:
    """Return the labels of the service's pods."""
    kinds = {x["kind"] for x in manifests}
    labels: dict[str, str]
    if "InferenceService" in kinds:
        labels = of_kind(manifests, "InferenceService")["spec"]["predictor"]["labels"]
    else:
        labels = of_kind(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    return labels


def container(manifests: list[Manifest]) -> Manifest:
    """Return the service's container, which is alone in its pod."""
    containers: list[Manifest] = pod(manifests)["containers"]
    (found,) = containers
    return found


def configured(manifests: list[Manifest]) -> dict[str, str]:
    """Return the variables of the ConfigMap that the container takes all of."""
    settings = of_kind(manifests, "ConfigMap")
    (source,) = container(manifests)["envFrom"]
    assert source == {"configMapRef": {"name": settings["metadata"]["name"]}}
    return dict(settings["data"])


def validate(manifest: Manifest) -> None:
    """Check a manifest against the published schemas, unknown fields included.

    Raises:
        jsonschema.ValidationError: It does not fit.
    """
    _validate(json.dumps(manifest, sort_keys=True))


@functools.cache  # most manifests are the same in all combinations
def _validate(text: str) -> None:
    manifest = json.loads(text)
    if manifest["kind"] in SCHEMAS:
        jsonschema.Draft202012Validator(SCHEMAS[manifest["kind"]]).validate(manifest)
        if manifest["kind"] == "InferenceService":
            predicting = {"apiVersion": "v1", "kind": "Pod", "spec": pod([manifest])}
            _validate(json.dumps(predicting, sort_keys=True))
        return
    for version in (OLDEST, NEWEST):
        kubernetes_validate.validate(manifest, version, strict=True)


def mebibytes(quantity: str) -> float:
    """Return a quantity of bytes, such as 2Gi."""
    for suffix, factor in (("Gi", 1024.0), ("Mi", 1.0)):
        if quantity.endswith(suffix):
            return float(quantity.removesuffix(suffix)) * factor
    raise ValueError(f"{quantity} is neither Mi nor Gi")
