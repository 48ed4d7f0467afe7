"""A simulated world behind the ports: cloud, notices, load balancer and engines, in memory and by the seed.

Nothing here does I/O or reads a clock of its own; time and randomness are handed in. It runs on any event
loop and belongs on a virtual-time one (`orchestrator.simulation.virtual_time`): hours cost milliseconds.
"""
