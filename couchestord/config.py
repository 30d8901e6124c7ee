"""The configuration: a TOML file, environment variables over it, command-line options over both.

An unknown section or key is an error, so a typing mistake never falls back to a default in silence. Environment
variables are named COUCHESTORD_SECTION__KEY, with two underscores between section and key: names without them are not
ours (Kubernetes sets COUCHESTORD_PORT and the like for a service of that name).
"""

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal

from couchestord.errors import ConfigError
from couchestord.parsing import (
    Address,
    at_least,
    choice,
    integer,
    parse_address,
    parse_duration,
    parse_flag,
    parse_names,
    parse_optional_path,
    parse_path,
    parse_paths,
    parse_size,
    parse_size_or_auto,
    parse_text,
    parse_workers,
)

ENVIRONMENT_PREFIX: Final = "COUCHESTORD_"


def _setting(default: Any, parse: Callable[[object], Any], *, key: str | None = None) -> Any:
    """A field with how its value is read. `key`: its name in the file, where that is not the field's."""
    return field(default=default, metadata={"parse": parse, "key": key})


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """[store]: where the store lies and how it codes. What is fixed for a store is fixed when it is created."""

    data: Path = _setting(Path("data"), parse_path)
    disks: tuple[Path, ...] = _setting((), parse_paths)
    """Folders, one per disk. Empty: data/disk-0, data/disk-1 and so on."""
    disk_classes: tuple[str, ...] = _setting((), parse_names)
    """Class of each disk, which policies choose disks by. Empty: all are of `default`."""
    k: int = _setting(4, integer(1, 128))
    m: int = _setting(2, integer(0, 64))
    stripe_size_bytes: int = _setting(1 << 20, at_least(4096, parse_size), key="stripe_size")
    engine: Literal["auto", "zfec", "isal"] = _setting("auto", choice("auto", "zfec", "isal"))
    min_healthy_shards: int = _setting(0, integer(0, 192))
    """Fewest disks that a new segment may be written on. 0: k."""
    shards_per_disk: int = _setting(1, integer(1, 192))
    """Most shards of one segment on a disk, for a store that is made with fewer than k+m disks."""
    segment_bytes: int = _setting(256 << 20, at_least(1 << 20, parse_size), key="segment_size")
    """Clipped, so that a shard takes at most a 64th of the smallest disk."""
    reserve_bytes: int = _setting(16 << 20, at_least(0, parse_size), key="reserve")
    """Room on each disk that is kept for deletes, compaction and the catalog."""
    disk_deadline_s: float = _setting(5.0, at_least(0.1, parse_duration), key="disk_deadline")
    """A disk that does not answer a call for so long is given up."""
    monitor_interval_s: float = _setting(1.0, at_least(0.01, parse_duration), key="monitor_interval")
    rebuild_grace_s: float = _setting(10.0, at_least(0.0, parse_duration), key="rebuild_grace")
    """How long a disk may be away before its shards are made anew elsewhere."""
    uploads_kept_s: float = _setting(7 * 86_400.0, at_least(0.0, parse_duration), key="uploads_kept")
    """An upload that got no part for so long is aborted. 0: never."""
    background_bytes_per_s: int = _setting(64 << 20, at_least(4096, parse_size), key="background_rate")
    """Bytes that background jobs move per second."""
    snapshot_bytes_min: int = _setting(64 << 20, at_least(4096, parse_size), key="snapshot_size_min")
    """A catalog snapshot is written when the log since the last one outgrows this and half the catalog."""


@dataclass(frozen=True, slots=True)
class JournalConfig:
    """[journal]: how much waits there, on how many disks, and when it is moved to stripes."""

    size_bytes: int = _setting(10 << 30, at_least(16 << 20, parse_size))
    """Per disk; clipped to 5 % of the disk, or of its share of a file system."""
    file_bytes: int = _setting(64 << 20, at_least(1 << 16, parse_size), key="file_size")
    """A journal file is full at this size; it is freed as a whole."""
    preallocate_bytes: int = _setting(4 << 20, at_least(0, parse_size), key="preallocate")
    """Zeroes written ahead, so that a sync need not write the file's size."""
    replication_factor: int = _setting(3, integer(1, 64))
    destage_threshold_percent: int = _setting(80, integer(1, 100))
    destage_interval_s: float = _setting(30.0, at_least(0.01, parse_duration), key="destage_interval")


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """[cache]: what is kept in memory of what was read, and below it on a fast device."""

    l1_bytes: int | None = _setting(None, parse_size_or_auto, key="l1_size")
    """Memory; 0: no caches. None: 128 MiB, at most an eighth of what the process may have."""
    l1_shards: int = _setting(1, integer(1, 1 << 16))
    l2_path: Path | None = _setting(None, parse_optional_path)
    """Folder of the second tier, best on a device of its own."""
    l2_bytes: int = _setting(0, parse_size, key="l2_size")
    """Room it may take; 0: there is none."""
    l2_shared_device: bool = _setting(False, parse_flag)
    """Let the folder lie on the device of a data disk."""
    compression: Literal["lz4", "none"] = _setting("lz4", choice("lz4", "none"))


