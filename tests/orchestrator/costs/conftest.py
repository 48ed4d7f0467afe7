"""What tests of costs share."""

from cost_state import state

__all__ = ["state"]
