"""What `orchestrator aws bootstrap` makes on AWS for a pool: queue, rules, security group, launch template,
and two settings of a target group.

Every part is looked at, compared with what it should be, and changed only where it differs, so a run that
broke off is finished by the next one, and a run after that changes nothing. A part that exists and does not
carry the pool's tag is not ours: then nothing at all is changed.

Kept apart from the daemon's adapters because it needs permissions that the daemon must not have.
"""
