"""Every knob of the service: environment variables `WORLD_MODEL_<NAME>` and serve's options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, Self, get_args
from urllib.parse import unquote

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

import models
from service.setting_checks import (
    check_folder,
    check_host,
    check_keys,
    check_port,
    check_variables,
    keys_in,
    names_of,
    nearest,
)

PREFIX = "WORLD_MODEL_"
PRETRAINED = Path(models.__file__).parent / "pretrained"
_LONGEST_SHOWN = 80


class Settings(BaseSettings):
    """Frozen values of one run; a bad one stops the start."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        # Errors are printed by whoever does not expect them, and an input may be a secret.
        hide_input_in_errors=True,
    )

    host: str = Field(
        default="127.0.0.1",
        description="Address to listen on. 127.0.0.1 is reachable from this machine only; 0.0.0.0 "
        "from everywhere, so set api_keys or a firewall with it.",
    )
    port: int = Field(
        default=8000,
        ge=0,
        le=65535,
        description="TCP port to listen on; 0 takes a free one and logs it.",
    )
    checkpoint: Path = Field(
        default=PRETRAINED,
        description="Folder of the checkpoint to serve. The default is the bundled model; its "
        "dims and features decide what requests must look like.",
    )
    expect_spec: str | None = Field(
        default=None,
        pattern=r"^[1-9][0-9]{0,5}x[1-9][0-9]{0,5}(-[0-9a-f]{8})?$",
        description="What clients send: dims (34x3), or dims and digest (34x3-1a2b3c4d) as `spec` "
        "in /model and in the log of a start. A checkpoint of another spec, which would refuse or "
        "misread every client, then stops the start. None: any is served.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Where the model runs. auto takes CUDA if there is one, else the CPU; naming "
        "one makes the start fail rather than fall back. Bits differ between devices.",
    )
    members: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Serve only the first so many members of the ensemble; all by default. Fewer "
        "are faster in proportion, and another version. The checkpoint's thresholds hold for all "
        "together: safety checks of fewer are `unknown`. A checkpoint of fewer members with "
        "thresholds of its own is made by `world-model calibrate --members`.",
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="CPU threads of one forward pass; 0 takes two if that leaves a core to HTTP, "
        "else one. More shorten big launches, but take cores from HTTP and from neighbours, and "
        "above two some launch shapes may be dropped at the start because rows would lose their "
        "bits in them.",
    )
    compile: bool = Field(
        default=True,
        description="Whether the model is computed by code of its own, many times faster than by "
        "PyTorch's: on a CPU machine code, compiled at the first start by a C++ compiler; on a GPU "
        "two kernels, compiled at every start by NVIDIA's library. Both take seconds. Where that "
        "fails PyTorch's are used, with the same answers up to rounding.",
    )
    cache_dir: Path = Field(
        default=Path("~/.cache/world-model-service"),
        description="Folder that machine code is kept in, well under a MB. Whoever may write there "
        "decides what code the service runs: where others than root and the service's own user "
        "may, it is not used, and PyTorch computes.",
    )
    api_keys: SecretStr | None = Field(
        default=None,
        description="Comma separated keys, one of which every request must carry as "
        "'Authorization: Bearer KEY' (health, readiness and metrics excepted). None: open to all "
        "who reach the port. Two keys at once let clients change over without an outage. "
        "'NAME:KEY' gives a key the name by which logs and metrics tell who asks.",
    )
    max_body_bytes: int = Field(
        default=8 * 2**20,
        ge=1024,
        le=2**30,
        description="Longest body read, in bytes; longer ones get 413. Big ones are read a "
        "millisecond at a time, so others hardly wait; more takes more memory and time.",
    )
    max_horizon: int = Field(
        default=64,
        ge=1,
        le=10_000,
        description="Most steps of one sequence. Steps follow one another, so time grows with the "
        "horizon whatever else is done; and trust falls: beyond the evaluated horizon safety "
        "checks are never `safe`.",
    )
    max_rows: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="Most sequences of one request. Higher suits batch users; their requests "
        "occupy more of the queue and take longer to parse and to answer.",
    )
    default_timeout_s: float = Field(
        default=5.0,
        ge=0.001,
        le=3600,
        description="Deadline in seconds of requests that bring no X-Request-Timeout-Seconds. "
        "Shorter sheds late work sooner; longer lets big rollouts finish.",
    )
    max_timeout_s: float = Field(
        default=60.0,
        ge=0.001,
        le=3600,
        description="Longest deadline in seconds; a request that asks for more gets this one. It "
        "bounds how long abandoned work can wait.",
    )
    queue_rows_safety: int = Field(
        default=4096,
        ge=1,
        le=10_000_000,
        description="Most rows of safety checks that may wait; beyond it 429. Longer queues refuse "
        "fewer and let those accepted wait longer.",
    )
    queue_rows_predict: int = Field(
        default=8192,
        ge=1,
        le=10_000_000,
        description="Most rows of predictions that may wait; beyond it 429. Longer queues refuse "
        "fewer and let those accepted wait longer.",
    )
    queue_rows_rollout: int = Field(
        default=16384,
        ge=1,
        le=10_000_000,
        description="Most rows of rollouts that may wait; beyond it 429. Longer queues refuse "
        "fewer and let those accepted wait longer.",
    )
    preempt_after_s: float = Field(
        default=0.001,
        gt=0,
        le=10,
        description="Seconds that the engine computes before it looks for more urgent work: what a "
        "safety check may have to wait for. As many rows take their steps together as one step of "
        "them fits into that; shorter costs throughput. A GPU computes all their steps at once: as "
        "many rows as fit into that, or into 1.5 times what the smallest launch of that horizon "
        "takes, if that is longer.",
    )
    max_passes: int = Field(
        default=8,
        ge=1,
        le=10_000,
        description="How many slices of computing in a row may pass over waiting work of a lower "
        "class before it gets one. Higher favours safety checks and predictions under load; lower "
        "shares more evenly.",
    )
    canary_interval_s: float = Field(
        default=5.0,
        ge=0.01,
        le=3600,
        description="Seconds without a successful launch after which a small one is made to prove "
        "that the model still answers. Shorter notices faults sooner and wakes an idle machine "
        "more often.",
    )
    readiness_max_age_s: float = Field(
        default=15.0,
        ge=0.01,
        le=3600,
        description="Longest time in seconds since the last successful launch for which /readyz "
        "says ready. Shorter notices a hung device sooner; it must exceed the canary's interval "
        "plus the longest launch.",
    )
    drain_delay_s: float = Field(
        default=2.0,
        ge=0,
        le=600,
        description="Seconds between turning /readyz to 503 on SIGTERM and refusing new requests. "
        "Long enough for load balancers to notice; it delays every restart.",
    )
    shutdown_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="Seconds that accepted requests get to finish after the drain delay; then "
        "they are answered 503.",
    )
    log_format: Literal["json", "console"] = Field(
        default="console",
        description="json for log collectors, console for eyes.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="Least severe level logged. info has one line for every failed request; "
        "warning leaves out those that are the caller's fault.",
    )
    tracing: bool = Field(
        default=False,
        description="Whether requests become spans of OpenTelemetry, exported as the variables "
        "OTEL_* say; needs the extra `otel`. A request that is sampled costs several times as much "
        "CPU outside the model.",
    )
    vram_budget_bytes: int = Field(
        default=4 * 2**30,
        ge=64 * 2**20,
        le=2**50,
        description="Most GPU memory in bytes that PyTorch's allocator may take. CUDA's context "
        "and the code of kernels come on top, some hundred MB, and so does pinned memory of the "
        "host. Less leaves room for others on the device and splits big launches sooner.",
    )
    docs: bool = Field(
        default=True,
        description="Whether the page at /, /docs and /openapi.json are served. Off, strangers "
        "learn less.",
    )

    max_connections: int = Field(
        default=1024,
        ge=8,
        le=100_000,
        description="Most connections at once; one more closes the one that has been idle for "
        "longest, or gets 503 if all are busy. Each costs some KiB and a file descriptor; more "
        "let more clients, and more attackers, in.",
    )
    max_head_bytes: int = Field(
        default=2**15,
        ge=1024,
        le=2**20,
        description="Longest request line and headers, or trailers, in bytes; longer ones get 414 "
        "or 431. Proxies and single sign-on add headers; more lets strangers take more memory.",
    )
    head_timeout_s: float = Field(
        default=10.0,
        gt=0,
        le=600,
        description="Seconds from the first byte of a request to the end of its headers; then 408. "
        "Shorter gets rid of callers that send slowly on purpose, and of slow networks.",
    )
    body_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds from the end of a request's headers to the end of its body; then 408. "
        "max_body_bytes must pass the slowest network in that time.",
    )
    idle_timeout_s: float = Field(
        default=75.0,
        gt=0,
        le=3600,
        description="Seconds that a connection may be idle between requests before it is closed. "
        "Longer than proxies and clients keep theirs (usually 5 to 60), so that none sends into a "
        "connection that is being closed; longer holds more of them.",
    )
    answer_timeout_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="Seconds in which a caller reads nothing of its answer before its connection "
        "is cut. Shorter frees memory sooner; longer bears networks that stall.",
    )
    max_buffered_bytes: int = Field(
        default=2**24,
        ge=2**16,
        le=2**34,
        description="Most memory in bytes of all requests that are not complete together, and as "
        "much of all answers that are not read. Beyond it requests wait in the network, and "
        "answers that stand still for longest are cut off. More serves more big requests at once.",
    )

    @model_validator(mode="before")
    @classmethod
    def _passes_no_variable_over(cls, given: Any) -> Any:
        check_variables(os.environ, PREFIX, cls.model_fields)
        return given

    @field_validator("host")
    @classmethod
    def _is_an_address(cls, host: str) -> str:
        check_host(host)
        return host

    @field_validator("port", mode="before")
    @classmethod
    def _is_no_link(cls, port: Any) -> Any:
        check_port(port)
        return port

    @field_validator("checkpoint", "cache_dir", mode="before")
    @classmethod
    def _names_a_folder(cls, path: Any) -> Any:
        check_folder(path)
        return path

    @field_validator("api_keys")
    @classmethod
    def _holds_keys(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            check_keys(keys_in(secret.get_secret_value()))
        return secret

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for name in ("queue_rows_safety", "queue_rows_predict", "queue_rows_rollout"):
            if getattr(self, name) < self.max_rows:
                raise ValueError(
                    f"{name} ({getattr(self, name)}) must be at least max_rows "
                    f"({self.max_rows}), or the biggest request could never be accepted"
                )
        if self.default_timeout_s > self.max_timeout_s:
            raise ValueError(
                f"default_timeout_s ({self.default_timeout_s}) must not exceed max_timeout_s "
                f"({self.max_timeout_s})"
            )
        if self.readiness_max_age_s <= self.canary_interval_s:
            raise ValueError(
                f"readiness_max_age_s ({self.readiness_max_age_s}) must exceed "
                f"canary_interval_s ({self.canary_interval_s}), or an idle service is not ready"
            )
        return self

    def keys(self) -> tuple[str, ...]:
        """Return the configured API keys, each once; empty if the service is open."""
        return tuple(self.key_names())

    def key_names(self) -> dict[str, str]:
        """Return the names of the configured API keys, by the key."""
        return {} if self.api_keys is None else names_of(keys_in(self.api_keys.get_secret_value()))

    def secrets(self) -> tuple[str, ...]:
        """Return all texts that must never be shown: keys, and headers for OpenTelemetry's."""
        headers = [
            value
            for name, value in os.environ.items()
            if name.startswith("OTEL_") and name.endswith("_HEADERS")
        ]
        return (*self.keys(), *(piece for text in headers for piece in _pieces(text)))


def _pieces(headers: str) -> list[str]:
    """Return what may be secret in the text of OpenTelemetry's headers: `name=value,name=value`.

    It logs an entry that it cannot read, such as a key whose name was forgotten. So all pieces are
    taken, whatever they were meant to be.
    """
    entries = [entry.strip() for entry in headers.split(",")]
    pieces = [headers, *entries]
    for entry in entries:
        pieces += [entry.partition("=")[2].strip(), *map(str.strip, entry.split("="))]
    pieces += [unquote(piece) for piece in pieces]
    # Shorter ones are names and flags, and struck out they would leave holes in other words.
    is_nameless = {entry for entry in entries if "=" not in entry}.__contains__
    return [piece for piece in dict.fromkeys(pieces) if len(piece) >= 8 or is_nameless(piece)]


def _is_secret(name: str) -> bool:
    """Return whether a setting's value must never be shown."""
    annotation = Settings.model_fields[name].annotation
    return SecretStr in (annotation, *get_args(annotation))


def explain_settings_error(error: ValidationError) -> str:
    """Return one sentence that names the faulty setting, its value and what is allowed.

    The value of a secret is left out.
    """
    first = error.errors(include_url=False)[0]
    reason = first.get("ctx", {}).get("error")
    if not first["loc"]:
        return f"Bad settings: {reason!s}."
    name = str(first["loc"][0])
    if name not in Settings.model_fields:
        near = nearest(name, Settings.model_fields)
        return f"There is no setting {name!r}; the nearest one is {near!r}."
    problem = str(reason) if reason is not None else first["msg"][0].lower() + first["msg"][1:]
    shown = "" if _is_secret(name) else f" {_shortened(repr(first['input']))}"
    return f"Bad value{shown} for the setting {PREFIX}{name.upper()}: {problem}."


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
