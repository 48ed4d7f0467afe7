"""Google Cloud: machines of Compute Engine, their prices, and notices from its operations."""
