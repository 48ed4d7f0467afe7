"""Replays of spot markets on virtual time: what a policy would have cost and what would have gone wrong.

`scenario` cuts a market out of a recorded or synthetic set, `replay` runs the real decision code against it,
`baselines` are the policies to compare with, `omniscient` is the bound that no policy can beat, `score`
counts.
"""
