"""What objects of other projects may hold: JSON schemas of the fields that ours use.

Written from the definitions that these projects publish: prometheus-operator (ServiceMonitor,
PrometheusRule), KEDA (ScaledObject) and KServe (InferenceService). A field that is not here is
refused, as those clusters drop or refuse what they do not know.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION: Schema = {"type": "string", "pattern": r"^(\d+h)?(\d+m)?(\d+s)?(\d+ms)?$", "minLength": 2}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def many(items: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": items}


def fields(*required: str, **properties: Schema) -> Schema:
    """Return the schema of an object that has these fields, and no other."""
    assert set(required) <= set(properties)
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


def resource(version: str, kind: str, spec: Schema) -> Schema:
    metadata = fields(
        *("name", "namespace"), name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS
    )
    return fields(
        *("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


RELABELING = fields(
    action=one_of("replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep"),
    sourceLabels=many({"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}),
    targetLabel=TEXT,
    replacement=TEXT,
    regex=TEXT,
)
SERVICE_MONITOR = fields(
    *("selector", "endpoints"),
    selector=fields("matchLabels", matchLabels=TEXTS),
    endpoints=many(
        fields(
            port=TEXT,
            path=TEXT,
            interval=DURATION,
            scrapeTimeout=DURATION,
            relabelings=many(RELABELING),
        )
    ),
)

RULE = fields(
    "expr", alert=TEXT, record=TEXT, expr=TEXT, labels=TEXTS, annotations=TEXTS, **{"for": DURATION}
)
PROMETHEUS_RULE = fields(
    "groups", groups=many(fields("name", "rules", name=TEXT, rules=many(RULE)))
)

PACE = fields(
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    policies=many(
        fields(
            *("type", "value", "periodSeconds"),
            type=one_of("Pods", "Percent"),
            value={"type": "integer", "minimum": 1},
            periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
        )
    ),
)
PROMETHEUS_TRIGGER = fields(
    *("type", "metadata"),
    type=one_of("prometheus"),
    name={"type": "string", "pattern": "^[a-z0-9-]+$"},
    metricType=one_of("AverageValue", "Value"),
    # The scaler's own parameters; all are texts.
    metadata=fields(
        *("serverAddress", "query", "threshold"),
        serverAddress={"type": "string", "pattern": "^https?://"},
        query=TEXT,
        threshold={"type": "string", "pattern": r"^\d+(\.\d+)?$"},
        ignoreNullValues=one_of("true", "false"),
    ),
)
SCALED_OBJECT = fields(
    *("scaleTargetRef", "triggers"),
    scaleTargetRef=fields("name", name=TEXT),
    pollingInterval=COUNT,
    minReplicaCount=COUNT,
    maxReplicaCount=COUNT,
    fallback=fields(
        *("failureThreshold", "replicas"),
        failureThreshold=COUNT,
        replicas=COUNT,
        behavior=one_of(
            "static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"
        ),
    ),
    advanced=fields(
        horizontalPodAutoscalerConfig=fields(behavior=fields(scaleUp=PACE, scaleDown=PACE))
    ),
    triggers=many(PROMETHEUS_TRIGGER),
)

OF_THE_PREDICTOR = ("labels", "minReplicas", "maxReplicas", "deploymentStrategy")
"""Fields of a predictor that are not those of a pod, as far as ours has them."""
# The rest of a predictor is a pod's specification, which Kubernetes's own schema knows.
INFERENCE_SERVICE = fields(
    "predictor",
    predictor={
        "type": "object",
        "required": ["containers"],
        "properties": {
            "labels": TEXTS,
            "minReplicas": COUNT,
            "maxReplicas": COUNT,
            "deploymentStrategy": fields(
                "type",
                type=one_of("RollingUpdate"),
                rollingUpdate=fields(maxUnavailable=COUNT, maxSurge=COUNT),
            ),
            # Of several, KServe takes the one of this name for the model's.
            "containers": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {"properties": {"name": {"const": "kserve-container"}}},
            },
        },
    },
)

SCHEMAS = {
    kind: resource(version, kind, spec)
    for version, kind, spec in (
        ("monitoring.coreos.com/v1", "ServiceMonitor", SERVICE_MONITOR),
        ("monitoring.coreos.com/v1", "PrometheusRule", PROMETHEUS_RULE),
        ("keda.sh/v1alpha1", "ScaledObject", SCALED_OBJECT),
        ("serving.kserve.io/v1beta1", "InferenceService", INFERENCE_SERVICE),
    )
}
"""By kind."""
