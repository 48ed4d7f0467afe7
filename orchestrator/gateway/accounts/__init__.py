"""Who asks, what each may use and what each used: keys, limits, usage. It knows nobody who answers."""
