"""What an operator asks a running daemon: health and metrics over HTTP, everything else over a Unix socket.

`pages` answers /healthz, /livez, /readyz and /metrics. `commands` is what the command line does to a store; it runs in
the daemon, reached through `server` and `client`, or, when no daemon runs, in the command line's own process.
"""
