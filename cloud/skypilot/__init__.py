"""Machines of other clouds through SkyPilot's provisioners, which run in a helper process of their own."""
