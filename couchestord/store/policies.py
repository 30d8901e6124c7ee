"""Policies: how data is coded and placed, as the store's callers see them."""

import re
from dataclasses import replace
from typing import Any

from couchestord.ec.placement import check_policy
from couchestord.errors import InvalidArgument, NoSuchPolicy
from couchestord.io import requests as rq
from couchestord.io.disks import disks_to_spare
from couchestord.model import DEFAULT_POLICY, Policy
from couchestord.store.core import Core
from couchestord.store.health import policy_status

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class Policies:
    """The policies of a store. A bucket names one; what is written to it lies in segments of that policy."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def list(self) -> list[Policy]:
        """The default first, then as they were made."""
        return self._core.catalog.accounts.policies()

    def find(self, name: str) -> Policy:
        """Raises NoSuchPolicy."""
        found = self._core.catalog.accounts.policy_named(name)
        if found is None:
            raise NoSuchPolicy(f"there is no policy {name!r}")
        return found

    def describe(self, policy: Policy) -> dict[str, Any]:
        """A policy, with what it means on the disks of this store, ready for JSON."""
        return policy_status(self._core.disks, policy)

    def log_settings(self, name: str) -> dict[str, Any]:
        """Settings of the journal, which belong to the default policy: there is one log for all. Ready for JSON."""
        options, journal = self._core.options, self._core.journal
        if name != DEFAULT_POLICY:
            return {}
        return {
            "journal_size_bytes": journal.size_bytes_max,
            "journal_replicas": journal.replicas_wanted,
            "destage_threshold_percent": options.destage_threshold_percent,
            "destage_interval_s": options.destage_interval_s,
        }

    async def add(self, policy: Policy) -> Policy:
        """Make a policy; its id and time are chosen. Raises PolicyAlreadyExists, and InvalidArgument for one that the
        disks cannot hold.
        """
        return await self._put(policy, None)

    async def change(self, name: str, **changes: Any) -> Policy:
        """Change fields of a policy, for what is written from now on. Raises NoSuchPolicy, PolicyChanged; as `add`."""
        old = self.find(name)
        return await self._put(replace(old, **changes), old)

    async def assign(self, bucket: str, name: str) -> None:
        """Keep what is written to a bucket from now on under a policy; what is there stays as it is.

        Raises NoSuchBucket, NoSuchPolicy.
        """
        await self._core.submit(rq.SetBucketPolicy(bucket, name))

    async def _put(self, policy: Policy, old: Policy | None) -> Policy:
        disks = self._core.disks
        if not _NAME.fullmatch(policy.name):
            raise InvalidArgument("a policy's name has 1 to 63 characters: a to z, 0 to 9, and . _ - but for the first")
        check_policy(policy, len(disks.of_class(policy.disk_class)), disks.shards_per_disk)
        # before anything lies under the policy, the log must outlive what it makes good; a start takes back what was
        # too much
        if await disks.set_m(disks_to_spare(policy.k, policy.m, len(disks.of_class(policy.disk_class)))):
            self._core.journal.roll()
        made: Policy = await self._core.submit(rq.PutPolicy(policy, old))
        return made
