"""The data plane: a reverse proxy for engines that loses no request because a node went away.

Its own process. It learns its targets from a file and over a unix socket, and keeps serving the last set
when the daemon is dead. See docs/reference/gateway.md.
"""
