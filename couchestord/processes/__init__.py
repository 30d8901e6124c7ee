"""The processes of a daemon that has workers: `supervisor` starts and watches them, without trio; `storeside` is what
the daemon has in place of its S3 server; `worker` serves S3; `orders` is how they and the supervisor speak.
"""
