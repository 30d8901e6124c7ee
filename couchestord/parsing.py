"""What the value of a setting may look like. Each `parse_...` raises ValueError that says what the value is not."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from couchestord.model import ANY_CLASS

_SIZE_UNITS: Final = {
    **{"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40},
    **{"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
}
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,16}")
_QUANTITY: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens. Port 0 lets the kernel choose a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_size(value: object) -> int:
    """Bytes from 4096, "4096", "10 GiB" or "10 GB". Raises ValueError."""
    number, factor = _quantity(value, _SIZE_UNITS)
    size_bytes = number * factor
    if size_bytes != int(size_bytes):
        raise ValueError("is not a whole number of bytes")
    return int(size_bytes)


def parse_duration(value: object) -> float:
    """Seconds from 30, "30 s", "500 ms", "5 min", "2 h" or "1 d". Raises ValueError."""
    number, factor = _quantity(value, _DURATION_UNITS)
    return float(number * factor)


def parse_address(value: object) -> Address:
    """An address from "127.0.0.1:9000", "localhost:9000", "[::1]:9000" or ":9000" (any IPv4). Raises ValueError."""
    host, colon, port = str(value).rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError('is not an address like "127.0.0.1:9000"')
    if host.startswith("[") and host.endswith("]"):
        return Address(host[1:-1], int(port))
    if ":" in host:
        raise ValueError('is not an address: write IPv6 as "[::1]:9000"')
    return Address(host or "0.0.0.0", int(port))


def _quantity(value: object, units: Mapping[str, float]) -> tuple[int | float, float]:
    match = _QUANTITY.fullmatch(str(value)) if isinstance(value, int | float | str) else None
    factors = {"": 1} | {unit.lower(): factor for unit, factor in units.items()}
    if match is None or isinstance(value, bool) or match[2].lower() not in factors:
        raise ValueError(f"is not a number with one of the units {', '.join(units)}")
    number = float(match[1]) if "." in match[1] else int(match[1])
    return number, factors[match[2].lower()]


def integer(low: int, high: int) -> Callable[[object], int]:
    return partial(_whole, low=low, high=high)


def _whole(value: object, low: int, high: int) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool) or not low <= number <= high:
        raise ValueError(f"is not a whole number from {low} to {high}")
    return number


def choice(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}")
        return str(value)

    return parse


def parse_flag(value: object) -> bool:
    if value not in (True, False, "true", "false"):
        raise ValueError("is not true or false")
    return value in (True, "true")


def parse_workers(value: object) -> int | None:
    return None if value == "auto" else int(_whole(value, 0, 31))


def parse_text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("is not a text")
    return value


def parse_path(value: object) -> Path:
    return value if isinstance(value, Path) else Path(parse_text(value))


def parse_optional_path(value: object) -> Path | None:
    return None if value in ("", None) else parse_path(value)


def parse_size_or_auto(value: object) -> int | None:
    return None if value in ("auto", None) else parse_size(value)


def _list(value: object) -> Sequence[object]:
    """A list, or as the environment writes it, a text with commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise ValueError("is not a list")
    return value


def parse_paths(value: object) -> tuple[Path, ...]:
    return tuple(parse_path(part) for part in _list(value))


def parse_names(value: object) -> tuple[str, ...]:
    names = tuple(parse_text(part) for part in _list(value))
    if any(_NAME.fullmatch(name) is None or name == ANY_CLASS for name in names):
        raise ValueError(f"is not a list of names of up to 16 letters, digits, - and _, other than {ANY_CLASS!r}")
    return names


def at_least(low: float, parse: Callable[[object], Any]) -> Callable[[object], Any]:
    def checked(value: object) -> Any:
        number = parse(value)
        if number < low:
            raise ValueError(f"is less than {low}")
        return number

    return checked
