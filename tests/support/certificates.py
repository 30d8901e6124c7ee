"""Certificates for a server on loopback, made by the openssl program."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs itself: who trusts `certificate` trusts the server that has it."""

    certificate: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        """What a server with this certificate uses."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client(self) -> ssl.SSLContext:
        """What a client that trusts it alone uses."""
        return ssl.create_default_context(cafile=str(self.certificate))


def make_certificate(folder: Path, name: str) -> Authority:
    """A certificate for `name`: "IP:127.0.0.1" or "DNS:some.example"."""
    made = Authority(folder / "certificate.pem", folder / "key.pem")
    line = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    line += ["-addext", f"subjectAltName={name}", "-keyout", str(made.key), "-out", str(made.certificate)]
    subprocess.run(line, check=True, capture_output=True, timeout=60)
    return made