@dataclass(frozen=True, slots=True)
class L3Config:
    """[l3]: a bucket of another store, or a folder, that has a copy of what lies on the disks, or what they lack."""

    mode: Literal["off", "cache", "tiered"] = _setting("off", choice("off", "cache", "tiered"))
    """`cache`: everything stays on the disks, too. `tiered`: what was not read for long leaves full disks."""
    url: str = _setting("", str)
    """`https://ENDPOINT/BUCKET[/PREFIX]`, `http://...`, or `file:///FOLDER`."""
    region: str = _setting("us-east-1", parse_text)
    access_key: str = _setting("", str)
    secret_key_file: Path | None = _setting(None, parse_optional_path)
    session_token_file: Path | None = _setting(None, parse_optional_path)
    ca_file: Path | None = _setting(None, parse_optional_path)
    """Certificates to trust instead of those that the machine trusts."""
    delay_s: float = _setting(600.0, at_least(0.0, parse_duration), key="delay")
    """So long data waits for other data to fill a blob, and for its own deletion."""
    publish_delay_s: float = _setting(60.0, at_least(0.1, parse_duration), key="publish_delay")
    """So long changes of the catalog wait for others before they are put there: so much is lost of it with the node."""
    blob_bytes: int = _setting(64 << 20, at_least(1 << 20, parse_size), key="blob_size")
    verify: Literal["all", "index"] = _setting("all", choice("all", "index"))
    """What of a blob is read back before it counts."""
    evict_from_percent: int = _setting(80, integer(0, 100))
    """Tiered: data leaves the disks once so much of their room is used ..."""
    evict_to_percent: int = _setting(60, integer(0, 100))
    """... until no more than this is."""
    bypass_from_percent: int = _setting(95, integer(0, 100))
    """Tiered: long bodies go straight to the bucket while so much is used."""


@dataclass(frozen=True, slots=True)
class S3Config:
    """[s3]: the S3 server and its limits."""

    address: Address = _setting(Address("127.0.0.1", 9000), parse_address)
    tls_certificate: Path | None = _setting(None, parse_optional_path)
    """PEM file with the certificate, and those between it and one that clients trust. Then all is under TLS."""
    tls_key: Path | None = _setting(None, parse_optional_path)
    """PEM file with its key."""
    region: str = _setting("us-east-1", parse_text)
    bytes_per_s_min: int = _setting(1 << 10, at_least(0, parse_size), key="min_rate")
    """What a client must send of a body, or take of a response, while it is waited for. 0: anything."""
    workers: int | None = _setting(0, parse_workers)
    """Processes that serve S3 beside the one that writes. 0: all is one process. None ("auto"): by the CPUs."""

    @property
    def scheme(self) -> str:
        """Of its URLs."""
        return "http" if self.tls_certificate is None else "https"


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """[metrics]: the server of /metrics. It asks for no key: keep it on loopback or behind a firewall."""

    address: Address = _setting(Address("127.0.0.1", 8080), parse_address)


@dataclass(frozen=True, slots=True)
class HealthConfig:
    """[health]: the server of /healthz, /livez and /readyz. It asks for no key."""

    address: Address = _setting(Address("127.0.0.1", 8081), parse_address)


