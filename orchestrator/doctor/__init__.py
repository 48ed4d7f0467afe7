"""`orchestrator doctor`: what an operator should know before and while a pool runs.

Facts are read by `cloud.aws.doctor` and the `facts` functions here; each judgement is a pure function from
facts to findings, so that every one of them has a test in which it fails. `run` puts the checks together.
"""
