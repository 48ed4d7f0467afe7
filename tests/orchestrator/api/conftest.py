"""An API that gives sample answers."""

from tests.support.sample_answers import api, plan, story, swapping

__all__ = ["api", "plan", "story", "swapping"]
