"""Ways of sending 64 MiB from files that are in memory: `python -m bench.sending [--quick] [--folder DIR]`.

All rounds are interleaved, each over one loopback connection to a process that throws the bytes away. The bytes lie as
in the shards of a store: 256 KiB of each of four files in turn. Verifying is XXH3 over each 16 KiB. CPU is that of the
sending process, kernel included; medians.
"""

import argparse
import mmap
import os
import random
import select
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from couchestord.io.checksum import xxh3_64

KIB: Final = 1 << 10
PIECE_BYTES: Final = 256 * KIB
BLOCK_BYTES: Final = 16 * KIB
FILES: Final = 4
PIECES_A_FILE: Final = 64
SIZE_BYTES: Final = PIECE_BYTES * FILES * PIECES_A_FILE
Send = Callable[[socket.socket], None]


def _verify(data: memoryview) -> None:
    for at in range(0, len(data), BLOCK_BYTES):
        xxh3_64(data[at : at + BLOCK_BYTES])


def _until_done(sock: socket.socket, length: int, send: Callable[[int], int]) -> None:
    """Calls `send` with what was sent so far, and waits whenever the socket is full."""
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    sent = 0
    while sent < length:
        try:
            sent += send(sent)
        except BlockingIOError:
            poll.poll()


def _sendfile(sock: socket.socket, number: int, offset: int, length: int) -> None:
    _until_done(sock, length, lambda sent: os.sendfile(sock.fileno(), number, offset + sent, length - sent))


class Ways:
    """The ways, over the same files."""

    def __init__(self, folder: Path) -> None:
        rng = random.Random(0)
        self._numbers = []
        for index in range(FILES):
            path = folder / str(index)
            path.write_bytes(rng.randbytes(PIECE_BYTES * PIECES_A_FILE))
            self._numbers.append(os.open(path, os.O_RDONLY))
        self._whole = os.open(folder / "whole", os.O_RDWR | os.O_CREAT)
        for number, offset in self._pieces():
            os.write(self._whole, os.pread(number, PIECE_BYTES, offset))
        self._maps = {number: memoryview(mmap.mmap(number, 0, prot=mmap.PROT_READ)) for number in self._numbers}
        self._buffer = memoryview(bytearray(PIECE_BYTES))

    def _pieces(self) -> Iterator[tuple[int, int]]:
        for turn in range(PIECES_A_FILE):
            for number in self._numbers:
                yield number, turn * PIECE_BYTES

    def _read(self, number: int, offset: int) -> memoryview:
        if os.preadv(number, (self._buffer,), offset, os.RWF_NOWAIT) != PIECE_BYTES:
            raise SystemExit("the files do not stay in memory")
        _verify(self._buffer)
        return self._buffer

    def bare(self, sock: socket.socket) -> None:
        _sendfile(sock, self._whole, 0, SIZE_BYTES)

    def buffer(self, sock: socket.socket) -> None:
        for number, offset in self._pieces():
            data = self._read(number, offset)
            _until_done(sock, PIECE_BYTES, lambda sent, data=data: sock.send(data[sent:]))  # type: ignore[misc]

    def buffer_sendfile(self, sock: socket.socket) -> None:
        for number, offset in self._pieces():
            self._read(number, offset)
            _sendfile(sock, number, offset, PIECE_BYTES)

    def map_sendfile(self, sock: socket.socket) -> None:
        for number, offset in self._pieces():
            _verify(self._maps[number][offset : offset + PIECE_BYTES])
            _sendfile(sock, number, offset, PIECE_BYTES)

    def all(self) -> dict[str, Send]:
        return {
            "sendfile of one file, not verified": self.bare,
            "verified in a buffer, sent from it": self.buffer,
            "verified in a buffer, then sendfile": self.buffer_sendfile,
            "verified in a map, then sendfile": self.map_sendfile,
        }


def _throw_away(address: tuple[str, int]) -> None:
    buffer = bytearray(1 << 20)
    with socket.create_connection(address) as sock:
        while sock.recv_into(buffer):
            pass


def bench(folder: Path, rounds: int) -> None:
    ways = Ways(folder).all()
    listener = socket.create_server(("127.0.0.1", 0))
    reader = os.fork()
    if not reader:
        try:
            _throw_away(listener.getsockname())
        finally:
            os._exit(0)
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, send in ways.items():
            begun = time.process_time()
            send(sock)
            spent[name].append(time.process_time() - begun)
    sock.close()
    os.waitpid(reader, 0)
    medians = {name: statistics.median(times) for name, times in spent.items()}
    bare = next(iter(medians.values()))
    print(f"{'64 MiB':40} {'CPU ms':>8} {'of sendfile':>12}")
    for name, median in medians.items():
        print(f"{name:40} {median * 1e3:8.1f} {median / bare:12.2f}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sending", description="Ways of sending a large body.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, noisier")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="couchestord-bench-") as folder:
        bench(Path(folder), 15 if options.quick else 60)


if __name__ == "__main__":
    main()
