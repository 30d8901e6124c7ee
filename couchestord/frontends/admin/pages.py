"""The pages of the health and metrics servers. They ask for no key and tell nothing that needs one."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

from couchestord.frontends.http import Request, Response
from couchestord.metrics import CONTENT_TYPE, Metrics, Snapshot


class HealthLike(Protocol):
    """What the store says of itself."""

    @property
    def state(self) -> str:
        """healthy, degraded or unhealthy."""
        ...

    @property
    def reasons(self) -> tuple[str, ...]: ...


class Readiness:
    """What the daemon is doing, from its first moment to its last: it answers before there is a store to ask."""

    def __init__(self) -> None:
        self._health: Callable[[], HealthLike] | None = None
        self._waiting = "starting: the store is being opened"

    def opened(self, health: Callable[[], HealthLike]) -> None:
        """The store is open and the S3 server listens: requests will succeed as far as the store's health lets them."""
        self._health = health
        self._waiting = ""

    def stopping(self) -> None:
        """From here on, no new request should be sent here."""
        self._waiting = "stopping: requests under way are finished, new ones refused"

    def waiting(self, reason: str) -> None:
        """There is no store to ask until it is opened again."""
        self._health = None
        self._waiting = reason

    @property
    def state(self) -> str:
        return self._health().state if self._health else "unhealthy"

    @property
    def reasons(self) -> tuple[str, ...]:
        found = self._health().reasons if self._health else ()
        return (self._waiting, *found) if self._waiting else found

    @property
    def ready(self) -> bool:
        return not self._waiting and self.state != "unhealthy"


class HealthPages:
    """GET and HEAD of /livez, /readyz and /healthz.

    | page | 200 | 503 |
    |---|---|---|
    | /livez | the daemon's loop runs | never: no answer is the bad answer |
    | /readyz | requests will succeed | starting, stopping, unhealthy |
    | /healthz | healthy or degraded | starting, unhealthy |

    The body is JSON with `ok`, `state` and `reasons`; `?verbose` adds what each of the pages would say.
    """

    def __init__(self, readiness: Readiness) -> None:
        self._readiness = readiness

    async def handle(self, request: Request) -> Response:
        path, _, query = request.target.partition(b"?")
        checks = {
            b"/livez": True,
            b"/readyz": self._readiness.ready,
            b"/healthz": self._readiness.state != "unhealthy",
        }
        if (refused := _refuse(request, path, checks)) is not None:
            return refused
        ok = checks[path]
        page: dict[str, Any] = {"ok": ok, "state": self._readiness.state, "reasons": list(self._readiness.reasons)}
        if b"verbose" in query.split(b"&") or b"verbose=" in query:
            page["checks"] = {name.decode().strip("/"): passed for name, passed in checks.items()}
        body = json.dumps(page).encode() + b"\n"
        return Response(200 if ok else 503, (*_NO_STORE, (b"content-type", b"application/json")), body)


class MetricsPage:
    """GET and HEAD of /metrics. `snapshot` is asked at each scrape."""

    def __init__(self, metrics: Metrics, snapshot: Callable[[], Awaitable[Snapshot]]) -> None:
        self._metrics = metrics
        self._snapshot = snapshot

    async def handle(self, request: Request) -> Response:
        path = request.target.partition(b"?")[0]
        if (refused := _refuse(request, path, (b"/metrics",))) is not None:
            return refused
        body = self._metrics.render(await self._snapshot())
        return Response(200, (*_NO_STORE, (b"content-type", CONTENT_TYPE.encode())), body)


_NO_STORE: Final = ((b"cache-control", b"no-store"),)


def _refuse(request: Request, path: bytes, known: Any) -> Response | None:
    if path not in known:
        return Response(404, ((b"content-type", b"text/plain"),), b"not found; known: " + b" ".join(known) + b"\n")
    if request.method not in (b"GET", b"HEAD"):
        return Response(405, ((b"allow", b"GET, HEAD"),), b"")
    return None
