"""The daemon: joins loop, API and lease, and lives as a process."""
