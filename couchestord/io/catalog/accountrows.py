"""Rows of what has a name and hangs together with nothing else: users, keys, policies, settings, jobs."""

from couchestord.io import mutations as mu
from couchestord.io.sqlite import Connection, Execute, Shut


class AccountRows:
    """Applies what concerns them. Inside the caller's transaction."""

    def __init__(self, connection: Connection) -> None:
        self.connect(connection)

    def connect(self, connection: Connection | Shut) -> None:
        """Work through this connection from now on."""
        self._run: Execute = connection.execute

    def bucket_versioned(self, it: mu.BucketVersioned) -> None:
        self._run("update bucket set versioning=? where name=?", (it.versioning, it.name))

    def bucket_policy_set(self, it: mu.BucketPolicySet) -> None:
        self._run("update bucket set policy=? where name=?", (it.policy, it.name))

    def policy_put(self, it: mu.PolicyPut) -> None:
        self._run(
            "insert or replace into policy values (?, ?, ?, ?, ?, ?, ?, ?)",
            (it.id, it.name, it.k, it.m, it.stripe_bytes, it.min_healthy_shards, it.disk_class, it.created_ns),
        )

    def user_made(self, it: mu.UserMade) -> None:
        self._run("insert into account values (?, ?, ?)", (it.name, int(it.admin), it.created_ns))

    def user_removed(self, it: mu.UserRemoved) -> None:
        self._run("delete from access_key where account=?", (it.name,))
        self._run("delete from account where name=?", (it.name,))

    def key_made(self, it: mu.KeyMade) -> None:
        self._run("insert into access_key values (?, ?, ?, ?)", (it.access_key, it.user, it.secret_key, it.created_ns))

    def key_removed(self, it: mu.KeyRemoved) -> None:
        self._run("delete from access_key where id=?", (it.access_key,))

    def setting_put(self, it: mu.SettingPut) -> None:
        self._run("insert or replace into setting values (?, ?)", (it.name, it.value))

    def job_put(self, it: mu.JobPut) -> None:
        if it.state:
            self._run("insert or replace into job values (?, ?)", (it.name, it.state))
        else:
            self._run("delete from job where name=?", (it.name,))
