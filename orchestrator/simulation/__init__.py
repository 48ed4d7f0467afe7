"""The whole daemon in a simulated world, on virtual time."""
