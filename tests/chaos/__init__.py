"""Chaos: real peer processes, a real RabbitMQ, a real local S3, and faults at a named peer and round (README.md)."""
