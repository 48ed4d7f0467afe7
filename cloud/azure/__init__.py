"""Azure: virtual machines, offerings and prices. The SDK is imported at the first call."""
