"""HTTP/1.1 for the front ends: bytes and sockets on one side, `Request` and `Response` on the other.

`protocol` turns bytes into heads and bodies and is the only module that knows h11, which judges every head that the
fast lane, `lane`, does not take; `responses` writes heads; `connection` owns one socket; `bodies` is what a handler
sees of it; `patience` says how long a slow client is waited for; in the `hall` idle connections wait and quick requests
are answered; `server` accepts, counts, watches and drains.
"""

from couchestord.frontends.http.messages import (
    Begin,
    Head,
    Later,
    Limits,
    Quick,
    Request,
    RequestBody,
    Response,
    ResponseBody,
    never_begun,
)
from couchestord.frontends.http.responses import response_block
from couchestord.frontends.http.server import HttpServer, serve_http
from couchestord.frontends.http.tls import Certificate

__all__ = [
    "Begin",
    "Certificate",
    "Head",
    "HttpServer",
    "Later",
    "Limits",
    "Quick",
    "Request",
    "RequestBody",
    "Response",
    "ResponseBody",
    "never_begun",
    "response_block",
    "serve_http",
]
