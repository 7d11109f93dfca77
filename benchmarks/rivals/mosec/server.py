"""mosec with orjson: a Rust front, one worker process a route, dynamic batching.

Serialisation is overridden with orjson, as its documentation advises for speed. Small requests are
batched with the shortest wait it can be told, 1 ms; planners bring a batch themselves and are not
batched further. Routes have workers of their own, so a safety check does not queue behind planners.
"""

import os

import orjson
from model import ANSWERS, MAX_BATCH, PORT, load_model
from mosec import Runtime, Server, Worker

WAIT_MS = 1
TIMEOUT_S = 30


class JsonWorker(Worker):
    route = ""

    def __init__(self) -> None:
        self.model = load_model()
        self.answers = ANSWERS[self.route]

    def deserialize(self, data):
        return orjson.loads(data)

    def serialize(self, data):
        return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)

    def forward(self, data):
        return self.answers(self.model, data)


class Predict(JsonWorker):
    route = "predict"


class Rollout(JsonWorker):
    route = "rollout"


class SafetyCheck(JsonWorker):
    route = "safety-check"


class Plan(JsonWorker):
    route = "plan"

    def forward(self, data):
        return self.answers(self.model, [data])[0]


if __name__ == "__main__":
    os.environ["MOSEC_PORT"] = os.environ[PORT]
    os.environ["MOSEC_ADDRESS"] = "127.0.0.1"
    os.environ["MOSEC_TIMEOUT"] = str(1000 * TIMEOUT_S)
    os.environ["MOSEC_LOG_LEVEL"] = "warning"
    server = Server()
    routes = {
        f"/{worker.route}": [Runtime(worker, 1, MAX_BATCH, WAIT_MS)]
        for worker in (Predict, Rollout, SafetyCheck)
    }
    server.register_runtime({**routes, "/plan": [Runtime(Plan)]})
    server.run()
