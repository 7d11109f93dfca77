"""The calls that both clients have, and the connections that each process makes for them.

Requests made while a span of OpenTelemetry is active continue its trace.

Failures are the classes of `world_model_client.errors`: the service's own by code,
`UnreachableError` where no answer came, `InvalidInputError` where nothing was sent because it could
not be right.

A call is tried a second time, on a new connection and within the same deadline, where it was not
answered because

- no connection could be made,
- a kept connection ended before the head of an answer (the server had closed it while it was idle),
- the service said `unavailable`: it is starting or shutting down, another instance may not be.

That is harmless even if the first try was computed: predictions change nothing.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NoReturn, TypeVar

from world_model_client.errors import ClosedClientError, InvalidInputError
from world_model_client.inputs import (
    Call,
    Reader,
    include_names,
    label,
    member_count,
    output_names,
    probability,
    seconds,
)

if TYPE_CHECKING:
    import asyncio
    import ssl

    import httpx
    from numpy.typing import ArrayLike

    from world_model_client.exchange import Exchange

Http = TypeVar("Http", "httpx.Client", "httpx.AsyncClient")
Transport = TypeVar("Transport", "httpx.BaseTransport", "httpx.AsyncBaseTransport")
Answer = TypeVar("Answer")


class Forks:
    """Counts the forks between the first process and this one: what was there before is not ours.

    Connections that a child inherits are its parent's: two processes that read one connection get
    each other's answers.
    """

    count = 0

    @classmethod
    def add(cls) -> None:
        """Count one more."""
        cls.count += 1


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=Forks.add)


class Calls(ABC, Generic[Http, Transport, Answer]):
    """What both clients are: calls, and the connections that they need."""

    _sending: ClassVar[str]
    """Name of the method by which a transport sends."""

    def __init__(
        self,
        base_url: str | httpx.URL = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 10.0,
        margin_s: float = 0.5,
        transport: Transport | None = None,
        checks_ids: bool = True,
    ) -> None:
        # httpx is loaded with the first client: its time is not that of the import, nor of a call.
        from world_model_client.addresses import address, bearer, place_of
        from world_model_client.exchange import Exchange

        self._base_url = address(base_url)
        self._place = place_of(self._base_url)
        self._exchange_type = Exchange
        self._timeout_s = seconds("timeout_s", timeout_s)
        self._margin_s = seconds("margin_s", margin_s)
        if not isinstance(checks_ids, bool):
            raise InvalidInputError(f"checks_ids is {checks_ids!r:.80} (allowed: True or False)")
        self._checks_ids = checks_ids
        self._transport: Transport | None = transport
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if api_key is not None:
            headers["authorization"] = bearer(api_key, self._base_url)
        self._options: dict[str, Any] = {"base_url": self._base_url, "headers": headers}
        self._context: ssl.SSLContext | None = None
        if transport is None:
            from world_model_client.network import certificates

            self._context = certificates()  # made once: reading them takes longer than a call
        elif not hasattr(transport, self._sending):
            raise InvalidInputError(
                f"transport is of type {type(transport).__name__} (allowed: one of httpx that has "
                f"{self._sending}, or None)"
            )
        # By number of forks, and whether its connections are for one request each. Inherited pools
        # stay here untouched: they are the parent's to close, and its event loop's.
        self._pools: dict[tuple[int, bool], Http] = {}
        # By number of forks: whose connections an `AsyncClient` has.
        self._loops: dict[int, asyncio.AbstractEventLoop] = {}
        self._is_closed = False

    def __repr__(self) -> str:
        closed = ", closed" if self._is_closed else ""
        return f"<{type(self).__name__} of {self._place}{closed}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be pickled or copied: make one in each process")

    def predict(
        self,
        state: ArrayLike,
        action: ArrayLike,
        *,
        dt_s: float | None = None,
        frame: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Predict one step.

        Numbers are given as lists, NumPy arrays, or whatever NumPy makes arrays of. S and A, and
        what each feature means, are in the answer of `model`. A single state is used for all
        actions, and a single action for all states.

        Args:
            state: [S] or [N, S], finite numbers in the units of the model's features.
            action: [A] or [N, A], each within the range of its feature.
            dt_s: The step's length in seconds that the caller counts on; refused if it is not the
                model's.
            frame: The coordinate frame that the caller counts on; refused if it is not the model's.
            timeout_s: The service answers within so many seconds or not at all; the call ends at
                most the client's `margin_s` later. None: the client's `timeout_s` ends the wait.

        Returns:
            `next_state` ([S] or [N][S]), `reward`, `done` (the probability that the episode ends at
            this step) and `uncertainty` (each a number, or [N]; `uncertainty` is None if the model
            has one member), `model_version`.

        Raises:
            InvalidInputError: An argument cannot be sent; nothing was.
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        arrays = {"state": (state, "[S] or [N, S]"), "action": (action, "[A] or [N, A]")}
        return self._call(Call("/predict", arrays, _counted_on(dt_s, frame), timeout_s))

    def rollout(
        self,
        state: ArrayLike,
        actions: ArrayLike,
        *,
        outputs: Sequence[str] | None = None,
        members: int | None = None,
        dt_s: float | None = None,
        frame: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Predict what sequences of actions lead to, one action a step.

        Args:
            state: [S] or [K, S]; a single state is used for all sequences.
            actions: [H, A] or [K, H, A].
            outputs: What the answer holds, of the names below; by default `states`, `rewards` and
                `dones`. Few outputs make short answers.
            members: How many of the ensemble answer, the first ones, from 1 on; None: all. Fewer
                take less time, and are another `model_version`; one has no `uncertainty`.
            dt_s: As for `predict`, like those that follow.
            frame: As for `predict`.
            timeout_s: As for `predict`.

        Returns:
            `model_version` and, without K for one sequence: `states` ([K][H+1][S], start included),
            `rewards` ([K][H]), `dones` ([K][H], the probability that the episode ends at that step
            if it has not before), `returns`, `crash_probability` and `uncertainty` ([K]; None if
            one member answers), `final_state` ([K][S]).

        Raises:
            InvalidInputError: An argument cannot be sent; nothing was.
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        arrays = {"state": (state, "[S] or [K, S]"), "actions": (actions, "[H, A] or [K, H, A]")}
        options = {
            "outputs": (outputs, output_names),
            "members": (members, member_count),
            **_counted_on(dt_s, frame),
        }
        return self._call(Call("/rollout", arrays, options, timeout_s))

    def safety_check(
        self,
        state: ArrayLike,
        actions: ArrayLike,
        *,
        threshold: float | None = None,
        include: Sequence[str] | None = None,
        members: int | None = None,
        dt_s: float | None = None,
        frame: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Judge sequences of actions: is a crash coming within them?

        Treat every verdict but `safe` as unsafe, and a call that raises as well.

        Args:
            state: [S].
            actions: [H, A] or [K, H, A].
            threshold: Crash probability from which a verdict is `unsafe`, 0 to 1; by default the
                model's own.
            include: "trajectory": the answer has the predicted states, too. "attribution": it says
                what drives the crash probability; of one sequence [H, A] only, and not for whoever
                waits for a verdict: it is computed while the service has nothing else to do.
            members: As for `rollout`. No verdict of fewer than all is `safe`.
            dt_s: As for `predict`, like those that follow.
            frame: As for `predict`.
            timeout_s: As for `predict`.

        Returns:
            `verdict` ("safe", "unsafe" or "unknown"), `reasons` (each with `rule` and `message`),
            `crash_probability`, `crash_probability_by_step` ([H]), `time_to_crash_s` (seconds or
            None), `uncertainty` (None if one member answers), `threshold`, `horizon_s`,
            `model_version`, and `trajectory` ([H+1][S]) and `attribution` (`groups`, `state`,
            `action`, ...: see docs/http.md; None if the prediction is not finite) if included.
            With K sequences, these in `candidates` ([K]), and in `best` the index of the one with
            the lowest risk.

        Raises:
            InvalidInputError: An argument cannot be sent; nothing was.
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        arrays = {"state": (state, "[S]"), "actions": (actions, "[H, A] or [K, H, A]")}
        options = {
            "threshold": (threshold, probability),
            "include": (include, include_names),
            "members": (members, member_count),
            **_counted_on(dt_s, frame),
        }
        return self._call(Call("/safety-check", arrays, options, timeout_s))

    def model(self) -> Answer:
        """Return what is served: `GET /model`.

        Returns:
            `name`, `version`, `device`, `dims` (`state` and `action`: S and A), `dt_s`,
            `max_horizon`, `features` and all else that the service's documents list.

        Raises:
            ServiceError: The service refused or failed.
            UnreachableError: No answer came.
        """
        return self._call(Call("/model"))

    @abstractmethod
    def _call(self, call: Call) -> Answer:
        """Make a call: send it, maybe once more, and return what came."""

    def _exchange(self, call: Call) -> Exchange:
        return self._exchange_type(
            call, self._place, self._timeout_s, self._margin_s, self._checks_ids
        )

    def _http(self, *, fresh: bool) -> Http:
        """Return this process's connections; with `fresh`, those for one request each.

        Raises:
            ClosedClientError: The client was closed.
        """
        if self._is_closed:
            raise self._closed()
        key = (Forks.count, fresh and self._transport is None)
        if key not in self._pools:
            # Atomic: threads that come here at once end up with the same pool.
            self._pools.setdefault(key, self._opened())
        return self._pools[key]

    def _closed(self) -> ClosedClientError:
        return ClosedClientError(f"the client of {self._place} is closed: make another")

    @abstractmethod
    def _opened(self) -> Http:
        """Return connections, none of which is made yet."""

    def _closing(self) -> list[Http]:
        """Return what is to be closed: not what a parent still uses."""
        self._is_closed = True
        own = [key for key in list(self._pools) if key[0] == Forks.count]
        return [self._pools.pop(key) for key in own]


def _counted_on(dt_s: float | None, frame: str | None) -> dict[str, tuple[Any, Reader]]:
    return {"dt_s": (dt_s, seconds), "frame": (frame, label)}
