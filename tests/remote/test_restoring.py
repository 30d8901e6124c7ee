"""What is spoiled in the bucket is noticed: an older catalog is taken, the log ends, or nothing is made of it."""

from pathlib import Path

import msgspec
import pytest
from publish_rig import STORE, PublishRig, run

from couchestord.errors import Corrupt, NoSuchBlob, NotAStore, RemoteUnavailable, UnknownFormat
from couchestord.io.checksum import xxh3_64
from couchestord.remote.root import Entry, Run, piece_key
from couchestord.remote.roots import OBJECT_BYTES_MAX, Roots, store_ids


async def published() -> PublishRig:
    """Two roots of one start, each with records behind it."""
    rig = PublishRig()
    publisher = await rig.start()
    await run(publisher)
    for _ in range(6):
        rig.commit(20)
        await run(publisher)
        rig.take()
        rig.commit(10)
        await run(publisher)
    assert [name.sequence for name in await rig.roots.names()] == [170, 140]
    return rig


async def sequences(rig: PublishRig, path: Path) -> tuple[int, int]:
    """Of the root that a lost node is made from, and of the last record behind it."""
    root, end = await rig.recover(path)
    return root.sequence, end


async def test_all_of_it(tmp_path: Path) -> None:
    rig = await published()
    root, end = await rig.recover(tmp_path / "file")
    assert (root.sequence, end) == (170, 180)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("how", ["rotten", "empty", "gone", "of another store"])
async def test_a_root_that_is_spoiled(how: str, tmp_path: Path) -> None:
    rig = await published()
    newest, older = await rig.roots.names()
    kept = rig.backend.objects.pop(newest.key)
    if how == "rotten":
        rig.backend.objects[newest.key] = kept[:-1] + bytes([kept[-1] ^ 1])
    elif how == "empty":
        rig.backend.objects[newest.key] = b""
    elif how == "of another store":
        rig.backend.objects[newest.key] = rig.backend.objects[older.key]
    root, end = await rig.recover(tmp_path / "file")
    assert root.sequence == 140
    assert end == 180, "the log goes on from the older one"


@pytest.mark.parametrize("how", ["rotten", "gone", "longer"])
async def test_a_piece_that_is_spoiled(how: str, tmp_path: Path) -> None:
    rig = await published()
    newest, older = [await rig.roots.read_root(name) for name in await rig.roots.names()]
    (only, *_) = set(newest.pieces) - set(older.pieces)
    kept = rig.backend.objects.pop(piece_key(STORE, only))
    if how == "rotten":
        rig.backend.objects[piece_key(STORE, only)] = kept[:-1] + bytes([kept[-1] ^ 1])
    elif how == "longer":
        rig.backend.objects[piece_key(STORE, only)] = kept + b"x"
    root, end = await rig.recover(tmp_path / "file")
    assert (root.sequence, end) == (140, 180)
    (shared, *_) = older.pieces
    del rig.backend.objects[piece_key(STORE, shared)]
    if shared in newest.pieces:
        with pytest.raises(Corrupt, match="none of the 2"):
            await rig.recover(tmp_path / "file")


