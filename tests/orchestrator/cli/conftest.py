"""The sample answers of the control API, and the API that gives them."""

from tests.support.sample_answers import api, calm, large, paused, plan, run, small, story, swapping

__all__ = ["api", "calm", "large", "paused", "plan", "run", "small", "story", "swapping"]
