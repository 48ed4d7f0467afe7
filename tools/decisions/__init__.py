"""What `tools/compare_decisions.py` is made of: turns as JSON, the judge of another version, differences."""
