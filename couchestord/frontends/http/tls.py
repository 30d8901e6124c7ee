"""Connections under TLS: sockets that behave as the plain ones do, and the certificate they show.

A socket that has nothing at hand raises BlockingIOError, and epoll tells when to try again. One thing is other than
without TLS: bytes of a record that a read had no room for lie in the socket itself, where epoll does not see them.
"""

import logging
import os
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio

from couchestord.frontends.http.responses import bare_response

_log = logging.getLogger(__name__)
RECORD_BYTES: Final = 16 << 10
"""What a record holds at most. Of more than that at once nobody could tell how much was sent."""
_LINGER_S: Final = 1.0
_LOOK_S: Final = 10.0
_Stamp = tuple[tuple[int, int, int], ...]


class TlsSocket(ssl.SSLSocket):
    """A connected, non-blocking socket of a server. `shake_hands` comes first."""

    _has_shaken_hands = False
    _is_over = False

    async def shake_hands(self) -> None:
        """Once; later it does nothing. Raises OSError, of which ssl.SSLError is one, when client and server do not come
        together.
        """
        while not self._has_shaken_hands:
            try:
                self.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self)
            except ssl.SSLError as error:
                if error.reason == "HTTP_REQUEST":
                    await self._answer_plainly()
                raise
            else:
                self._has_shaken_hands = True

    async def _answer_plainly(self) -> None:
        socket.socket.send(self, bare_response(400, "this address speaks TLS: use https://"))
        socket.socket.shutdown(self, socket.SHUT_WR)
        # a close with unread input would reset the connection, and the answer would be lost
        with trio.move_on_after(_LINGER_S):
            while True:
                await trio.lowlevel.wait_readable(self)
                if not socket.socket.recv(self, RECORD_BYTES):
                    break

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """What is there, up to `buflen` bytes; empty: the client sends no more. More may be `pending`, but not when
        `buflen` is a number of whole records.
        """
        if not self._has_shaken_hands:
            return b""  # `ssl` asks, when the client is gone before it is wrapped: the handshake will fail
        piece = self._read(buflen)
        if len(piece) < RECORD_BYTES or buflen <= RECORD_BYTES:
            return piece
        pieces, left = [piece], buflen - len(piece)
        with suppress(BlockingIOError):
            while left and len(piece) == RECORD_BYTES:
                pieces.append(piece := self._read(min(left, RECORD_BYTES)))
                left -= len(piece)
        return b"".join(pieces)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """What is there, as much as the buffer takes; `nbytes` is not for use. More may be `pending`."""
        view, filled, count = memoryview(buffer), 0, RECORD_BYTES
        while filled < len(view) and count == RECORD_BYTES:
            try:
                count = 0 if self._is_over else self.read(len(view) - filled, view[filled:])  # type: ignore[assignment]
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                if not filled:
                    raise BlockingIOError from error
                break
            filled += count
        return filled

    def send(self, data: Any, flags: int = 0) -> int:
        """So many bytes were taken. After fewer than all, what follows is sent next, and nothing else."""
        view, sent = memoryview(data), 0
        while sent < len(view):
            try:
                sent += self.write(view[sent : sent + RECORD_BYTES])
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
                if not sent:
                    raise BlockingIOError from error
                break
        return sent

    def shutdown(self, how: int) -> None:
        """The client is told that nothing was cut off; what it sends still comes."""
        self._say_goodbye()
        socket.socket.shutdown(self, how)

    def close(self) -> None:
        if self.fileno() != -1:
            self._say_goodbye()
        super().close()

    def _read(self, length: int) -> bytes:
        try:
            return b"" if self._is_over else self.read(length)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error
        except ssl.SSLEOFError:
            return b""

    def _say_goodbye(self) -> None:
        # an answer to it is not waited for: it comes as an end, or not at all
        with suppress(OSError, ValueError):
            self.unwrap()
            self._is_over = True


class Certificate:
    """What a server shows, and proves with its key; both are PEM files. Another one is taken up when they change."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises ValueError that says what is wrong with them."""
        self._paths = certificate, key
        self._stamp: _Stamp = self._look()
        self._context = self._load()

    def wrap(self, sock: Any) -> TlsSocket:
        """The socket under TLS, before the handshake; the plain one is closed with it. Raises OSError."""
        wrapped = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        assert isinstance(wrapped, TlsSocket)
        return wrapped

    async def follow(self) -> None:
        """Takes up what the files hold when they have changed, until cancelled. One that is no good is told once, and
        the one before stays.
        """
        while True:
            await trio.sleep(_LOOK_S)
            self.look()

    def look(self) -> None:
        """See `follow`."""
        stamp: _Stamp = ()
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._context = self._load()
                _log.info("a new certificate is shown from now on: %s", self._paths[0])
        except ValueError as error:
            if stamp != self._stamp:
                _log.error("the certificate has changed and cannot be used, the one before stays: %s", error)
        self._stamp = stamp

    def _look(self) -> _Stamp:
        try:
            found = [os.stat(path) for path in self._paths]
        except OSError as error:
            raise ValueError(f"cannot read {error.filename}: {error.strerror}") from None
        return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in found)

    def _load(self) -> ssl.SSLContext:
        certificate, key = self._paths
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        context.sslsocket_class = TlsSocket
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError as error:
            why = "are no pair" if error.reason == "KEY_VALUES_MISMATCH" else "are not both PEM files"
            raise ValueError(f"{certificate} and {key} {why} ({error.reason or error})") from None
        except OSError as error:
            raise ValueError(f"cannot read {certificate} or {key}: {error.strerror}") from None
        return context


def _no_password() -> str:
    raise ValueError("the key is encrypted: nobody can type its passphrase here; give one that is not")
