"""A server that does nothing but sendfile, the limit of a large GET: `python -m bench.sendfile FILE`.

One thread, epoll, keep-alive, no signature, no verification: the answer to any request is FILE. Prints its port and
serves on loopback until it is ended.
"""

import os
import select
import socket
import sys
from dataclasses import dataclass

REQUEST_BYTES_MAX = 64 << 10


@dataclass(slots=True)
class Client:
    """A connection; `at` and `end` are what is left to send of the file."""

    socket: socket.socket
    received: bytes = b""
    at: int = 0
    end: int = 0


def _send(client: Client, file: int) -> bool:
    """Sends on; True when all is sent."""
    try:
        while client.at < client.end:
            client.at += os.sendfile(client.socket.fileno(), file, client.at, client.end - client.at)
    except BlockingIOError:
        return False
    return True


def _receive(client: Client) -> bool | None:
    """True when a request is whole, None when the client has gone."""
    data = client.socket.recv(REQUEST_BYTES_MAX)
    client.received += data
    if not data or len(client.received) > REQUEST_BYTES_MAX:
        return None
    return client.received.endswith(b"\r\n\r\n")


def serve(path: str) -> None:
    """Serves the file at `path`, until SIGTERM or SIGINT."""
    file = os.open(path, os.O_RDONLY)
    size = os.fstat(file).st_size
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode()
    listener = socket.create_server(("127.0.0.1", 0))
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    clients: dict[int, Client] = {}
    print(listener.getsockname()[1], flush=True)
    while True:
        for number, event in poll.poll():
            if number == listener.fileno():
                accepted, _ = listener.accept()
                accepted.setblocking(False)
                clients[accepted.fileno()] = Client(accepted)
                poll.register(accepted.fileno(), select.EPOLLIN)
                continue
            client = clients[number]
            if event & select.EPOLLOUT:
                if _send(client, file):
                    poll.modify(number, select.EPOLLIN)
                continue
            whole = _receive(client)
            if whole is None:
                clients.pop(number).socket.close()
            elif whole:
                client.received, client.at, client.end = b"", 0, size
                client.socket.send(head, socket.MSG_MORE)
                if not _send(client, file):
                    poll.modify(number, select.EPOLLOUT)


if __name__ == "__main__":
    serve(sys.argv[1])
