"""A cluster of several Ray nodes on this machine, in a process of its own: `python -m` this module.

It reads commands as lines of JSON from its standard input and answers each with one; when the input
ends, so does the cluster.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema

APP, DEPLOYMENT = "world-model", "WorldModel"


class Commands:
    """What the tests ask for; every method's name is a command."""

    def __init__(self, folder: str) -> None:
        # The head runs the proxy and the controller, so that no replica is lost with them.
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            self._cluster.add_node(num_cpus=2)
        ray.init(address=self._cluster.address, log_to_driver=False)

    def start(self, port: int) -> None:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})

    def deploy(self, config: dict[str, Any]) -> None:
        """Do what `serve deploy` asks the cluster for."""
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate(config))

    def status(self) -> dict[str, Any]:
        app = serve.status().applications[APP]
        states = app.deployments[DEPLOYMENT].replica_states if app.deployments else {}
        return {
            "status": str(app.status.value),
            "message": app.message,
            "states": {str(getattr(k, "value", k)): v for k, v in states.items()},
        }

    def replicas(self) -> list[dict[str, Any]]:
        details = _get_global_client().get_serve_details()
        found = details["applications"][APP]["deployments"][DEPLOYMENT]["replicas"]
        fields = ("pid", "node_id", "state", "replica_id")  # a new one has no process yet
        return [{field: replica.get(field) for field in fields} for replica in found]

    def remove_node(self, node: str) -> None:
        """Kill all processes of a node."""
        (gone,) = (x for x in self._cluster.worker_nodes if x.node_id == node)
        self._cluster.remove_node(gone, allow_graceful=False)

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints, too
    commands = Commands(sys.argv[1])
    try:
        for line in sys.stdin:
            name, arguments = json.loads(line)
            print(json.dumps(getattr(commands, name)(**arguments)), file=out, flush=True)
    finally:
        commands.close()


if __name__ == "__main__":
    main()
