"""How every HTTP listener of ours serves: its socket, whom it answers, and what it says of bad requests."""
