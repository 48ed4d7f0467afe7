"""The tables of a configuration file that have a module of their own."""
