"""Policies by the command line, and a store on fewer disks than shards, through a real daemon."""

from pathlib import Path

from daemon import QUICK, Node, wait_until
from daemons import command, result
from workload import BUCKET, Expected, fill

SIZES = (1, 4096, 131_072, 131_073, 600_000, 3_000_000)
SNAPSHOTS = {
    **QUICK,
    "COUCHESTORD_STORE__SNAPSHOT_SIZE_MIN": "64 KiB",
    "COUCHESTORD_JOURNAL__FILE_SIZE": "64 KiB",
    "COUCHESTORD_JOURNAL__PREALLOCATE": "16 KiB",
}


def lose(node: Node, *indexes: int) -> None:
    for index in indexes:
        node.disks[index].rename(node.data / f"away-{index}")


def bring_back(node: Node, *indexes: int) -> None:
    for index in indexes:
        (node.data / f"away-{index}").rename(node.disks[index])


def wait_missing(node: Node, count: int) -> None:
    wait_until(lambda: [disk["state"] for disk in node.status()["disks"]].count("missing") == count, 60, node.status)


def test_a_bucket_under_a_policy_that_outlives_four_disks(tmp_path: Path) -> None:
    """Made, listed and changed by commands beside the running daemon. What lies under 4+2 is gone with three disks."""
    wide, plain = Expected("wide"), Expected("plain")
    with Node(tmp_path / "data", settings=QUICK) as node:
        node.start()
        data = ("--data", node.data)
        result("bucket", "create", "plain", *data)
        assert "9+2 needs 11 disks" in command("policy", "add", "far", "--k", "9", *data).stderr
        assert result("policy", "add", "strong", "--k", "2", "--m", "4", *data)["survives_disks"] == 4
        result("bucket", "create", "wide", "--policy", "strong", *data)
        result("bucket", "create", "later", *data)
        result("bucket", "set", "later", "--policy", "strong", *data)
        assert {row["bucket"]: row["policy"] for row in result("bucket", "list", *data)} == {
            **{"later": "strong", "plain": "default", "wide": "strong"}
        }
        assert [(row["name"], row["k"], row["m"]) for row in result("policy", "list", *data)] == [
            *(("default", 4, 2), ("strong", 2, 4))
        ]
        journal = node.status()["journal"]
        assert (journal["replicas"], journal["survives_disks"]) == (5, 4)
        client = node.s3()
        for expected in (wide, plain):
            fill(expected, client, "before", SIZES)
        node.wait_destaged()
        fill(wide, client, "log", (10, 2000))
        node.wait_healthy()
        lose(node, 0, 2, 3, 5)
        wait_missing(node, 4)
        client = node.s3()
        wide.verify(client)
        fill(wide, client, "while", SIZES)
        node.stop()
        assert node.spawn(), node.said()
        assert node.page("readyz")[0] == 503, "the default policy cannot be served"
        wide.verify(node.s3())
        assert plain.read_all(node.s3()) > 0
        bring_back(node, 0, 2, 3, 5)
        wait_missing(node, 0)
        node.wait_healthy()
        lose(node, 1, 4)
        wait_missing(node, 2)
        for expected in (wide, plain):
            expected.verify(node.s3())


def test_three_disks_with_two_shards_each(tmp_path: Path) -> None:
    """A disk is lost, written past, and returns; the catalog is made again from a snapshot with another one away."""
    expected, data = Expected(), tmp_path / "data"
    result("init", "--data", data, "--disks", "3", "--shards-per-disk", "2")
    with Node(data, settings=SNAPSHOTS) as node:
        node.start().s3().create_bucket(Bucket=BUCKET)
        assert node.status()["policies"][0]["survives_disks"] == 1
        fill(expected, node.s3(), "before", SIZES)
        node.wait_destaged()
        assert {disk["loses_data_if_lost"] for disk in node.status()["disks"]} == {False}
        lose(node, 1)
        wait_missing(node, 1)
        assert {disk["loses_data_if_lost"] for disk in node.status()["disks"] if disk["state"] == "good"} == {True}
        expected.verify(node.s3())
        fill(expected, node.s3(), "while", SIZES)
        assert expected.delete(node.s3(), "before/5")
        bring_back(node, 1)
        wait_missing(node, 0)
        node.wait_healthy()
        taken = node.status()["catalog"]["snapshot_sequence"]
        fill(expected, node.s3(), "after", [4000] * 40)
        node.wait_destaged()
        wait_until(lambda: node.status()["catalog"]["snapshot_sequence"] > taken, 60, lambda: node.status()["jobs"])
        node.wait_healthy()
        node.stop()
        lose(node, 2)
        assert command("recover", "--data", data).returncode == 0
        node.start()
        expected.verify(node.s3())
        fill(expected, node.s3(), "past", SIZES)
        bring_back(node, 2)
        wait_missing(node, 0)
        node.wait_healthy()
        lose(node, 0)
        wait_missing(node, 1)
        expected.verify(node.s3())
        node.stop()
        bring_back(node, 0)
        assert command("fsck", "--data", data).returncode == 0
