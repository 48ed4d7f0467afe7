"""The control API: what the daemon says of itself, what it is asked, and the client of both."""
