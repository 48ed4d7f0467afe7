"""The daemon that joins policies and clouds, its command line, gateway and API."""

__version__ = "0.1.0"
