"""The Lambda function that computes the gradient of one batch."""
