from pathlib import Path
from typing import Any

import pytest
from small_store import body_of, new_store, put_all, read

from couchestord.errors import InvalidArgument
from couchestord.frontends.admin.commands import execute
from couchestord.store.door import ObjectStore


async def run(store: ObjectStore, command: str, **arguments: Any) -> Any:
    return await execute(store, command, arguments)


async def test_stats_warmup_evict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("couchestord.store.caching.LIST_KEYS_MAX", 2)
    async with new_store(tmp_path) as store:
        keys = [b"a/1", b"a/2", "a/\N{LATIN SMALL LETTER E WITH ACUTE}".encode(), b"b"]
        await put_all(store, {key: body_of(1000, key) for key in keys})
        first = await run(store, "cache warmup", bucket="box", prefix="a/")
        assert first == {"objects": 2, "bytes": 2000, "unreadable": 0, "next": "a/2", "capacity_bytes": 128 << 20}
        second = await run(store, "cache warmup", bucket="box", prefix="a/", start=first["next"])
        assert (second["objects"], second["next"]) == (1, None)
        [row] = await run(store, "cache stats")
        assert (row["tier"], row["entries"], row["misses"], row["hits"]) == ("l1", 3, 3, 0)
        for key in keys:
            await read(store, key)
        [row] = await run(store, "cache stats")
        assert (row["hits"], row["misses"], row["hit_ratio"]) == (3, 4, 0.4286)
        assert await run(store, "cache evict", tier="l1") == {"bytes": row["bytes"]}
        assert (await run(store, "cache stats"))[0]["entries"] == 0
        with pytest.raises(InvalidArgument, match="no tier 'l9'"):
            await run(store, "cache evict", tier="l9")
