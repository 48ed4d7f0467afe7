"""A cloud on this machine: instances are engine processes on loopback addresses, spot comes from a market.

The server side (`server.run_local_cloud`) is its own process, so nodes outlive the daemon; `instances`,
`offerings` and `notices` are the adapters that the daemon uses. Linux only: it needs 127.0.0.0/8, /proc and
pidfds.
"""
