"""Invariants between the catalog's tables, as queries: what must hold after every mutation."""

from couchestord.io.catalog.segments import unpack_disks
from couchestord.io.mutations import decode_pieces
from couchestord.io.sqlite import Connection

_MUST_BE_EMPTY: dict[str, str] = {
    "entries in directories that do not exist": "select directory, name from entry e where not exists "
    "(select 1 from directory d where d.id=e.directory)",
    "entries that name a directory that does not exist": "select directory, name from entry e where child<>0 and "
    "not exists (select 1 from directory d where d.id=e.child)",
    "directories that no entry names": "select id from directory d where parent<>0 and not exists "
    "(select 1 from entry e where e.directory=d.parent and e.name=d.name and e.child=d.id)",
    "directories that miscount those in them": "select id from directory left join "
    "(select parent as inside, count(*) as counted from directory group by parent) on inside=id "
    "where children<>coalesce(counted, 0)",
    "roots that no bucket names": "select id from directory where parent=0 and id not in (select root from bucket)",
    "empty directories that nobody keeps": "select id from directory d where parent<>0 and kept=0 and not exists "
    "(select 1 from entry e where e.directory=d.id) and not exists (select 1 from version v where v.directory=d.id)",
    "entries whose inode does not exist": "select directory, name from entry e where child=0 and not exists "
    "(select 1 from inode i where i.id=e.inode)",
    "versions whose inode does not exist": "select directory, name, id from version v where (flags & 2)=0 and "
    "not exists (select 1 from inode i where i.id=v.id)",
    # no index finds an entry by its inode, nor what lies in a directory: all are read once, into one of SQLite's own
    "inodes that nothing names": "select id from inode where id not in (select inode from entry where inode is not "
    "null union select id from version union select inode from orphan union select id from directory)",
    "inodes that say another name than those they have": "select id from inode i where directory is not null and "
    "nlink>0 and not exists (select 1 from entry e where e.directory=i.directory and e.name=i.name and e.inode=i.id) "
    "and not exists (select 1 from version v where v.directory=i.directory and v.name=i.name and v.id=i.id)",
    "inodes that say an older version before a name": "select l.inode from link l join entry e on "
    "e.directory=l.directory and e.name=l.name and e.inode=l.inode join inode i on i.id=l.inode where not exists "
    "(select 1 from entry h where h.directory=i.directory and h.name=i.name and h.inode=i.id)",
    "hard links that are no entry and no version": "select inode, directory, name from link l where not exists "
    "(select 1 from entry e where e.directory=l.directory and e.name=l.name and e.inode=l.inode) "
    "and not exists (select 1 from version v where v.directory=l.directory and v.name=l.name and v.id=l.inode)",
    "files that do not count what holds them": "select id from inode i where i.directory is not null and "
    "nlink<>1+(select count(*) from link l where l.inode=i.id)",
    "entries that do not say what their inode says": "select e.directory, e.name from entry e join inode i "
    "on i.id=e.inode where e.child=0 and (e.size<>i.size or e.content is not i.content)",
    "orphans that are no files without a name": "select inode from orphan o where not exists "
    "(select 1 from inode i where i.id=o.inode and i.nlink=0)",
    "attributes of nothing": "select inode, name from xattr x where not exists (select 1 from inode i "
    "where i.id=x.inode)",
    "inodes whose content does not exist": "select id from inode i where content is not null and not exists "
    "(select 1 from content c where c.id=i.content)",
    "pieces that overlap or go beyond the end": "select inode, start from piece p where start+length>coalesce("
    "(select min(start) from piece q where q.inode=p.inode and q.start>p.start), "
    "(select size from inode i where i.id=p.inode))",
    "pieces of inodes that do not exist": "select inode, start from piece p where not exists "
    "(select 1 from inode i where i.id=p.inode)",
    "files that miscount their pieces": "select inode from worn w where not exists (select 1 from piece p "
    "where p.inode=w.inode) or pieces<>(select count(*) from piece p where p.inode=w.inode) "
    "or live<>(select sum(length) from piece p where p.inode=w.inode) "
    "or held<>(select sum(length) from content c where c.id in (select content from piece p where p.inode=w.inode))",
    "contents whose extents do not cover them": "select id from content c where length<>(select "
    "coalesce(sum(length),0) from extent x where x.id>=c.id and x.id<c.id+c.extents)",
    "contents that nothing refers to": "select id from content where refs<1",
    "extents of no content": "select id from extent x where id>=coalesce((select c.id+c.extents from content c "
    "where c.id<=x.id order by c.id desc limit 1), 0)",
    "extents in segments that do not exist": "select id from extent x where segment>2 and not exists "
    "(select 1 from segment s where s.id=x.segment)",
    "extents in segment 1 that are not where their copy is": "select id from extent where segment=1 and "
    "(copy_blob is not stripe or copy_start is not stripe_start)",
    "copies in blobs that are not confirmed": "select id from extent x where copy_blob is not null and not exists "
    "(select 1 from blob b where b.id=x.copy_blob and b.state=1)",
    "blobs whose live bytes are miscounted": "select id from blob b where live_bytes<>(select "
    "coalesce(sum(length),0) from extent x where x.copy_blob=b.id) "
    "or only_bytes<>(select coalesce(sum(length),0) from extent x where x.segment=1 and x.stripe=b.id)",
    "extents that lie under another policy than their content": "select x.id from extent x join segment s "
    "on s.id=x.segment where s.policy<>(select policy from content c where c.id<=x.id order by c.id desc limit 1)",
    "policies that do not exist": "select policy from (select policy from bucket union select policy from content "
    "union select policy from segment) where policy not in (select id from policy)",
    "segments whose live bytes are miscounted": "select id from segment s where live_bytes<>(select "
    "coalesce(sum(length),0) from extent x where x.segment=s.id)",
    "parts of uploads that do not exist": "select upload, number from part p where not exists "
    "(select 1 from upload u where u.id=p.upload)",
    "ids at or above the next id": "select id from inode, state where id>=next_id",
}
SHOWN_MAX = 5


def find_faults(connection: Connection) -> list[str]:
    """Everything that contradicts itself, in words; nothing for a sound catalog. Reads all tables: slow."""
    faults = []
    for what, query in _MUST_BE_EMPTY.items():
        rows = connection.execute(f"{query} limit {SHOWN_MAX}").fetchall()
        if rows:
            faults.append(f"{what}: {', '.join(map(repr, rows))}")
    faults += _miscounted(connection)
    for id_, packed, k, m in connection.execute("select id, disks, k, m from segment"):
        if len(unpack_disks(packed)) != k + m:
            faults.append(f"segment {id_} does not have {k + m} places")
    return faults


def _miscounted(connection: Connection) -> list[str]:
    """Contents whose references are not what inodes, pieces and parts say."""
    found: dict[int, int] = {}
    for query in (
        "select content, count(*) from inode where content is not null group by content",
        "select content, count(*) from piece where content is not null group by content",
    ):
        for content, count in connection.execute(query):
            found[content] = found.get(content, 0) + count
    for (pieces,) in connection.execute("select pieces from part"):
        for piece in decode_pieces(pieces):
            found[piece.content] = found.get(piece.content, 0) + 1
    wrong: list[str] = []
    for content, refs in connection.execute("select id, refs from content"):
        counted = found.pop(content, 0)
        if counted != refs and len(wrong) < SHOWN_MAX:
            wrong.append(f"content {content} counts {refs} references, there are {counted}")
    wrong += [f"content {content} is named and does not exist" for content in list(found)[:SHOWN_MAX]]
    return wrong
