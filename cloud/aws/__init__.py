"""AWS: instances, offerings and prices, load-balancer target groups. boto3 is imported at the first call."""