@dataclass(frozen=True, slots=True)
class LogConfig:
    """[log]: what is written to standard error, and how."""

    level: str = _setting("info", choice("debug", "info", "warning", "error"))
    format: str = _setting("text", choice("text", "json"))


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set, a field per section."""

    store: StoreConfig = field(default_factory=StoreConfig)
    journal: JournalConfig = field(default_factory=JournalConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    l3: L3Config = field(default_factory=L3Config)
    s3: S3Config = field(default_factory=S3Config)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(frozen=True, slots=True)
class _Given:
    """A value somebody set, with the words that name the place in an error."""

    section: str
    key: str
    value: object
    origin: str


def setting_names() -> list[str]:
    """Every "section.key" there is, in the order of the documentation."""
    return [f"{section.name}.{key}" for section in fields(Config) for key in _settings(section)]


def load(path: Path | None, environ: Mapping[str, str], options: Mapping[str, object] | None = None) -> Config:
    """The configuration from the file at `path`, the environment, `options` ("section.key" to value); later ones win.

    Raises ConfigError that names the key, where it was set, and near matches of a key that does not exist.
    """
    given = [] if path is None else list(_from_file(path))
    given.extend(_from_environment(environ))
    for name, value in (options or {}).items():
        section, _, key = name.partition(".")
        given.append(_Given(section, key, value, ""))
    values: dict[str, dict[str, Any]] = {}
    for setting in given:
        target = _find(setting)
        try:
            values.setdefault(setting.section, {})[target.name] = target.metadata["parse"](setting.value)
        except ValueError as error:
            raise ConfigError(f"{_place(setting)} {setting.value!r} {error}") from None
    sections = {section.name: _section_class(section)(**values.get(section.name, {})) for section in fields(Config)}
    config = Config(**sections)
    _check_together(config)
    return config


def _from_file(path: Path) -> Iterator[_Given]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    for section, table in document.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section!r} stands outside a section; {_near(section)}")
        for key, value in table.items():
            yield _Given(section, key, value, str(path))
        if not table:
            _find(_Given(section, "", None, str(path)), section_only=True)


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Given]:
    for name in sorted(environ):
        section, separator, key = name.removeprefix(ENVIRONMENT_PREFIX).partition("__")
        if name.startswith(ENVIRONMENT_PREFIX) and separator:
            yield _Given(section.lower(), key.lower(), environ[name], f"environment variable {name}")


def _section_class(section: Field[Any]) -> Callable[..., Any]:
    factory: Callable[..., Any] = section.default_factory  # type: ignore[assignment]
    return factory


def _settings(section: Field[Any]) -> dict[str, Field[Any]]:
    found: tuple[Field[Any], ...] = fields(_section_class(section))  # type: ignore[arg-type]
    return {setting.metadata["key"] or setting.name: setting for setting in found}


def _find(given: _Given, *, section_only: bool = False) -> Field[Any]:
    sections = {section.name: section for section in fields(Config)}
    if given.section not in sections:
        raise ConfigError(f"{given.origin}: unknown section [{given.section}]; {_near(given.section)}")
    if section_only:
        return sections[given.section]
    settings = _settings(sections[given.section])
    if given.key not in settings:
        raise ConfigError(f"{_place(given)} is unknown; {_near(given.key, given.section)}")
    return settings[given.key]


def _place(given: _Given) -> str:
    return ": ".join(part for part in (given.origin, f"{given.section}.{given.key}") if part)


def _near(name: str, section: str = "") -> str:
    """What may have been meant: keys of that section, else sections, else keys of any section."""
    names = setting_names()
    of_section = {key.partition(".")[2]: [key] for key in names if key.startswith(f"{section}.")}
    sections = {known.name: [f"[{known.name}]"] for known in fields(Config)}
    anywhere: dict[str, list[str]] = {}
    for key in names:
        anywhere.setdefault(key.partition(".")[2], []).append(key)
    for known in (of_section, sections, anywhere):
        near = [place for match in difflib.get_close_matches(name, known, n=2) for place in known[match]]
        if near:
            return f"did you mean {' or '.join(near)}?"
    return f"the sections are {', '.join(f'[{known}]' for known in sections)}, see docs/config.md"


def _check_together(config: Config) -> None:
    """What no key can be wrong in alone."""
    store, journal = config.store, config.journal
    if journal.replication_factor < store.m + 1:
        raise ConfigError(
            f"journal.replication_factor is {journal.replication_factor}, but store.m = {store.m} promises to survive "
            f"{store.m} lost disks: set it to at least {store.m + 1}"
        )
    if store.min_healthy_shards and not store.k <= store.min_healthy_shards <= store.k + store.m:
        raise ConfigError(
            f"store.min_healthy_shards is {store.min_healthy_shards}: it must be from k = {store.k} to k + m = "
            f"{store.k + store.m}, or 0 for k"
        )
    l3 = config.l3
    if l3.mode != "off" and not l3.url:
        raise ConfigError(
            "l3.url is not set: it says where the bucket is, as https://ENDPOINT/BUCKET or file:///FOLDER"
        )
    if l3.blob_bytes > 64 << 20:
        raise ConfigError(f"l3.blob_size is {l3.blob_bytes} bytes, more than 64 MiB")
    if l3.evict_to_percent > l3.evict_from_percent:
        raise ConfigError(
            f"l3.evict_to_percent is {l3.evict_to_percent}: it must not be more than l3.evict_from_percent = "
            f"{l3.evict_from_percent}"
        )
    if (config.s3.tls_certificate is None) != (config.s3.tls_key is None):
        raise ConfigError("s3.tls_certificate and s3.tls_key go together: set both, or neither")
    if len({disk.absolute() for disk in store.disks}) != len(store.disks):
        raise ConfigError("store.disks names a folder twice")
