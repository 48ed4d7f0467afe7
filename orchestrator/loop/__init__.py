"""The loop of a pool: what is heard and seen goes in, turns are decided, calls go out, all is counted."""
