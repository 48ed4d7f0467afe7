"""Adapters: all I/O with the world outside. They do what the daemon asks and report what they see.

No decision lives here: an adapter never chooses a node, a zone, a time or a retry.
"""
