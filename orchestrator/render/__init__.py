"""Answers of the API, findings and journals as text and tables for a terminal."""
