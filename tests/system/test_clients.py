"""What clients may count on: one sees at once what another was answered, many at a time are served in bounded memory,
and nothing that they sign with comes into the log.
"""

import functools
import multiprocessing
import os
import re
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio
import urllib3
from daemon import QUICK, UNCACHED, Node, connect, error_of, node, with_workers
from workload import BUCKET, content, listing, read

KEYS = ("plain", "a/deep/folder/of/keys", "a/deep/file", "\u00e9 +%41//odd")
SIZES = (3, 100_000, 600_000)
RESIDENT_BYTES_MAX = 320 << 20
UPLOADS_COUNT = 64
UPLOAD_BYTES = 8 << 20
BEGUN_BYTES = 256 << 10


@functools.cache
def client_of_this_process(url: str, key: tuple[str, str]) -> Any:
    return connect(url, key)


def look(url: str, key: tuple[str, str], name: str) -> tuple[bytes | None, int | None, list[str]]:
    """What GET, HEAD (the length) and LIST say."""
    client = client_of_this_process(url, key)
    heads: list[dict[str, Any]] = []
    code, _ = error_of(lambda: heads.append(client.head_object(Bucket=BUCKET, Key=name)))
    assert code == (200 if heads else 404)
    return read(client, BUCKET, name), heads[0]["ContentLength"] if heads else None, listing(client, BUCKET)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_process_sees_what_another_was_answered(tmp_path: Path, workers: int) -> None:
    spawned = multiprocessing.get_context("spawn")
    present: set[str] = set()
    settings = with_workers(QUICK, workers)
    with node(tmp_path / "data", settings) as store, ProcessPoolExecutor(1, spawned) as other:
        client = store.s3()
        client.create_bucket(Bucket=BUCKET)

        def holds(name: str, body: bytes | None) -> None:
            present.discard(name) if body is None else present.add(name)
            found = other.submit(look, store.addresses["s3"], store.key, name).result()
            assert found == (body, None if body is None else len(body), sorted(present, key=str.encode))

        for number, size in enumerate(SIZES):
            for name in KEYS:
                body = content(f"{name} {number}", size)
                client.put_object(Bucket=BUCKET, Key=name, Body=body)
                holds(name, body)
            for name in KEYS if number != 1 else ():  # what is put next is new, or written over
                client.delete_object(Bucket=BUCKET, Key=name)
                holds(name, None)


async def put_slowly(url: str, gate: trio.Event, begun: trio.Semaphore) -> bytes:
    """A PUT to a presigned URL whose body is held back until the gate opens; the first line of the answer."""
    place = urlsplit(url)
    assert place.hostname is not None
    assert place.port is not None
    head = f"PUT {place.path}?{place.query} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Length: {UPLOAD_BYTES}\r\n\r\n"
    body = memoryview(bytes(UPLOAD_BYTES))
    async with await trio.open_tcp_stream(place.hostname, place.port) as stream:
        await stream.send_all(head.encode())
        await stream.send_all(body[:BEGUN_BYTES])
        begun.release()
        await gate.wait()
        await stream.send_all(body[BEGUN_BYTES:])
        return bytes(await stream.receive_some(4096)).partition(b"\r\n")[0]


def peak_resident_bytes(store: Node) -> int:
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{store.pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) << 10


async def test_many_slow_uploads_take_bounded_memory(tmp_path: Path) -> None:
    """More than the store gives large buffers to; their bodies together are longer than it may take."""
    assert UPLOADS_COUNT * UPLOAD_BYTES > RESIDENT_BYTES_MAX * 3 // 2
    answers: list[bytes] = []
    with node(tmp_path / "data") as store:
        client = store.s3()
        client.create_bucket(Bucket=BUCKET)
        upload = client.create_multipart_upload(Bucket=BUCKET, Key="large")["UploadId"]
        gate, begun = trio.Event(), trio.Semaphore(0)

        async def put(number: int) -> None:
            part = {"Bucket": BUCKET, "Key": "large", "UploadId": upload, "PartNumber": number}
            answers.append(await put_slowly(client.generate_presigned_url("upload_part", part), gate, begun))

        async with trio.open_nursery() as nursery:
            for number in range(UPLOADS_COUNT):
                nursery.start_soon(put, number + 1)
            for _ in range(UPLOADS_COUNT):
                await begun.acquire()
            gate.set()
        assert answers == [b"HTTP/1.1 200 OK"] * UPLOADS_COUNT
        assert peak_resident_bytes(store) < RESIDENT_BYTES_MAX


@pytest.mark.parametrize("workers", [0, 2])
def test_log_holds_nothing_that_was_signed_with(tmp_path: Path, workers: int) -> None:
    """All output of a daemon that tells everything, while a key is made and requests succeed, are refused, and fail."""
    secret = "secret-of-the-second-key"
    settings = with_workers({**QUICK, **UNCACHED, "COUCHESTORD_LOG__LEVEL": "debug"}, workers)
    with Node(tmp_path / "data", settings=settings) as store:
        store.start().s3().create_bucket(Bucket=BUCKET)
        store.s3().put_object(Bucket=BUCKET, Key="key", Body=bytes(600_000))
        store.ask("key add", user="second", access_key="SECOND00", secret_key=secret, admin=True)
        signed = [secret, store.key[1]]

        def get(made_with: str, bucket: str = BUCKET) -> int:
            """The status, by a header that is signed and by a URL that is; what they were signed with is taken down."""
            client = connect(store.addresses["s3"], ("SECOND00", made_with))
            client.meta.events.register(
                "before-send", lambda request, **_: signed.append(request.headers["Authorization"].decode()[-64:])
            )
            code, _ = error_of(lambda: client.get_object(Bucket=bucket, Key="key")["Body"].read())
            url = client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "key"})
            signed.extend(parse_qs(urlsplit(url).query)["X-Amz-Signature"])
            with urllib3.PoolManager() as pool:
                assert pool.request("GET", url, retries=False).status == code
            client.close()
            return code

        assert (get(secret), get("another"), get(secret, "no-such-bucket")) == (200, 403, 404)
        for index in range(3):
            for shard in (store.disks[index] / "segments").iterdir():
                os.truncate(shard, 0)
        assert get(secret) == 500
        assert store.process is not None
        assert store.process.stdout is not None
        store.process.terminate()
        output = store.process.stdout.read() + store.said()
        assert "data is lost" in output
        assert len(signed) == 10
        assert [text for text in signed if text in output] == []
