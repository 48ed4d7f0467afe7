"""The sample answers of the control API."""

from tests.support.sample_answers import calm, large, paused, plan, small, story, swapping

__all__ = ["calm", "large", "paused", "plan", "small", "story", "swapping"]
