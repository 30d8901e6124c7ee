"""What a complete has to know of the parts before it is decided: the checksum of the object that they make."""

from collections.abc import Mapping, Sequence

import trio

from couchestord.errors import BadDigest, InvalidPart, InvalidRequest
from couchestord.io.catalog.accounts import AccountReader
from couchestord.store.objectsums import checksum_of_parts, types_of
from couchestord.store.values import decode_attributes, decode_mapping, etag_text


async def checksums_of_object(
    accounts: AccountReader, upload_id: str, wanted: Sequence[tuple[int, str]], claims: Mapping[str, str]
) -> dict[str, str]:
    """The checksums of the object that the parts (number, etag) of an upload make; none when its parts have none.

    `claims`: what the client says they are. Raises BadDigest when they are not; InvalidRequest when that cannot be told
    from the parts' own, or is not what the upload was begun for; InvalidPart when a part is not there. A part that has
    that etag in a moment has these bytes, so the answer holds for whatever is decided then.
    """
    upload = accounts.upload(upload_id)
    if upload is None:
        return {}  # completed already, and that is what it is asked for, or never begun
    begun = decode_attributes(upload.attributes).checksums
    claimed = [name for name in claims if name != "type"]
    algorithm = begun.get("algorithm") or "".join(claimed[:1])
    if not algorithm:
        return {}
    type_ = begun.get("type") or claims.get("type") or types_of(algorithm)[0]
    if any(name != algorithm for name in claimed) or claims.get("type", type_) != type_:
        raise InvalidRequest(f"the upload was begun for a checksum {algorithm.upper()} of type {type_}")
    if type_ not in types_of(algorithm):
        raise InvalidRequest(f"there is no checksum {algorithm.upper()} of type {type_}")
    there = {part.number: part for part in accounts.parts(upload_id)}
    sums = []
    for number, etag in wanted:
        part = there.get(number)
        if part is None or etag_text(part.etag) != etag:
            raise InvalidPart(f"part {number} was not uploaded, or has another etag")
        sums.append((decode_mapping(part.checksums).get(algorithm, ""), part.size))
    if not all(value for value, _ in sums):
        if claimed:
            raise InvalidRequest(f"a part came without the checksum {algorithm.upper()}: the object's cannot be told")
        return {}
    value = await trio.to_thread.run_sync(checksum_of_parts, algorithm, type_, sums)
    if claimed and claims[algorithm] not in (value, value.partition("-")[0]):
        raise BadDigest(f"the {algorithm.upper()} of the object is not the one that came with the complete")
    return {algorithm: value, "type": type_}
