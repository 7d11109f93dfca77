"""MLServer: the Open Inference Protocol, a custom runtime a kind of request, adaptive batching.

Inference runs in the server's process (`parallel_workers=0`), which spares each request two queues
between processes. Small requests are batched within 1 ms. Planners bring a batch themselves and are
not batched further; batching would also need the same number of rows in every input.
"""

import asyncio
import os
import socket

import numpy as np
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from model import MAX_BATCH, PORT, load_model, outcomes

BATCH_TIME_S = 0.001


class Runtime(MLModel):
    async def load(self) -> bool:
        self.model = load_model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = {x.name: NumpyCodec.decode_input(x).astype(np.float32) for x in payload.inputs}
        answer = self.answer(given["state"], given["actions"])
        outputs = [NumpyCodec.encode_output(name, array) for name, array in answer.items()]
        return InferenceResponse(model_name=self.name, id=payload.id, outputs=outputs)


class Predict(Runtime):
    def answer(self, states, actions):
        after, rewards, dones = self.model.rollout(states, actions)
        return {"next_state": after[:, 1], "reward": rewards[:, 0], "done": dones[:, 0]}


class Rollout(Runtime):
    def answer(self, states, actions):
        after, rewards, dones = self.model.rollout(states, actions)
        return {"states": after, "rewards": rewards, "dones": dones}


class Plan(Runtime):
    def answer(self, states, actions):
        states = np.repeat(states, len(actions), axis=0)
        returns, ended = outcomes(*self.model.rollout(states, actions)[1:])
        return {"returns": returns, "crash_probability": ended[:, -1]}


class SafetyCheck(Runtime):
    def answer(self, states, actions):
        _, ended = outcomes(*self.model.rollout(states, actions)[1:])
        return {"crash_probability": ended[:, -1], "crash_probability_by_step": ended}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def main() -> None:
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=int(os.environ[PORT]),
        grpc_port=free_port(),
        metrics_endpoint=None,
        parallel_workers=0,
    )
    batching = {"max_batch_size": MAX_BATCH, "max_batch_time": BATCH_TIME_S}
    models = [
        ModelSettings(name="predict", implementation="server.Predict", **batching),
        ModelSettings(name="rollout", implementation="server.Rollout", **batching),
        ModelSettings(name="safety-check", implementation="server.SafetyCheck", **batching),
        ModelSettings(name="plan", implementation="server.Plan"),
    ]
    await MLServer(settings).start(models)


if __name__ == "__main__":
    asyncio.run(main())