@pytest.mark.parametrize("how", ["rotten", "gone"])
async def test_a_run_that_is_spoiled_ends_the_log(how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rig = await published()
    *_, before_last, last = await rig.roots.runs()
    kept = rig.backend.objects.pop(before_last.key)
    if how == "rotten":
        rig.backend.objects[before_last.key] = kept[:30] + bytes([kept[30] ^ 1]) + kept[31:]
    root, end = await rig.recover(tmp_path / "file")
    assert root.sequence == 170
    assert end == before_last.first - 1 < last.first - 1
    assert ("gap" if how == "gone" else "ends early") in caplog.text


@pytest.mark.parametrize("what", ["root", "piece", "run"])
async def test_what_has_no_end_is_not_read_to_its_end(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rig = await published()
    newest, older = await rig.roots.names()
    last_run = (await rig.roots.runs())[-1]
    pieces = [(await rig.roots.read_root(name)).pieces for name in (newest, older)]
    (piece, *_) = set(pieces[0]) - set(pieces[1])
    keys = {"root": newest.key, "piece": piece_key(STORE, piece), "run": last_run.key}
    rig.backend.objects[keys[what]] += bytes(2 * OBJECT_BYTES_MAX)
    root, end = await rig.recover(tmp_path / "file")
    assert (root.sequence, end) == ((170, last_run.first - 1) if what == "run" else (140, 180))
    assert f"more than {OBJECT_BYTES_MAX} bytes" in caplog.text


@pytest.mark.parametrize("what", ["roots", "pieces", "log"])
async def test_no_single_answer_costs_what_is_there(what: str, tmp_path: Path) -> None:
    """With another root the log is another one, too: all since the last start may be in the newest only."""
    rig = await published()
    publisher = await rig.start()
    await run(publisher)
    rig.commit(100)
    await run(publisher)
    false_answers: list[str] = []

    def deny(call: str, key: str) -> None:
        if call == "get" and key.startswith(what) and not false_answers:
            false_answers.append(key)
            raise NoSuchBlob(key)

    rig.backend.before = deny
    with pytest.raises(RemoteUnavailable, match="does not find it"):
        await sequences(rig, tmp_path / "file")
    assert await sequences(rig, tmp_path / "file") == (publisher.rooted_sequence, len(rig.log))

    rig.backend.before = lambda _call, _key: None
    get = rig.backend.get

    async def spoil(key: str, offset: int, length: int) -> bytes:
        data = await get(key, offset, length)
        if key.startswith(what) and not false_answers:
            false_answers.append(key)
            data = data[:-1] + bytes([data[-1] ^ 1])
        return data

    false_answers.clear()
    rig.backend.get = spoil  # type: ignore[method-assign]
    assert await sequences(rig, tmp_path / "file") == (publisher.rooted_sequence, len(rig.log))
    assert false_answers


async def test_the_last_run_is_gone(tmp_path: Path) -> None:
    rig = await published()
    last = (await rig.roots.runs())[-1]
    del rig.backend.objects[last.key]
    assert (await rig.recover(tmp_path / "file"))[1] == last.first - 1


async def test_runs_of_another_start_are_none_of_its(tmp_path: Path) -> None:
    """They may hold other records: the log of a store that lost more disks than it outlives may end sooner."""
    rig = await published()
    newest = (await rig.roots.names())[0]
    await rig.roots.put_run(Run(STORE, newest.epoch + 1, newest.sequence + 1, 1, (Entry(b"other", 1),)))
    await rig.roots.put_run(Run(STORE, newest.epoch - 1, newest.sequence + 5, 1, (Entry(b"other", 1),) * 9))
    assert (await rig.recover(tmp_path / "file"))[1] == len(rig.log)


async def test_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(NotAStore, match="no catalog"):
        await PublishRig().recover(tmp_path / "file")
    assert not (tmp_path / "file").exists()


async def test_a_root_that_lacks_a_piece_in_its_list(tmp_path: Path) -> None:
    rig = await published()
    newest = await rig.roots.read_root((await rig.roots.names())[0])
    wrong = msgspec.structs.replace(newest, epoch=newest.epoch + 1, pieces=newest.pieces[:-1])
    await rig.roots.put_root(wrong)
    root, _ = await rig.recover(tmp_path / "file")
    assert root == newest


async def test_a_newer_program_wrote_it(tmp_path: Path) -> None:
    rig = await published()
    newest = (await rig.roots.names())[0]
    packed = rig.backend.objects[newest.key]
    head = packed[:4] + b"\x02\0" + packed[6:12]
    rig.backend.objects[newest.key] = head + xxh3_64(head + packed[20:], 2).to_bytes(8, "little") + packed[20:]
    with pytest.raises(UnknownFormat):
        await rig.recover(tmp_path / "file")


async def test_a_bucket_that_does_not_answer_is_no_damage(tmp_path: Path) -> None:
    rig = await published()

    def before(call: str, key: str) -> None:
        if call == "get" and key.startswith("pieces/"):
            raise RemoteUnavailable("away")

    rig.backend.before = before
    with pytest.raises(RemoteUnavailable):
        await rig.recover(tmp_path / "file")


async def test_whose_catalogs_are_there() -> None:
    rig = await published()
    assert await store_ids(rig.backend) == [STORE]
    name = (await rig.roots.names())[0]
    other = name._replace(store_id=b"\xff" * 16)
    rig.backend.objects[other.key] = b""
    rig.backend.objects["roots/readme"] = b""
    assert await store_ids(rig.backend) == [STORE, b"\xff" * 16]
    assert await Roots(rig.backend, b"\xff" * 16).names() == [other]
