"""Which version this is."""

from importlib.metadata import PackageNotFoundError, version


def program_version() -> str:
    """The installed version, "unknown" in a bare checkout."""
    try:
        return version("couchestord")
    except PackageNotFoundError:
        return "unknown"
