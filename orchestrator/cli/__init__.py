"""The command line: one command a file.

Modules here import only what every command needs. What a command alone needs (rich, pydantic, aiohttp) is
imported inside its function, so that `orchestrator status` starts in a fraction of a second.
"""
