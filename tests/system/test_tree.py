"""A tree of real files in by s5cmd and by rclone, out by boto3, byte for byte; and a large object by multipart."""

import hashlib
import os
import shutil
import sysconfig
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig
from daemon import Node, node
from workload import listing

STDLIB = Path(sysconfig.get_paths()["stdlib"])
ODD_NAMES = (
    "a+b c",
    "100%",
    "%41",
    "\u00e9\u6587",
    "a&b=c;d#e",
    "(a)'b'!",
    "-a",
    "~a",
    "a.b/c",
    "A",
    ".hidden",
)
"""Names that have to be quoted somewhere on the way."""


def real_files(folder: Path, count: int) -> dict[str, Path]:
    """A tree of `count` files of Python's library, every n-th of them, under their names, and some of odd names."""
    found = sorted(
        path
        for path in STDLIB.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and "__pycache__" not in path.parts
        and path.stat().st_size < 4 << 20
    )
    assert found
    chosen: dict[str, Path] = {}
    turn = 0
    while len(chosen) < count:
        # more than the library has: the tree again, beside itself
        for path in found[:: max(1, len(found) // count)][: count - len(chosen)]:
            name = f"{turn}/{path.relative_to(STDLIB)}"
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            chosen[name] = target
        turn += 1
    for name in ODD_NAMES:
        target = folder / "odd" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(name)
        chosen[f"odd/{name}"] = target
    return chosen


def check_out(store: Node, bucket: str, files: dict[str, Path]) -> None:
    client = store.s3()
    assert listing(client, bucket) == sorted(files, key=os.fsencode)
    for name, path in files.items():
        with client.get_object(Bucket=bucket, Key=name)["Body"] as body:
            assert body.read() == path.read_bytes(), name


def tree_in_and_out(folder: Path, count: int) -> None:
    for program in ("s5cmd", "rclone"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    tree = folder / "tree"
    files = real_files(tree, count)
    assert len(files) > count
    with node(folder / "data") as store:
        for bucket in ("s5cmd", "rclone"):
            store.s3().create_bucket(Bucket=bucket)
        store.tool("s5cmd", "--endpoint-url", store.addresses["s3"], "cp", f"{tree}/", "s3://s5cmd/")
        store.tool("rclone", "copy", tree, ":s3:rclone", "--transfers", "4", "--no-check-dest")
        for bucket in ("s5cmd", "rclone"):
            check_out(store, bucket, files)
        assert store.tool("rclone", "check", tree, ":s3:s5cmd", "--one-way") == ""
        store.restart()
        store.wait_destaged(300)
        for bucket in ("s5cmd", "rclone"):
            check_out(store, bucket, files)


def test_tree(tmp_path: Path) -> None:
    tree_in_and_out(tmp_path, 300)


@pytest.mark.soak
def test_tree_of_five_thousand_files(tmp_path: Path) -> None:
    tree_in_and_out(tmp_path, 5_000)


def large_in_and_out(folder: Path, size_bytes: int) -> None:
    """A file without holes or repetition, up in parts of 8 MiB, several at a time, and down again."""
    source, back = folder / "source", folder / "back"
    total = hashlib.sha256()
    with source.open("wb") as file:
        for _ in range(size_bytes >> 20):
            piece = os.urandom(1 << 20)
            total.update(piece)
            file.write(piece)
    settings = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=4)
    with node(folder / "data") as store:
        client = store.s3(timeout_s=60)
        client.create_bucket(Bucket="large")
        client.upload_file(str(source), "large", "object", Config=settings)
        source.unlink()
        head = client.head_object(Bucket="large", Key="object")
        assert head["ContentLength"] == size_bytes
        assert head["ETag"].endswith(f'-{size_bytes >> 23}"')
        client.download_file("large", "object", str(back), Config=settings)
        with back.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").digest() == total.digest()
            start = size_bytes // 3
            with client.get_object(Bucket="large", Key="object", Range=f"bytes={start}-{start + 99_999}")[
                "Body"
            ] as body:
                file.seek(start)
                assert body.read() == file.read(100_000)


def test_large_object(tmp_path: Path) -> None:
    large_in_and_out(tmp_path, 64 << 20)


@pytest.mark.soak
def test_object_of_a_gibibyte(tmp_path: Path) -> None:
    large_in_and_out(tmp_path, 1 << 30)
