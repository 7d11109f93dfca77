"""Ray Serve: a proxy and one replica a route, each an application; `serve.batch` for small bodies.

In the high-throughput mode of its documentation: HAProxy in front (which listens on all interfaces)
and the optimised request path. A batch's wait is what a lone request pays, so it is 1 ms in place
of 10; `max_ongoing_requests` lets a full batch gather. Planners bring a batch themselves and are
not batched further. The object store is small: nothing big passes through it.
"""

import os
import signal

# Read when Ray is imported, and by the processes that it starts.
os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from model import ANSWERS, MAX_BATCH, PORT, WEIGHTS, load_model, plain
from ray import serve
from starlette.requests import Request

WAIT_S = 0.001
STORE_BYTES = 80 * 2**20


@serve.deployment(max_ongoing_requests=2 * MAX_BATCH, ray_actor_options={"num_cpus": 0.1})
class Batched:
    def __init__(self, route: str) -> None:
        self.model = load_model()
        self.answers = ANSWERS[route]

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=WAIT_S)
    async def answer(self, bodies):
        return [plain(answer) for answer in self.answers(self.model, bodies)]

    async def __call__(self, request: Request):
        return await self.answer(await request.json())


@serve.deployment(max_ongoing_requests=MAX_BATCH, ray_actor_options={"num_cpus": 0.1})
class Single:
    def __init__(self, route: str) -> None:
        self.model = load_model()
        self.answers = ANSWERS[route]

    async def __call__(self, request: Request):
        return plain(self.answers(self.model, [await request.json()])[0])


def main() -> None:
    passed_on = {
        name: os.environ[name]
        for name in (WEIGHTS, "PYTHONPATH", "OMP_NUM_THREADS")
        if name in os.environ
    }
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        log_to_driver=False,
        runtime_env={"env_vars": passed_on},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ[PORT])})
    deployments = {route: Single if route == "plan" else Batched for route in ANSWERS}
    serve.run_many(
        [
            serve.RunTarget(deployment.bind(route), name=route, route_prefix=f"/{route}")
            for route, deployment in deployments.items()
        ]
    )
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
