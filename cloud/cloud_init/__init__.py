"""What makes a machine a node, whichever cloud it is of: what its first boot is given."""
