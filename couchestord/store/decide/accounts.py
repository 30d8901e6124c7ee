"""Decisions about buckets, policies, users, keys, settings."""

import base64
from dataclasses import astuple, replace

from couchestord.errors import (
    BucketAlreadyExists,
    BucketAlreadyOwnedByYou,
    BucketMounted,
    BucketNotEmpty,
    InvalidArgument,
    KeyAlreadyExists,
    NoSuchAccessKey,
    NoSuchPolicy,
    NoSuchUser,
    PolicyAlreadyExists,
    PolicyChanged,
    UserOwnsBuckets,
)
from couchestord.io import mutations as mu
from couchestord.io import requests as rq
from couchestord.io.catalog.read import BucketRow
from couchestord.io.keys import check_bucket_name
from couchestord.model import AccessKey, Policy, User
from couchestord.store.decide.context import Context, Decision
from couchestord.store.values import bucket_info

VERSIONING_STATES = ("Enabled", "Suspended")
NAME_LENGTH_MAX = 128
BUCKETS_NAMED_MAX = 5


class AccountDecisions:
    """Everything that is small and named."""

    def __init__(self, context: Context) -> None:
        self._it = context

    def make_bucket(self, request: rq.MakeBucket) -> Decision:
        check_bucket_name(request.name)
        there = self._it.reader.bucket(request.name)
        if there is not None:
            if there.owner == request.owner:
                raise BucketAlreadyOwnedByYou(f"bucket {request.name!r} exists and is yours")
            raise BucketAlreadyExists(f"bucket {request.name!r} exists and belongs to somebody else")
        if request.owner and self._it.accounts.user(request.owner) is None:
            raise NoSuchUser(f"there is no user {request.owner!r}")
        root, now_ns = self._it.applier.next_id, self._it.clock.now_ns()
        policy = self._policy(request.policy)
        outcome = mu.BucketMade(request.name, root, request.owner, now_ns, policy.id)
        return Decision(
            outcome, bucket_info(BucketRow(request.name, root, request.owner, now_ns, "", policy.id), policy.name)
        )

    def remove_bucket(self, request: rq.RemoveBucket) -> Decision:
        bucket = self._it.bucket(request.name, request.owner)
        if self._it.reader.has_keys(bucket.root):
            raise BucketNotEmpty(f"bucket {request.name!r} still holds objects or versions")
        return Decision(mu.BucketRemoved(request.name))

    def set_versioning(self, request: rq.SetVersioning) -> Decision:
        bucket = self._it.bucket(request.name)
        if request.versioning not in VERSIONING_STATES:
            raise InvalidArgument(f"versioning is one of {', '.join(VERSIONING_STATES)}, not {request.versioning!r}")
        if bucket.versioning == request.versioning:
            return Decision(None)
        if self._it.mounts.writes(request.name):
            raise BucketMounted(f"bucket {request.name!r} is mounted and may be written there: unmount it first")
        return Decision(mu.BucketVersioned(request.name, request.versioning))

    def set_bucket_policy(self, request: rq.SetBucketPolicy) -> Decision:
        bucket, policy = self._it.bucket(request.name), self._policy(request.policy)
        return Decision(None if bucket.policy == policy.id else mu.BucketPolicySet(request.name, policy.id))

    def _policy(self, name: str) -> Policy:
        found = self._it.accounts.policy_named(name)
        if found is None:
            raise NoSuchPolicy(f"there is no policy {name!r}")
        return found

    def put_policy(self, request: rq.PutPolicy) -> Decision:
        policy, there = request.policy, self._it.accounts.policy_named(request.policy.name)
        if request.old is None and there is not None:
            raise PolicyAlreadyExists(f"there is a policy {policy.name!r} already")
        if request.old is None:
            made = [known.id for known in self._it.accounts.policies()]
            policy = replace(policy, id=max(made) + 1, created_ns=self._it.clock.now_ns())
        elif there != request.old or (policy.id, policy.created_ns) != (there.id, there.created_ns):
            raise PolicyChanged(f"policy {policy.name!r} has changed meanwhile: look at it again")
        return Decision(None if policy == there else mu.PolicyPut(*astuple(policy)), policy)

    def make_user(self, request: rq.MakeUser) -> Decision:
        if not request.name or len(request.name) > NAME_LENGTH_MAX or not request.name.isprintable():
            raise InvalidArgument(f"a user's name has 1 to {NAME_LENGTH_MAX} printable characters")
        there = self._it.accounts.user(request.name)
        if there is not None:
            return Decision(None, User(there.name, bool(there.admin), there.created_ns))
        now_ns = self._it.clock.now_ns()
        return Decision(mu.UserMade(request.name, request.admin, now_ns), User(request.name, request.admin, now_ns))

    def remove_user(self, request: rq.RemoveUser) -> Decision:
        if self._it.accounts.user(request.name) is None:
            raise NoSuchUser(f"there is no user {request.name!r}")
        owned = [bucket.name for bucket in self._it.reader.buckets() if bucket.owner == request.name]
        if owned:
            more = f" and {len(owned) - BUCKETS_NAMED_MAX} more" if len(owned) > BUCKETS_NAMED_MAX else ""
            raise UserOwnsBuckets(
                f"user {request.name!r} owns {', '.join(owned[:BUCKETS_NAMED_MAX])}{more}, which the next user of that "
                "name would get: delete these buckets first; to lock the user out, remove its keys"
            )
        rows = self._it.accounts.keys()
        return Decision(mu.UserRemoved(request.name), tuple(row.id for row in rows if row.user == request.name))

    def make_key(self, request: rq.MakeKey) -> Decision:
        # 15 and 30 random bytes: the lengths that S3 clients expect, 20 and 40 characters
        access_key = request.access_key or "CS" + base64.b32encode(self._it.clock.random_bytes(15)).decode()[:18]
        secret = request.secret_key or base64.urlsafe_b64encode(self._it.clock.random_bytes(30)).decode()
        _check_key_text(access_key, 3, "access key")
        _check_key_text(secret, 8, "secret key")
        there = self._it.accounts.key(access_key)
        if there is not None:
            if (there.user, there.secret) == (request.user, secret):
                return Decision(None, AccessKey(there.user, there.id, there.secret, there.created_ns))
            raise KeyAlreadyExists(f"the access key {access_key!r} exists; remove it first, or choose another")
        if self._it.accounts.user(request.user) is None:  # last: who makes the user then will get the key as well
            raise NoSuchUser(f"there is no user {request.user!r}")
        now_ns = self._it.clock.now_ns()
        outcome = mu.KeyMade(access_key, request.user, secret, now_ns)
        return Decision(outcome, AccessKey(request.user, access_key, secret, now_ns))

    def remove_key(self, request: rq.RemoveKey) -> Decision:
        if self._it.accounts.key(request.access_key) is None:
            raise NoSuchAccessKey(f"there is no access key {request.access_key!r}")
        return Decision(mu.KeyRemoved(request.access_key))

    def put_setting(self, request: rq.PutSetting) -> Decision:
        return Decision(mu.SettingPut(request.name, request.value))

    def save_job(self, request: rq.SaveJob) -> Decision:
        return Decision(mu.JobPut(request.name, request.state))


def _check_key_text(text: str, length_min: int, what: str) -> None:
    # "/", "," and "=" would break the Authorization header; a secret may hold them
    refused = "" if what == "secret key" else "/,="
    well = length_min <= len(text) <= NAME_LENGTH_MAX and text.isascii() and text.isprintable()
    if not well or " " in text or any(character in refused for character in text):
        raise InvalidArgument(f"the {what} must have {length_min} to {NAME_LENGTH_MAX} ASCII characters, no space")
