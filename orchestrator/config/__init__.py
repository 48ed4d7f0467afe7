"""The configuration: one TOML file, its tables, what must hold between them, every fault with its line."""
