"""Results as people read them. Pure: from what a command returned to a text."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

Show = Callable[[Any], str]
_NAMES_SHOWN_MAX: Final = 20


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as they need to be."""
    cells = [list(heads), *([_plain(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)


def keys(result: list[dict[str, str]]) -> str:
    if not result:
        return "no access keys; make one with: couchestord key add USER"
    heads = list(result[0])
    return table([head.replace("_", " ").upper() for head in heads], [[row[head] for head in heads] for row in result])


def key_added(result: dict[str, str]) -> str:
    lines = [f"access key  {_plain(result['access_key'])}"]
    if "secret_key" in result:
        lines.append(f"secret key  {result['secret_key']}")
    return "\n".join([f"user        {_plain(result['user'])}", *lines])


def user(result: dict[str, Any]) -> str:
    return f"user {_plain(result['user'])} was made{', an administrator' if result['admin'] else ''}"


def users(result: list[dict[str, Any]]) -> str:
    return tree(result) if result else "no users; make one with: couchestord key add USER"


def user_removed(result: dict[str, Any]) -> str:
    keys = ", ".join(map(_plain, result["access_keys"]))
    return f"user {_plain(result['user'])} was removed{', and the access keys ' + keys if keys else ''}"


def buckets(result: list[dict[str, Any]]) -> str:
    if not result:
        return "no buckets; make one with: couchestord bucket create BUCKET"
    return table(["BUCKET", "OWNER", "POLICY"], [[row["bucket"], row["owner"], row["policy"]] for row in result])


def bucket_created(result: dict[str, Any]) -> str:
    return f"bucket {_plain(result['bucket'])} was made"


def disk_replaced(result: dict[str, Any]) -> str:
    where = f"disk {result['disk']} is {'' if result['new'] else 'already '}in {_plain(result['folder'])}"
    return (
        f"{where}. The daemon takes it in at its next look, or at its start, and fills it with what it lacks;\n"
        "how far that is tells: couchestord status"
    )


def caches(result: list[dict[str, Any]]) -> str:
    rows = [{name: value for name, value in row.items() if name != "processes"} for row in result]
    return tree(rows) if rows else "caches are off (cache.l1_size)"


def evicted(result: dict[str, Any]) -> str:
    return f"{result['bytes']} bytes were forgotten"


def warmed(result: dict[str, Any]) -> str:
    parts = [f"{result['objects']} objects, {result['bytes']} bytes are in the caches"]
    parts += [f"{result['unreadable']} could not be read"] * bool(result["unreadable"])
    parts += ["the caches are full, there are more objects"] * (not result.get("all", True))
    return "; ".join(parts)


def remade(result: dict[str, Any]) -> str:
    """What a lost node was made anew from, and what is lost."""
    published = datetime.fromtimestamp(result["published_ns"] / 1e9, UTC).isoformat(timespec="seconds")
    lines = [
        f"the store {result['store_id']} was made anew, as of {published}; next: couchestord serve",
        f"{result['copied_extents']} extents ({result['copied_bytes']} bytes) are in {result['blobs']} blobs",
    ]
    if result["missing_blobs"]:
        lines.append(f"{result['missing_blobs']} of these blobs are not in the bucket")
    if result["lost_extents"]:
        what = f"{result['lost_extents']} extents ({result['lost_bytes']} bytes) had no copy and are lost"
        parts = f", and {result['lost_parts']} parts of uploads" if result["lost_parts"] else ""
        lines.append(f"{what}: those of {result['lost_objects']} objects{parts}")
    shown = result["lost_names"][:_NAMES_SHOWN_MAX]
    lines += [f"lost  {_plain(name['bucket'])}/{_plain(name['key'])}{_of_version(name)}" for name in shown]
    if result["lost_objects"] > len(shown):
        lines.append(f"lost  and {result['lost_objects'] - len(shown)} more: --json names up to a thousand")
    return "\n".join(lines)


def _of_version(name: dict[str, str | None]) -> str:
    return f" (version {name['version']})" if name["version"] else ""


def removed(result: dict[str, str]) -> str:
    return f"{_plain(next(iter(result.values())))} was removed"


def status(result: dict[str, Any]) -> str:
    """Health first, then whatever the store tells."""
    health = result["health"]
    lines = [health["state"], *(f"  - {_plain(reason)}" for reason in health["reasons"])]
    rest = {name: value for name, value in result.items() if name != "health"}
    return "\n".join([*lines, tree(rest)])


def tree(value: object, indent: str = "") -> str:
    """Nested mappings and lists, a line per fact; a list of alike flat mappings is a table."""
    if isinstance(value, Mapping):
        return "\n".join(_branch(str(name), part, indent) for name, part in value.items())
    if isinstance(value, list) and _is_table(value):
        heads = list(value[0])
        rows = table(
            [head.replace("_", " ").upper() for head in heads], [[row[head] for head in heads] for row in value]
        )
        return "\n".join(indent + line for line in rows.splitlines())
    if isinstance(value, list):
        return "\n".join(
            f"{indent}-\n{tree(part, indent + '  ')}" if _is_nested(part) else f"{indent}- {_plain(part)}"
            for part in value
        )
    return f"{indent}{_plain(value)}"


def _branch(name: str, part: object, indent: str) -> str:
    if not _is_nested(part):
        return f"{indent}{name}: {_plain(part)}"
    return f"{indent}{name}:\n{tree(part, indent + '  ')}"


def _is_nested(part: object) -> bool:
    return isinstance(part, Mapping | list) and bool(part)


def _is_table(rows: list[Any]) -> bool:
    if not rows or not all(isinstance(row, Mapping) and row for row in rows):
        return False
    return all(list(row) == list(rows[0]) and not any(map(_is_nested, row.values())) for row in rows)


def _plain(value: object) -> str:
    """One word of output: a name that holds control characters cannot write over the terminal."""
    if isinstance(value, str) and value:
        return value if value.isprintable() else json.dumps(value)
    if value is None or value in ([], {}, ""):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
