"""The daemon's metrics: every name and label, and the counting of calls."""
