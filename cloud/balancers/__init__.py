"""Load balancer adapters: each one turns a wanted target set into calls on one kind of balancer."""
