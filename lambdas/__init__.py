"""Handlers that run on AWS Lambda, and locally under the same runtime client."""
