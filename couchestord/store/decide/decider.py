"""The table of decisions."""

from collections.abc import Callable
from typing import Any

from couchestord.clock import Clock
from couchestord.io import filerequests as fr
from couchestord.io import requests as rq
from couchestord.io.catalog.catalog import Catalog
from couchestord.store.decide.accounts import AccountDecisions
from couchestord.store.decide.blobs import BlobDecisions
from couchestord.store.decide.context import Context, Decision
from couchestord.store.decide.files import FileDecisions
from couchestord.store.decide.objects import ObjectDecisions
from couchestord.store.decide.segments import SegmentDecisions
from couchestord.store.decide.uploads import UploadDecisions
from couchestord.store.mounts import Mounts

__all__ = ["Decider", "Decision"]


class Decider:
    """Decides requests one after the other, inside the writer's transaction."""

    def __init__(self, catalog: Catalog, clock: Clock, epoch: Callable[[], int], mounts: Mounts) -> None:
        self.mounts = mounts
        applier = catalog.applier
        context = Context(
            catalog.writing, catalog.writing_accounts, catalog.writing_copies, applier, clock, epoch, mounts
        )
        objects = ObjectDecisions(context)
        uploads = UploadDecisions(context, objects)
        accounts = AccountDecisions(context)
        segments = SegmentDecisions(context)
        blobs = BlobDecisions(context)
        files = FileDecisions(context, catalog.writing_files)
        self._by_type: dict[type, Callable[[Any], Decision]] = {
            rq.MakeBucket: accounts.make_bucket,
            rq.RemoveBucket: accounts.remove_bucket,
            rq.SetVersioning: accounts.set_versioning,
            rq.PutObject: objects.put,
            rq.CopyObject: objects.copy,
            rq.DeleteObject: objects.delete,
            rq.MakeUpload: uploads.make,
            rq.PutPart: uploads.put_part,
            rq.CopyPart: uploads.copy_part,
            rq.CompleteUpload: uploads.complete,
            rq.AbortUpload: uploads.abort,
            rq.ForgetResults: uploads.forget,
            rq.SetBucketPolicy: accounts.set_bucket_policy,
            rq.PutPolicy: accounts.put_policy,
            rq.MakeUser: accounts.make_user,
            rq.RemoveUser: accounts.remove_user,
            rq.MakeKey: accounts.make_key,
            rq.RemoveKey: accounts.remove_key,
            rq.PutSetting: accounts.put_setting,
            rq.SaveJob: accounts.save_job,
            rq.MakeSegment: segments.make,
            rq.SealSegment: segments.seal,
            rq.DropSegment: segments.drop,
            rq.LoseShards: segments.lose_shards,
            rq.PlaceShard: segments.place_shard,
            rq.MoveExtents: segments.move_extents,
            rq.BeginBlob: blobs.begin,
            rq.ConfirmBlob: blobs.confirm,
            rq.DropBlob: blobs.drop,
            rq.ForgetBlob: blobs.forget,
            rq.LoseCopies: blobs.lose_copies,
            fr.MakeNode: files.make,
            fr.LinkNode: files.link,
            fr.UnlinkNode: files.unlink,
            fr.RemoveDirectory: files.remove_directory,
            fr.RenameNode: files.rename,
            fr.ChangeInode: files.change,
            fr.MakeSpill: files.make_spill,
            fr.PublishFile: files.publish,
            fr.JoinPieces: files.join,
            fr.SetXattr: files.set_xattr,
            fr.FreeOrphans: files.free_orphans,
        }

    def decide(self, request: object) -> Decision:
        """The outcome and the answer. Raises the error that the caller is to be answered."""
        return self._by_type[type(request)](request)
