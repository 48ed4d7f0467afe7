"""What a field test asks of AWS beside what a daemon does: its rights are its own, see `cloud.aws.iam`."""
