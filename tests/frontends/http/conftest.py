"""Every test here that serves HTTP on a port does so twice: plainly, and under TLS."""

import pytest
from certificates import Authority, make_certificate
from tls_switch import TLS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "serving" in metafunc.function.__code__.co_names:
        metafunc.fixturenames.append("transport")
        metafunc.parametrize("transport", ["plain", "tls"], indirect=True)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")


@pytest.fixture
def transport(request: pytest.FixtureRequest, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "tls":
        monkeypatch.setattr(TLS, "authority", authority)
