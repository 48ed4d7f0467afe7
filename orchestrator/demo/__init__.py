"""`orchestrator demo`: a spot market on this machine, with real processes, and what it did to requests."""
