"""The application for `serve run` and `serve deploy`: `service.ray.app:app`."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve

from service.errors import StartupError
from service.ray.replica import WorldModel
from service.ray.targets import Targets
from service.server import loaded_checkpoint
from service.settings import PREFIX, Settings, explain_settings_error

_SPARE_S = 5.0
"""Time that a replica gets, after its last answers, to close its engine."""

_QUEUED = 256
"""Requests that may wait in one proxy while no replica can take more. There they wait in order of
arrival, whatever their class, so few may."""


_LOGGING = {"enable_access_log": False}
"""The service logs what fails; a line a request would cost more than the request."""


class Options(BaseModel):
    """Arguments of the application: how many replicas, and what each one gets of a node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=4, ge=1)
    num_cpus: float = Field(default=2, ge=0, description="CPUs that a replica reserves.")
    num_gpus: float = Field(default=0, ge=0, description="GPUs that it reserves; .25 is a quarter.")
    upscale_delay_s: float = Field(default=10, ge=0)
    downscale_delay_s: float = Field(default=300, ge=0)
    look_back_s: float = Field(default=20, gt=0, description="Time that loads are averaged over.")
    surge_percent: int = Field(
        default=25, ge=0, le=100, description="Replicas more than usual, while they are replaced."
    )
    health_check_period_s: float = Field(default=5, gt=0)


def app(args: dict[str, Any]) -> serve.Application:
    """Return the application: replicas of the service, and the list of their addresses.

    Settings are taken from the environment that this is called in, and given to every replica.

    Args:
        args: Fields of `Options`.

    Raises:
        StartupError: An argument, a setting or the checkpoint is refused; in one sentence.
    """
    options, settings = _options(args), _settings()
    loaded_checkpoint(settings)  # what cannot be served shall not replace what is served
    targets = serve.deployment(
        Targets,
        name="Targets",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        logging_config=_LOGGING,
    )
    replicas = serve.deployment(
        serve.ingress()(WorldModel),
        name="WorldModel",
        ray_actor_options={
            "num_cpus": options.num_cpus,
            "num_gpus": options.num_gpus,
            "runtime_env": {"env_vars": _variables(settings)},
        },
        # As many as one process takes connections: what waits shall wait in our queues, by class.
        max_ongoing_requests=settings.max_connections,
        max_queued_requests=_QUEUED,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        autoscaling_config={
            "min_replicas": options.min_replicas,
            "max_replicas": options.max_replicas,
            "upscale_delay_s": options.upscale_delay_s,
            "downscale_delay_s": options.downscale_delay_s,
            "look_back_period_s": options.look_back_s,
            "policy": {"policy_function": "service.ray.scaling:replicas"},
        },
        request_router_config={
            "request_router_class": "service.ray.routing:ShortestWait",
            "request_routing_stats_period_s": 0.5,
        },
        health_check_period_s=options.health_check_period_s,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=settings.shutdown_timeout_s + _SPARE_S,
        graceful_shutdown_wait_loop_s=0.5,
        max_surge_percent=options.surge_percent,
        logging_config=_LOGGING,
    )
    return replicas.bind(targets.bind())


def _options(args: dict[str, Any]) -> Options:
    try:
        options = Options.model_validate(args)
    except ValidationError as exc:
        first = exc.errors(include_url=False)[0]
        name, reason = ".".join(map(str, first["loc"])), first["msg"]
        raise StartupError(
            f"bad argument {name!r}: {reason}; there are {', '.join(Options.model_fields)}."
        ) from None
    if options.min_replicas > options.max_replicas:
        raise StartupError(
            f"bad argument 'min_replicas' ({options.min_replicas}): it must not exceed "
            f"max_replicas ({options.max_replicas})."
        )
    return options


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as exc:
        raise StartupError(explain_settings_error(exc)) from None


def _variables(settings: Settings) -> dict[str, str]:
    """Return the variables that a replica needs, which has another environment and folder."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if name.startswith((PREFIX, "OTEL_")) or name == "FORWARDED_ALLOW_IPS"
    }
    if f"{PREFIX}CHECKPOINT" in variables:
        variables[f"{PREFIX}CHECKPOINT"] = str(settings.checkpoint.resolve())
    return variables
