import json
from typing import Any

import pytest
from admin_store import AdminStore

from couchestord.frontends.admin.pages import HealthPages, MetricsPage, Readiness
from couchestord.frontends.http import Request, Response
from couchestord.metrics import Metrics, Snapshot


class NoBody:
    def __aiter__(self) -> "NoBody":
        return self

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration

    async def read_into(self, buffer: memoryview) -> int | None:
        return None


def request(target: bytes, method: bytes = b"GET") -> Request:
    return Request(method, target, (), NoBody(), 0)


async def ask(readiness: Readiness, target: str) -> tuple[int, dict[str, Any]]:
    response = await HealthPages(readiness).handle(request(target.encode()))
    assert isinstance(response.body, bytes)
    return response.status, json.loads(response.body)


async def statuses(readiness: Readiness) -> dict[str, int]:
    return {page: (await ask(readiness, f"/{page}"))[0] for page in ("livez", "readyz", "healthz")}


async def test_before_there_is_a_store_only_livez_is_well() -> None:
    readiness = Readiness()
    assert await statuses(readiness) == {"livez": 200, "readyz": 503, "healthz": 503}
    _, page = await ask(readiness, "/readyz")
    assert page["ok"] is False
    assert "starting" in page["reasons"][0]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("healthy", {"livez": 200, "readyz": 200, "healthz": 200}),
        ("degraded", {"livez": 200, "readyz": 200, "healthz": 200}),
        ("unhealthy", {"livez": 200, "readyz": 503, "healthz": 503}),
    ],
)
async def test_pages_follow_the_store(state: str, expected: dict[str, int]) -> None:
    store, readiness = AdminStore(), Readiness()
    readiness.opened(store.health)
    store.degrade(state, "disk-3 is missing")
    assert await statuses(readiness) == expected
    _, page = await ask(readiness, "/healthz")
    assert (page["state"], page["reasons"]) == (state, ["disk-3 is missing"])


async def test_stopping_is_not_ready_but_alive() -> None:
    readiness = Readiness()
    readiness.opened(AdminStore().health)
    readiness.stopping()
    assert await statuses(readiness) == {"livez": 200, "readyz": 503, "healthz": 200}


@pytest.mark.parametrize("target", ["/livez?verbose", "/livez?verbose=1", "/livez?a=b&verbose"])
async def test_verbose_tells_every_check(target: str) -> None:
    _, page = await ask(Readiness(), target)
    assert page["checks"] == {"livez": True, "readyz": False, "healthz": False}


async def test_what_is_not_served() -> None:
    pages = HealthPages(Readiness())
    assert (await pages.handle(request(b"/"))).status == 404
    assert (await pages.handle(request(b"/metrics"))).status == 404
    assert (await pages.handle(request(b"/livez", b"POST"))).status == 405


async def test_metrics_are_asked_for_at_each_scrape() -> None:
    asked: list[int] = []

    async def snapshot() -> Snapshot:
        asked.append(1)
        return Snapshot(journal_bytes=len(asked))

    page = MetricsPage(Metrics(), snapshot)
    await page.handle(request(b"/metrics"))
    response: Response = await page.handle(request(b"/metrics"))
    assert isinstance(response.body, bytes)
    assert b"couchestord_journal_bytes 2.0" in response.body
    assert (await page.handle(request(b"/healthz"))).status == 404
