"""The journal: events and recorded turns in SQLite or PostgreSQL, read, fetched and replayed."""
