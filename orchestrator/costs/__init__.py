"""What was spent and for what: the books of ledger, usage and spend file, and the report made from them."""
