"""What `orchestrator doctor` reads of AWS: facts, no judgements. Nothing here changes anything, but for
`balancer.set_deregistration_delay`, which an operator asks for.

Kept apart from the daemon's adapters because it needs permissions that the daemon must not have.
"""
