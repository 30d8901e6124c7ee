"""Whether servers of HTTP that tests start are under TLS."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from certificates import Authority
from tls_bridge import bridge

from couchestord.frontends.http import Certificate


@dataclass
class _Tls:
    authority: Authority | None = None

    def certificate(self) -> Certificate | None:
        """For the server."""
        return None if self.authority is None else Certificate(self.authority.certificate, self.authority.key)

    @asynccontextmanager
    async def port(self, port: int) -> AsyncIterator[int]:
        """Where plain clients reach the server on that port."""
        if self.authority is None:
            yield port
        else:
            async with bridge(port, self.authority.client()) as found:
                yield found


TLS = _Tls()
