"""A bucket over TLS, and over a network that cuts connections."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from backends import Bucket
from certificates import Authority, make_certificate
from cutting_proxy import cutting
from scripted_server import answer, serving

from couchestord.clock import SystemClock
from couchestord.errors import RemoteDenied, RemoteUnavailable
from couchestord.remote.client import Limits
from couchestord.remote.location import Credentials, Location
from couchestord.remote.s3 import Patience, S3Backend, S3Options

KEY = Credentials("AK", "secret")
QUICK = S3Options(patience=Patience(attempts_max=2, pause_s=0.001))
STUBBORN = S3Options(patience=Patience(attempts_max=40, pause_s=0.001, pause_s_max=0.01))


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_certificate(tmp_path_factory.mktemp("trusted"), "IP:127.0.0.1")


async def test_bytes_go_over_tls(trusted: Authority) -> None:
    data = random.Random(1).randbytes(3 << 20)
    ranged = answer(206, data[:1000], {"Content-Range": f"bytes 0-999/{len(data)}"})
    async with serving([answer(200), ranged], trusted.server()) as server:
        location = Location("127.0.0.1", server.port, True, "box")
        backend = S3Backend(location, lambda: KEY, SystemClock(), QUICK, trusted.client())
        await backend.put_new("a", [data])
        assert await backend.get("a", 0, 1000) == data[:1000]
        await backend.aclose()
    assert server.asked[0].body == data
    assert server.connections == 1


async def test_a_server_that_nobody_vouches_for_is_not_asked(trusted: Authority, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "DNS:other.example")
    for certificate, context in ((trusted, None), (trusted, other.client()), (other, other.client())):
        async with serving([answer(200)], certificate.server()) as server:
            location = Location("127.0.0.1", server.port, True, "box")
            backend = S3Backend(location, lambda: KEY, SystemClock(), QUICK, context)
            with pytest.raises(RemoteDenied, match="certificate"):
                await backend.put_new("a", [b"x"])
            await backend.aclose()
        assert server.asked == []


async def test_a_server_without_tls_is_not_asked_in_the_clear(trusted: Authority) -> None:
    async with serving([answer(200)] * 2) as server:
        location = Location("127.0.0.1", server.port, True, "box")
        options = replace(QUICK, limits=Limits(connect_s=0.2))
        backend = S3Backend(location, lambda: KEY, SystemClock(), options, trusted.client())
        with pytest.raises(RemoteUnavailable):
            await backend.put_new("a", [b"x"])
        await backend.aclose()
    assert all(KEY.access_key not in str(asked.headers) for asked in server.asked)


@pytest.mark.parametrize("cut_after_bytes", [5000, 40_000, 400_000])
async def test_all_gets_through_a_network_that_cuts(couchestord_bucket: Bucket, cut_after_bytes: int) -> None:
    """Requests and replies cut anywhere: what was put is there, once, byte for byte, and nothing else is."""
    source = random.Random(cut_after_bytes)
    objects = {f"k{number:02}": source.randbytes(source.randrange(cut_after_bytes)) for number in range(20)}
    part = couchestord_bucket.part()
    async with cutting(part.port, cut_after_bytes, cut_after_bytes) as proxy:
        place = Location("127.0.0.1", proxy.port, False, part.bucket, part.prefix)
        backend = couchestord_bucket.backend(place, STUBBORN)
        async with trio.open_nursery() as nursery:
            for key, data in objects.items():
                nursery.start_soon(backend.put_new, key, [data])
        for key, data in objects.items():
            assert await backend.size(key) == len(data)
            assert await backend.get(key, 0, len(data) + 1) == data
        page = await backend.list("")
        assert {stored.key: stored.size_bytes for stored in page.objects} == {k: len(v) for k, v in objects.items()}
        for key in objects:
            await backend.delete(key)
        assert (await backend.list("")).objects == ()
        await backend.aclose()
    assert proxy.cuts > 5
