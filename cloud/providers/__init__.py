"""The APIs outside that answer where a pool cannot: how each is spoken to, and what it costs."""
