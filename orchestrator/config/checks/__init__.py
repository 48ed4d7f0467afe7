"""What must hold between the keys of a configuration, and between it and this machine."""
