"""Plain FastAPI: typed bodies and answers, the model called in the handler, no batching.

As its tutorial shows it: async handlers, return types (which let pydantic write the JSON), one
uvicorn worker with httptools and uvloop. Handlers call the model directly: a call takes less than
a hop to the thread pool would.
"""

import os

import uvicorn
from fastapi import FastAPI
from model import PORT, load_model, plain, plans, predictions, rollouts, safety_checks
from pydantic import BaseModel


class PredictBody(BaseModel):
    state: list[float]
    action: list[float]


class RolloutBody(BaseModel):
    state: list[float]
    actions: list[list[float]]


class PlanBody(BaseModel):
    state: list[float]
    actions: list[list[list[float]]]


class Prediction(BaseModel):
    next_state: list[float]
    reward: float
    done: float


class Rollout(BaseModel):
    states: list[list[float]]
    rewards: list[float]
    dones: list[float]


class Plan(BaseModel):
    returns: list[float]
    crash_probability: list[float]


class SafetyCheck(BaseModel):
    verdict: str
    crash_probability: float
    crash_probability_by_step: list[float]
    threshold: float


def make_app() -> FastAPI:
    model = load_model()
    app = FastAPI()

    @app.post("/predict")
    async def predict(body: PredictBody) -> Prediction:
        return Prediction(**plain(predictions(model, [body.model_dump()])[0]))

    @app.post("/rollout")
    async def rollout(body: RolloutBody) -> Rollout:
        return Rollout(**plain(rollouts(model, [body.model_dump()])[0]))

    @app.post("/plan")
    async def plan(body: PlanBody) -> Plan:
        return Plan(**plain(plans(model, [body.model_dump()])[0]))

    @app.post("/safety-check")
    async def safety_check(body: RolloutBody) -> SafetyCheck:
        return SafetyCheck(**plain(safety_checks(model, [body.model_dump()])[0]))

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(), port=int(os.environ[PORT]), access_log=False, log_level="warning")
