"""The right to act: a lock on a file, a row in a shared database, and the standby that waits for it."""
