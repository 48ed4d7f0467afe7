"""Pure decisions: given what is wanted, seen and remembered, what should be done and why.

Nothing here does I/O, reads a clock, draws random numbers or logs: time and prices arrive as data, and
the answer is a value (`policies.actions.Plan`). import-linter enforces it.
"""
