"""From a configuration to adapters: the ports of a pool."""
