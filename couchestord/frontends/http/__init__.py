"""HTTP/1.1 for the front ends: bytes and sockets on one side, `Request` and `Response` on the other.

`protocol` turns bytes into heads and bodies and is the only module that knows h11, which judges every head that the
fast lane, `lane`, does not take; `responses` writes heads; `connection` owns one socket; `bodies` is what a handler
sees of it; `patience` says how long a slow client is waited for; `server` accepts, counts, watches and drains.
"""

from couchestord.frontends.http.messages import Limits, Request, RequestBody, Response, ResponseBody
from couchestord.frontends.http.server import HttpServer, serve_http

__all__ = ["HttpServer", "Limits", "Request", "RequestBody", "Response", "ResponseBody", "serve_http"]
