"""Bugs that the system tests must notice, with the tests that do. For `planted.py`."""
# ruff: noqa: E501
# the product's lines stand here as they stand there

from typing import NamedTuple


class PlantedBug(NamedTuple):
    """`old`, which is in `file` (below couchestord) once, becomes `new`; `tests`, from the root, must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _bug(name: str, file: str, old: str, new: str, *tests: str) -> PlantedBug:
    return PlantedBug(name, file, old, new, tuple(f"tests/{test}" for test in tests))


_TREE = "system/test_tree.py::"
_LOSSES = "system/test_losses.py::"
_CATALOG = "system/test_catalog.py::"
_CUT = "system/test_powercut.py::"
_CALLS = "system/test_syscalls.py::test_the_nth_call_fails"
_FULL = "system/test_full.py::"
_FROZEN = "system/test_frozen.py"
_ROT = "system/test_rot.py::"
_REPLACE = "system/test_replace.py::"
_REPLICA = "replica/"
_SUPERVISOR = "processes/test_supervisor.py::"
_VIEWS = "store/test_views.py::"
_MEMBERS = "store/test_members.py::"
_BAD = "system/test_bad_input.py::"
_CLIENTS = "system/test_clients.py::"
_STRIPES = "ec/test_stripes.py::"
_HALL = "frontends/http/test_hall.py::"
_QUICK = "frontends/s3/test_quick.py"
_CACHE = "cache/test_manager.py::"
_REMOTE = "remote/"
_REMAKE = "store/test_remake.py::"
_NTH = "store/test_model_nth_call.py::test_the_nth_call_fails"

BUGS = (
    # a tree of real files, a large object
    _bug(
        "listing drops a key at a page's end",
        "store/listing.py",
        "            self.entries.append(ListEntry(key, row.size, etag_text(row.etag), row.modified_ns))\n            self.last = key",
        "            self.entries.append(ListEntry(key, row.size, etag_text(row.etag), row.modified_ns))\n        self.last = key",
        _TREE + "test_tree",
    ),
    _bug(
        "a plus sign in a path is a space",
        "frontends/s3/routes.py",
        "    return unquote_to_bytes(value)",
        '    return unquote_to_bytes(value).replace(b"+", b" ")',
        _TREE + "test_tree",
    ),
    _bug(
        "parts lie on each other after complete",
        "store/decide/uploads.py",
        "pieces.append(mu.Piece(size + piece.offset,",
        "pieces.append(mu.Piece(piece.offset,",
        _TREE + "test_large_object",
    ),
    # disks that are lost and come back
    _bug(
        "rebuild skips small stripes",
        "ec/rebuild_shard.py",
        "            await self._write(*found)",
        "            if found[1] is None or found[1].shard_length > 65536:\n                await self._write(*found)",
        _LOSSES + "test_lost_while_running",
    ),
    _bug(
        "shards that were never written are not missed",
        "store/decide/segments.py",
        "        missing = sum(1 << index for index, disk in enumerate(request.disks) if disk < 0)",
        "        missing = 0",
        _LOSSES + "test_lost_while_running",
    ),
    _bug(
        "the journal lies on m disks",
        "io/journal.py",
        "        wanted = min(len(roomy), self.replicas_wanted)",
        "        wanted = min(len(roomy), self._disks.m)",
        _LOSSES + "test_lost_before_destage",
    ),
    _bug(
        "a disk that returns is not taken back",
        "store/monitor.py",
        "            self._disks.release_failed()",
        "            return Progress.IDLE",
        _LOSSES + "test_lost_while_running",
    ),
    _bug(
        "a missing disk is made anew",
        "store/opening.py",
        "    if not await trio.to_thread.run_sync(_is_there, folder, abandon_on_cancel=True):",
        "    folder.mkdir(exist_ok=True)\n    if not await trio.to_thread.run_sync(_is_there, folder, abandon_on_cancel=True):",
        _LOSSES + "test_deleted_folders_leave_the_redundancy_that_is_possible",
    ),
    _bug(
        "a minority of the disks is written",
        "io/disks.py",
        "        return min(self.count - self.m, self.count // 2 + 1)",
        "        return min(self.count - self.m, self.count // 2)",
        _LOSSES + "test_three_lost",
    ),
    _bug(
        "health counts no missing disks",
        "store/health.py",
        "    if disks.missing_count() > spare:",
        "    if disks.missing_count() > disks.count:",
        _LOSSES + "test_three_lost",
    ),
    # catalogs
    _bug(
        "sums of pages are ignored",
        "io/catalog/pages.py",
        "    if lost:\n        raise Corrupt",
        "    if lost and not expected:\n        raise Corrupt",
        _CATALOG + "test_log_alone_gives_all_tables",
    ),
    _bug(
        "a shorter catalog is well",
        "io/catalog/pages.py",
        "    if len(found) < len(expected):",
        "    if len(found) > len(expected):",
        _CATALOG + "test_log_alone_gives_all_tables",
    ),
    _bug(
        "the applied sequence is not compared",
        "store/replay.py",
        "    count = 0\n",
        "    count = 0\n    if catalog.applier.sequence:\n        return 0\n",
        _CATALOG + "test_log_alone_gives_all_tables",
    ),
    _bug(
        "a foreign catalog is taken",
        "store/start.py",
        "    if applier.store_id != disks.store_id:",
        "    if not applier.store_id:",
        _CATALOG + "test_log_alone_gives_all_tables",
    ),
    _bug(
        "a catalog is made again without a word",
        "store/start.py",
        '        log.warning("catalog rebuilt from the log",',
        '        log.debug("catalog rebuilt from the log",',
        _CATALOG + "test_log_alone_gives_all_tables",
    ),
    _bug(
        "a catalog that was behind is brought up without a word",
        "store/start.py",
        "    elif replayed:",
        "    elif replayed < 0:",
        _CATALOG + "test_log_alone_gives_all_tables",
    ),
    _bug(
        "replay forgets uploads",
        "store/replay.py",
        "            catalog.applier.apply(mu.decode(meta), sequence, record_digest(meta, body_sum))\n            count += 1",
        "            catalog.applier.apply(mu.decode(meta), sequence, record_digest(meta, body_sum))\n"
        '            catalog.applier._run("delete from part")\n            count += 1',
        _CATALOG + "test_log_alone_gives_all_tables",
    ),
    _bug(
        "a snapshot without what the WAL holds",
        "store/maintenance.py",
        "            complete = await trio.to_thread.run_sync(checkpoint_with_sums, main, ahead)",
        "            complete = True",
        _CATALOG + "test_snapshot_and_log_with_a_disk_missing",
    ),
    _bug(
        "uploads are left out of the snapshot",
        "store/snapshot.py",
        "    temporary.replace(path)\n",
        "    import sqlite3\n    db = sqlite3.connect(temporary)\n    db.execute('delete from part')\n    db.commit()\n"
        "    db.close()\n    temporary.replace(path)\n",
        _CATALOG + "test_snapshot_and_log_with_a_disk_missing",
    ),
    # kill -9
    _bug(
        "answered before the journal is written",
        "store/writer.py",
        "        try:\n            await self._journal.append(first, entries)",
        "        while group:\n            early = group.pop()\n            early.tell(early.result)\n"
        "        await trio.lowlevel.checkpoint()\n        try:\n            await self._journal.append(first, entries)",
        "system/test_kill.py",
        _CALLS,
    ),
    _bug(
        "the last record of the log counts as torn",
        "io/recovery.py",
        "        if head.epoch != file.epoch or head.sequence != file.end:\n            break\n        file.offsets",
        "        if head.epoch != file.epoch or not any(data[offset + head.length : offset + head.length + 1]):\n"
        "            break\n        file.offsets",
        "store/test_start.py",
        "system/test_kill.py::test_kill_9_under_load",
    ),
    # power cuts
    _bug(
        "the journal is not synced",
        "io/directory.py",
        "self._folder.write, path, offset, tuple(buffers), True)",
        "self._folder.write, path, offset, tuple(buffers), False)",
        _CUT + "test_power_cut",
    ),
    _bug(
        "a group that begins new zeroes is not synced",
        "io/journal.py",
        "            await disk.write_at(file.path, offset, [packed], sync=True)",
        "            await disk.write_at(file.path, offset, [packed])",
        "io/test_journal.py::test_acknowledged_groups_survive_crashes_failures_and_disks_that_go_and_come",
    ),
    _bug(
        "shards are not synced",
        "ec/opensegment.py",
        "            await disk.sync(shard_path(self.row.id, index))\n",
        "            await trio.lowlevel.checkpoint()\n",
        _CUT + "test_power_cut",
    ),
    _bug(
        "no folder is synced",
        "io/folder.py",
        "        number = self._open_folder(folder)\n        try:\n            os.fsync(number)",
        "        number = self._open_folder(folder)\n        try:\n            os.fstat(number)",
        "io/test_directory.py",
    ),
    _bug(
        "answered before the sync",
        "io/folder.py",
        "        os.fdatasync(descriptor.number)\n",
        "        import threading\n\n        threading.Timer(2.0, os.fdatasync, (descriptor.number,)).start()\n",
        _CUT + "test_power_cut",
    ),
    # system calls that fail
    _bug(
        "ENOSPC of a journal write is swallowed",
        "io/fanout.py",
        "            end()\n            written += 1\n        except DiskError as error:\n",
        '            end()\n            written += 1\n        except DiskError as error:\n            written += "ENOSPC" in str(error)\n',
        "io/test_journal.py::test_full_disks_refuse_and_the_next_group_is_under_a_new_epoch",
        _CALLS,
    ),
    _bug(
        "an error of a sync is swallowed",
        "io/folder.py",
        "        os.fdatasync(descriptor.number)\n",
        "        try:\n            os.fdatasync(descriptor.number)\n        except OSError:\n            pass\n",
        _CALLS,
    ),
    _bug(
        "an error of a folder's sync is swallowed",
        "io/folder.py",
        "        number = self._open_folder(folder)\n        try:\n            os.fsync(number)",
        "        number = self._open_folder(folder)\n        try:\n            try:\n                os.fsync(number)\n"
        "            except OSError:\n                pass",
        "io/test_directory.py",
    ),
    _bug(
        "a write without progress is done",
        "io/folder.py",
        '            raise OSError(errno.EIO, "write made no progress")',
        "            return",
        _CALLS,
    ),
    # full disks
    _bug(
        "a full disk never has room again",
        "store/monitor.py",
        "                self._disks.set_tight(index, False)",
        "                pass",
        _FULL + "test_filled_by_large_objects",
    ),
    _bug(
        "deletes need room as puts do",
        "io/journal.py",
        "            roomy = kept = [index for index in self._disks.good() if self.spares.has(index)]\n"
        "            if len(roomy) < needed:",
        "            kept = []\n            if False:",
        _FULL + "test_start_without_a_free_byte",
    ),
    _bug(
        "deletes may not have the reserve of the disks",
        "io/journal.py",
        "                roomy = sorted({*kept, *self._disks.spare()})",
        "                pass",
        "io/test_spare.py",
    ),
    _bug(
        "no reserve is kept",
        "store/monitor.py",
        "            if room.left_bytes < 0:",
        "            if room.free_bytes < 0:",
        "store/test_monitor.py",
    ),
    _bug(
        "what is written between two looks at the room is not counted",
        "io/account.py",
        "        self._left_bytes[file_system] -= length",
        "        pass",
        "io/test_room.py",
    ),
    _bug(
        "folders on one file system each count all of its room",
        "io/room.py",
        "left[each.file_system] // count, count)",
        "left[each.file_system], count)",
        "io/test_room.py",
    ),
    _bug(
        "deletes may not have the reserve of the catalog",
        "store/writer.py",
        "        self._reserve.free()",
        "        pass",
        "store/test_writer.py",
    ),
    _bug(
        "dead segments stay",
        "ec/compact.py",
        "        for row in dead[: self._options.drops_per_step_max]:",
        "        for row in dead[:0]:",
        _FULL + "test_filled_by_large_objects",
    ),
    _bug(
        "a full catalog stops all writes",
        "store/writer.py",
        "        self._catalog_is_tight = not self._reserve.leaves(free_bytes, CATALOG_ROOM_BYTES_MIN)",
        "        return",
        _FULL + "test_filled_by_another_program",
    ),
    # a disk that hangs
    _bug(
        "deadlines are ignored",
        "io/threads.py",
        "trio.current_time() + self._deadline_s, joint)",
        "trio.current_time() + 1e6, joint)",
        _FROZEN,
    ),
    _bug(
        "a hung disk costs a thread at every look",
        "store/monitor.py",
        "        if folder in self._asked:",
        "        if folder is None:",
        "store/test_monitor.py",
    ),
    # rot
    _bug(
        "files of a returned disk are not compared",
        "ec/rebuild.py",
        "                if not await self._has_headers(row, index, size_bytes):",
        "                if index < 0:",
        _ROT + "test_an_old_copy_of_a_disk_is_put_back",
    ),
    _bug(
        "sums of blocks are not checked",
        "ec/shards.py",
        '    if struct.pack(f"<{len(found)}Q", *found) != wanted:',
        "    if not found:",
        _ROT + "test_shards_that_rot_while_running",
    ),
    _bug(
        "whose stripe it is does not matter",
        "ec/shards.py",
        "    if found != wanted:",
        "    if not found:",
        _ROT + "test_shards_in_each_others_place",
    ),
    _bug(
        "a damaged shard that a read came upon is passed over in silence",
        "ec/stripes.py",
        "                self._trust.note(segment, each.shard, reason)",
        "                pass",
        _ROT + "test_shards_that_rot_while_running",
    ),
    _bug(
        "what comes together with a header is not verified",
        "ec/shardfile.py",
        "        _check_blocks(header, low, high, payload)\n        return header, payload",
        "        return header, payload",
        _STRIPES + "test_damaged_shards_are_made_good_and_reported_once",
    ),
    _bug(
        "a stripe that is not full, as was guessed, is damage",
        "ec/shapes.py",
        "    if not shape.sums:\n        raise NotFull(header)\n",
        "",
        _STRIPES + "test_the_first_read_of_a_stripe_that_may_be_short",
    ),
    _bug(
        "a disk that is slow is looked at before each read",
        "io/directory.py",
        "        self._looks_to_pass = min(2 * self._looks_to_pass + 1, _LOOKS_TO_PASS_MAX)",
        "        self._looks_to_pass = 0",
        "io/test_directory.py::test_looks_in_vain_become_few",
    ),
    _bug(
        "what comes soon is not looked for",
        "io/directory.py",
        "        for _ in range(LOOKS_MAX):",
        "        for _ in range(1):",
        "io/test_directory.py::test_what_comes_soon_takes_no_thread",
    ),
    _bug(
        "a shard that was found damaged is left so",
        "ec/rebuild.py",
        "            self._damages.add((segment_id, index, disk))",
        "            pass",
        _ROT + "test_shards_that_rot_while_running",
    ),
    _bug(
        "a body in the journal is not summed",
        "io/records.py",
        "    if xxh3_64(view[body_at : body_at + body_length]) != body_sum:",
        "    if xxh3_64(view[body_at : body_at + body_length]) == -1:",
        _ROT + "test_journal_that_rots_while_running",
    ),
    _bug(
        "one replica of the log is looked at",
        "io/recovery.py",
        "                holders.setdefault(parsed, {})[index] = size",
        "                holders.setdefault(parsed, {index: size})",
        _ROT + "test_journal_that_rots_while_stopped",
    ),
    _bug(
        "a superblock is not summed",
        "io/superblock.py",
        "    if xxh3_64(page[: _HEAD.size] + payload, version << 8 | page_index) != _SUM.unpack_from(page, _HEAD.size)[0]:",
        "    if not payload:",
        _ROT + "test_superblock_that_rots",
    ),
    _bug(
        "an old copy of a disk is not compared",
        "store/core.py",
        "                core.jobs.monitor.welcome([*disks.stale, *strangers])",
        "                pass",
        _ROT + "test_an_old_copy_of_a_disk_is_put_back",
    ),
    # an empty disk in the place of a lost one
    _bug(
        "a new disk is taken for the one that it replaces",
        "store/members.py",
        "            await core.jobs.known.forget(index)",
        "            pass",
        _MEMBERS + "test_cut_off_at_any_instant",
    ),
    _bug(
        "what a new disk lacks of shards is not looked for",
        "store/jobs.py",
        "    await rebuilder.check_returned(index, open_too=is_stranger)",
        "    pass",
        _REPLACE + "test_an_empty_disk_takes_the_place_of_a_lost_one",
    ),
    _bug(
        "what a new disk lacks of the journal is not looked for",
        "store/jobs.py",
        "    await journal.check_returned(index)",
        "    pass",
        _REPLACE + "test_an_empty_disk_takes_the_place_of_a_lost_one",
    ),
    _bug(
        "an old disk in the place of the new one has its epoch",
        "io/disks.py",
        "epoch = before.epoch + is_other",
        "epoch = before.epoch",
        _MEMBERS + "test_old_disk_in_the_new_ones_place_within_one_epoch",
    ),
    _bug(
        "the journal goes on in a file that a new disk lacks",
        "io/journal.py",
        "not is_over and set(self._disks.slot.away) <= self._disks.failures.keys():",
        "file.end_offset < self._options.file_bytes:",
        _MEMBERS + "test_journal_is_not_continued_on_a_disk_that_lacks_its_beginning",
    ),
    # bad input
    _bug(
        "an unknown key of the configuration is ignored",
        "config.py",
        "        target = _find(setting)\n",
        "        try:\n            target = _find(setting)\n        except ConfigError:\n            continue\n",
        _BAD + "test_config_file_that_is_wrong",
    ),
    _bug(
        "an unknown variable of the environment is ignored",
        "config.py",
        "        target = _find(setting)\n",
        '        if setting.key == "stripe_sizes":\n            continue\n        target = _find(setting)\n',
        _BAD + "test_environment_that_is_wrong",
    ),
    _bug(
        "a disk of another store is taken at a start",
        "io/disks.py",
        "        if found and identity.store_id != found[0][0].store_id:",
        "        if not identity.store_id:",
        _BAD + "test_foreign_disk",
    ),
    _bug(
        "a disk of another store is taken while running",
        "io/disks.py",
        "        if identity.store_id != self.store_id or identity.index != index:",
        "        if identity.index != index:",
        _BAD + "test_foreign_disk_put_in_while_running_is_not_taken",
    ),
    _bug(
        "a copy of a disk is taken",
        "io/disks.py",
        "        if identity.index in members:",
        "        if identity.index < 0:",
        _BAD + "test_two_copies_of_a_disk",
    ),
    _bug(
        "a newer format is read",
        "io/superblock.py",
        "    if version > FORMAT:",
        "    if version > 1000:",
        _BAD + "test_newer_superblock_is_left_untouched",
    ),
    _bug(
        "disks are not locked",
        "io/folder.py",
        "        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        _BAD + "test_second_daemon_on_the_same_disks",
    ),
    _bug(
        "ready with too few disks",
        "store/health.py",
        '    return Health("unhealthy" if unhealthy else "degraded" if reasons',
        '    return Health("degraded" if reasons',
        _BAD + "test_too_many_disks_missing_say_so",
    ),
    # several clients, one daemon
    _bug(
        "paths that are kept outlive their directories",
        "io/catalog/read.py",
        "        if self._kept_tree != self._now.tree or len",
        "        if len",
        _CLIENTS + "test_one_process_sees_what_another_was_answered",
    ),
    _bug(
        "objects that are kept outlive a commit",
        "io/catalog/apply.py",
        "    def _object_put(self, it: mu.ObjectPut) -> None:\n        self.generations.change_object(it.directory, it.name)\n",
        "    def _object_put(self, it: mu.ObjectPut) -> None:\n",
        "io/catalog/test_apply.py::test_an_object_that_readers_keep_is_dropped_when_it_changes",
    ),
    _bug(
        "many streams have large buffers",
        "store/intake.py",
        "BATCH_STREAMS_MAX = 16",
        "BATCH_STREAMS_MAX = 1000",
        _CLIENTS + "test_many_slow_uploads_take_bounded_memory",
        "store/test_intake.py::test_many_streams_have_a_stripe_each_and_few_have_a_batch",
    ),
    _bug(
        "requests are logged",
        "frontends/s3/server.py",
        "        target = parse_target(request.target)\n",
        '        target = parse_target(request.target)\n        _log.debug("request came: %s", request.target)\n',
        _CLIENTS + "test_log_holds_nothing_that_was_signed_with",
    ),
    # one disk, every call
    _bug(
        "a disk that cannot be listed stops the start",
        "io/recovery.py",
        "            names = await disk.list(FOLDER)\n        except DiskError",
        "            names = await disk.list(FOLDER)\n        except ZeroDivisionError",
        _NTH,
    ),
    _bug(
        "a rebuild does not outlive its target",
        "ec/rebuild.py",
        "        except DiskError as error:\n            self._disks.fail(current.target, error)",
        "        except ZeroDivisionError as error:\n            self._disks.fail(current.target, DiskError(str(error)))",
        "ec/test_rebuild.py::test_a_target_that_fails_is_given_up_for_another",
    ),
    _bug(
        "what could not be made anew takes the place of what a disk that is away has",
        "ec/rebuild.py",
        "        if lost and row.disks[index] not in (-1, current.target):",
        "        if lost and not row:",
        "ec/test_rebuild.py::test_what_disks_that_are_away_may_still_have_stays_theirs",
    ),
    _bug(
        "bodies never go past full disks",
        "store/l3.py",
        "        return self._overflow if is_tight or is_full else None",
        "        return None",
        "store/test_l3.py::test_long_bodies_go_past_full_disks",
    ),
    _bug(
        "a blob that a body needs is not held until its record",
        "store/overflow.py",
        "        self._hold(name.number)",
        "        self._hold(0)",
        "store/test_l3.py::test_a_body_that_breaks_off_leaves_nothing_in_the_bucket",
    ),
    _bug(
        "data goes to the bucket only without a copy there",
        "store/decide/segments.py",
        "            if move.new[0] != mu.IN_BLOB or (copy is not None and (copy.blob, copy.start) == move.new[1:]):",
        "            if True:",
        "store/decide/test_blobs.py",
    ),
    _bug(
        "a blob counts that an earlier start began",
        "store/decide/blobs.py",
        "        if blob is None or blob.state == STATE_DROPPED or blob.epoch != request.epoch:",
        "        if blob is None or blob.state == STATE_DROPPED:",
        "store/decide/test_blobs.py",
    ),
    _bug(
        "what is packed anew is packed again and again",
        "store/packing.py",
        "    return thin.packed_bytes <= GAIN_RATIO_MAX * thin.blob.size",
        "    return True",
        "store/test_packing.py::test_tiny_extents_are_let_be",
    ),
    _bug(
        "packing needs no old copy where it was read",
        "store/decide/blobs.py",
        "(copy is None or copy.blob == request.replaces):",
        "(copy is None or request.replaces):",
        "store/decide/test_blobs.py::test_what_is_packed_anew_has_the_new_place",
    ),
    _bug(
        "what lies in a bucket only is not found where it was packed",
        "io/catalog/blobrows.py",
        '                self._run("update extent set stripe=?, stripe_start=? where id=?", (it.id, start, extent))\n',
        "",
        "store/test_packing.py::test_what_lives_in_thin_blobs_goes_into_one",
    ),
    _bug(
        "a blob that is being read is not held",
        "store/l3.py",
        "views.is_unseen(blob) and not pool.is_pinned(blob),",
        "views.is_unseen(blob),",
        "store/test_packing.py::test_a_reader_of_the_old_blob_reads_on",
    ),
    _bug(
        "a copy is not looked for where it was packed meanwhile",
        "store/copies.py",
        "                if packed is not None and packed != copy:",
        "                if False:",
        "store/test_packing.py::test_a_copy_that_moves_while_it_is_asked_for_is_found",
    ),
    _bug(
        "what was packed for nothing is compared with the disks alone",
        "store/l3.py",
        "            data = await source.load(0, row.length)",
        "            data = await source.load_here(0, row.length)",
        "store/test_packing_cut.py::test_wherever_the_power_goes",
    ),
    _bug(
        "what is packed is confirmed as if it had no copy",
        "store/packing.py",
        "await self._ledger.replace(name, index, moved, victim.id)",
        "await self._ledger.replace(name, moved, moved, 0)",
        "store/test_packing.py::test_what_lives_in_thin_blobs_goes_into_one",
    ),
    _bug(
        "blobs are packed while what has no copy fails to get one",
        "store/l3.py",
        "is_put_off=lambda: bool(uploader.trouble) or",
        "is_put_off=lambda:",
        "store/test_packing.py::test_what_has_no_copy_comes_first",
    ),
    _bug(
        "the place of a blob that is gone is not looked for anew",
        "store/copies.py",
        " and (blob := self._catalog.blob(extent.stripe)) is not None:",
        ":\n            blob = self._catalog.blob(extent.stripe)\n            assert blob is not None",
        "store/test_packing.py::test_a_place_that_nobody_held_is_looked_for_anew",
    ),
    _bug(
        "one blob that cannot be read keeps all from being packed",
        "store/packing.py",
        "                self._passed_over[victim.id] = victim.live_bytes",
        "                raise",
        "store/test_packing.py::test_a_blob_that_cannot_be_read_stays_and_keeps_no_other_from_being_packed",
    ),
    _bug(
        "what a copy turned out not to be is not made good",
        "store/copies.py",
        "            self.on_damage(copy.blob, extent.id)",
        "            pass",
        "store/test_l3.py::test_a_copy_that_is_damaged_is_no_copy",
    ),
    # quick answers
    _bug(
        "an object that was looked at holds for ever",
        "store/looks.py",
        "        return looks.entry(self._directory, self._name) is self._row and looks.stamp() == self._stamp",
        "        return True",
        _QUICK,
    ),
    _bug(
        "a bucket that changed is not looked at again",
        "store/looks.py",
        " is self._row and looks.stamp() == self._stamp",
        " is self._row",
        _QUICK,
    ),
    _bug(
        "a quick answer ignores the range",
        "frontends/s3/quick.py",
        'if b"range" in fields:',
        'if b"rage" in fields:',
        _QUICK,
    ),
    _bug(
        "a quick answer asks for no owner",
        "frontends/s3/quick.py",
        "if kept is None or user is None or not (user.admin or user.name == kept.look.owner):",
        "if kept is None or user is None:",
        _QUICK,
    ),
    _bug(
        "a quick answer ends with what the client took at once",
        "frontends/http/hall.py",
        '            self._leave(self._forget(fd), b"", answer[sent:])',
        '            self._leave(self._forget(fd), b"", b"")',
        _HALL + "test_what_a_client_does_not_take_at_once_is_sent_by_a_task_and_others_go_on",
    ),
    _bug(
        "a connection is closed in the hall and counted on",
        "frontends/http/hall.py",
        "        connection.socket.close()\n        self._gone(connection)\n",
        "        connection.socket.close()\n",
        _HALL + "test_a_half_closed_connection_gets_its_answer",
    ),
    _bug(
        "a connection leaves the hall while its answer is waited for",
        "frontends/http/hall.py",
        "            self._nursery.start_soon(self._reply_later, fd, connection, answer)",
        '            self._leave(self._forget(fd), data, b"")',
        _HALL + "test_an_answer_that_is_waited_for_keeps_its_connection_in_the_hall_and_nobody_else",
    ),
    _bug(
        "a read that failed is answered as if it had not",
        "frontends/s3/quick.py",
        "                response = self._refusal(call, Operation.GET_OBJECT, request_id, error)",
        "                response = Response(200)",
        _QUICK + "::test_a_read_that_fails_is_answered_as_the_handler_does",
    ),
    _bug(
        "what a look opened is not held",
        "store/reader.py",
        "        parts.pins.hold(self._held, self._records)\n        self._open = True",
        "        self._open = False",
        "store/test_looks.py::test_what_is_short_is_read_through_a_look_that_holds_it",
    ),
    # caches
    _bug(
        "a chunk is kept under another's index",
        "cache/manager.py",
        "                self._admit((extent, chunk), data, wanted=keep)",
        "                self._admit((extent, chunk - run.start), data, wanted=keep)",
        _CACHE + "test_every_range_is_what_the_source_has",
        "store/test_caching.py::test_a_small_cache_gives_the_bytes_that_none_gives",
    ),
    _bug(
        "who waits for a load fails with who is cancelled",
        "cache/manager.py",
        "        except Exception:\n            for flight",
        "        except BaseException:\n            for flight",
        _CACHE + "test_who_is_cancelled_takes_nobody_along",
    ),
    _bug(
        "what is read ahead is held by nobody",
        "cache/manager.py",
        "            source.hold()\n",
        "",
        _CACHE + "test_what_is_missed_one_after_the_other_is_read_ahead_of",
    ),
    _bug(
        "a scan is written to the tier below",
        "cache/manager.py",
        "        if wanted:\n            assert",
        "        if True:\n            assert",
        _CACHE + "test_what_was_wanted_goes_below_and_comes_back",
    ),
    _bug(
        "the hand begins at the oldest each time",
        "cache/sieve.py",
        "hand = self._hand or self._oldest",
        "hand = self._oldest",
        "cache/test_sieve.py::test_does_as_the_model_when_it_is_full",
    ),
    _bug(
        "damage beside a range keeps it from being read",
        "cache/manager.py",
        "            return [await source.load(first, length)]",
        "            raise",
        "store/test_caching.py::test_rot_beside_a_range_does_not_keep_it_from_being_read",
    ),
    _bug(
        "a record that was moved is not held while it is read",
        "store/reader.py",
        "        parts.pins.hold([segment.id])\n        try:\n"
        "            return await parts.stripes.load(segment, found.stripe, found.stripe_start + first, length)\n"
        "        finally:\n            parts.pins.release([segment.id])\n",
        "        return await parts.stripes.load(segment, found.stripe, found.stripe_start + first, length)\n",
        "store/test_reader.py::test_a_journal_that_is_nearly_full_waits_for_no_reader",
    ),
    # what lies outside the node
    _bug(
        "a put replaces what is stored",
        "remote/s3.py",
        '            b"if-none-match": b"*",\n',
        "",
        _REMOTE + "test_backend.py::test_what_is_there_stays",
    ),
    _bug(
        "whatever lies under a key passes for what was put",
        "remote/s3.py",
        "return _content_length(head) == size_bytes and found == sha256",
        "return True",
        _REMOTE + "test_s3.py::test_a_key_that_holds_others_bytes_is_told",
    ),
    _bug(
        "frames of a blob are not checked",
        "remote/blob.py",
        "            if xxh3_64(piece, _frame_seed(seed, number)) !=",
        "            if False and xxh3_64(piece, _frame_seed(seed, number)) !=",
        _REMOTE + "test_blob.py::test_a_changed_byte_is_noticed_by_whoever_reads_it",
    ),
    _bug(
        "a blob counts before it was read back",
        "remote/blobs.py",
        "            await self.verify(name, packed)",
        "            pass",
        _REMOTE + "test_uploader.py::test_a_blob_counts_only_once_it_was_read_back",
    ),
    _bug(
        "a copy of the store is not looked for",
        "remote/uploader.py",
        "        await self._check_claim()\n",
        "",
        _REMOTE + "test_uploader.py::test_a_copy_of_the_store_ends_uploads",
    ),
    _bug(
        "what was left is deleted unread",
        "remote/leftovers.py",
        "                if await self._blobs.read(name, held, start, len(wanted)) != wanted:",
        "                if False:",
        _REMOTE + "test_leftovers.py::test_what_may_be_the_last_copy_stays",
    ),
    # workers
    _bug(
        "a dead segment goes though a worker may see it",
        "store/views.py",
        "        if page.seen_by_all() < noted:",
        "        if False:",
        _VIEWS + "test_segment_goes_once_every_reader_has_seen_what_was_there_when_it_was_asked_for",
    ),
    _bug(
        "a worker keeps a row that is older than the numbers it is kept under",
        "replica/catalog.py",
        "        return self.version == self._page.version",
        "        return True",
        _REPLICA + "test_catalog.py::test_row_that_is_read_while_a_commit_is_told_is_not_kept",
    ),
    _bug(
        "a worker begins to answer with the state of before",
        "store/uploads.py",
        "    core.catalog.refresh()",
        "    pass",
        _REPLICA + "test_store.py::test_each_change_is_seen_at_once_though_the_look_up_was_kept",
    ),
    _bug(
        "a removed key goes on signing in a worker",
        "store/accounts.py",
        "        self._refresh()",
        "        pass",
        _REPLICA + "test_store.py::test_keys_that_go_sign_nothing_any_more",
    ),
    _bug(
        "a worker's word passes what it reads still",
        "replica/pins.py",
        "min([self._version(), *seen])",
        "self._version()",
        _REPLICA + "test_pins.py::test_word_stays_until_what_is_held_was_told",
    ),
    _bug(
        "a worker's transaction outlives a turn",
        "replica/catalog.py",
        "        self._catalog.let_go()",
        "        pass",
        _REPLICA + "test_store.py::test_reader_keeps_no_transaction_over_a_turn",
    ),
    _bug(
        "the space of a body is let go before it has a name",
        "replica/bodies.py",
        "        await _exactly(sock, 1)",
        "        pass",
        _REPLICA + "test_bodies.py::test_space_of_a_body_is_held_until_it_has_a_name_or_was_given_up",
    ),
    _bug(
        "the word of a worker that was killed stays",
        "processes/supervisor.py",
        "            self._page.clear(child.number)",
        "            pass",
        _SUPERVISOR + "test_word_of_a_worker_that_ended_keeps_nothing",
    ),
    _bug(
        "nobody looks whether a worker hangs",
        "processes/supervisor.py",
        "            if child.still_looks >= _STILL_LOOKS_MAX:",
        "            if False:",
        _SUPERVISOR + "test_worker_whose_loop_stands_still_is_killed_and_no_other",
    ),
    _bug(
        "a worker whose channel ended is not given another",
        "processes/supervisor.py",
        "            elif word.word == orders.LINK:",
        "            elif False:",
        _SUPERVISOR + "test_worker_that_asks_is_given_a_link",
    ),
    # the catalog in a bucket, and a node made anew from it
    _bug(
        "a root is put before what lies behind it",
        "remote/publisher.py",
        "            await self._put_runs()\n",
        "",
        _REMOTE + "test_publisher.py::test_wherever_it_ends_what_can_be_recovered_gets_never_older",
    ),
    _bug(
        "the log in the bucket goes on over a gap",
        "remote/roots.py",
        "            if run.first > at:",
        "            if False:",
        _REMOTE + "test_restoring.py::test_a_run_that_is_spoiled_ends_the_log",
    ),
    _bug(
        "pieces that the older root needs are removed",
        "remote/roots.py",
        "for root in kept for digest",
        "for root in kept[:1] for digest",
        _REMOTE + "test_publisher.py::test_two_roots_are_kept_and_what_they_need",
    ),
    _bug(
        "a blob is deleted that a catalog in the bucket names",
        "store/l3.py",
        "            lambda: publisher.kept_from,",
        "            lambda: self._catalog.committed_sequence + 1,",
        "store/test_l3.py::test_what_was_deleted_goes_from_the_bucket",
    ),
    _bug(
        "extents of a lost node lie at the beginning of their blobs",
        "io/catalog/lost.py",
        "stripe_start=copy_start where",
        "stripe_start=0 where",
        _REMAKE + "test_a_node_made_anew",
    ),
    _bug(
        "ids of records that were lost with a node are given again",
        "io/catalog/lost.py",
        '    connection.execute("update state set next_id=next_id+?", (IDS_SKIPPED,))\n',
        "",
        _REMAKE + "test_ids_that_clients_may_know_are_not_given_again",
    ),
    _bug(
        "an empty catalog is taken for the one that was fetched",
        "store/start.py",
        "    if after <= disks.identity.log_after:",
        "    if False:",
        _REMAKE + "test_a_catalog_that_is_lost_before_there_is_a_snapshot",
    ),
    _bug(
        "disks of a running store are taken for what an attempt has left",
        "store/remake.py",
        " and slot.generation < NEW_GENERATIONS:",
        ":",
        _REMAKE + "test_superblocks_are_taken_for_what_an_attempt_left_only_when_all_disks_are",
    ),
    _bug(
        "a request that came in one record with a body is waited for",
        "frontends/http/connection.py",
        "        if self._tls is not None and self._tls.pending():",
        "        if False:",
        "frontends/http/test_tls.py::test_a_request_in_one_record_with_the_end_of_a_body_is_served_at_once[1]",
    ),
    _bug(
        "under TLS nobody sees that a slow client moves",
        "frontends/http/tls.py",
        "self.write(view[sent : sent + RECORD_BYTES])",
        "self.write(view[sent:])",
        "frontends/http/test_tls.py::test_what_does_not_fit_into_the_socket_is_told_record_by_record",
    ),
    _bug(
        "a certificate that changed is not shown",
        "frontends/http/tls.py",
        "                self._context = self._load()\n",
        "",
        "frontends/http/test_tls.py::test_a_certificate_that_changed_is_shown_and_one_that_is_broken_is_not",
    ),
)
