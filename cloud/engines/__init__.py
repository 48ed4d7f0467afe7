"""Inference servers behind the `Engine` port: how to start one, and how to see whether it works."""
