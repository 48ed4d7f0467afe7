"""The process that speaks to SkyPilot, in an environment of its own. Nothing else imports SkyPilot.

It keeps nothing that its end would lose: what has been asked for stands in the daemon's ledger, and what
there is in the cloud.
"""
