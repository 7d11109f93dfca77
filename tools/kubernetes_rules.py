"""Rewrite the rules that the Prometheus operator gets, after those of Prometheus were changed.

    python -m tools.kubernetes_rules

`deploy/prometheus/rules/` is where rules are written and tested. The operator takes them as an
object of its own, `deploy/kubernetes/components/monitoring/rules.yaml`, which is made of them,
comments included.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
WRITTEN = ROOT / "deploy" / "prometheus" / "rules"
MADE = ROOT / "deploy" / "kubernetes" / "components" / "monitoring" / "rules.yaml"

_HEAD = """\
# Made of deploy/prometheus/rules/ by `python -m tools.kubernetes_rules`: change those.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: world-model
  namespace: world-model
  labels: {app.kubernetes.io/name: world-model}
spec:
  groups:
"""


def prometheus_rule(folder: Path) -> str:
    """Return the operator's object with all groups of a folder's rule files, as YAML.

    Raises:
        ValueError: A file has no groups.
    """
    parts = []
    for path in sorted(folder.glob("*.yml")):
        comment, found, groups = path.read_text().partition("groups:\n")
        if not found:
            raise ValueError(f"{path} has no groups")
        # The comment belongs to the groups, and is indented as they are.
        parts.append(textwrap.indent(textwrap.indent(comment, "  ") + groups, "  "))
    return _HEAD + "\n".join(parts)


if __name__ == "__main__":
    MADE.write_text(prometheus_rule(WRITTEN))
