"""The Lambda function that adds up gradients of one peer's round, or means over some of them."""
