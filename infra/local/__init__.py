"""The infrastructure on one machine: local AWS, a real RabbitMQ node, a local Lambda service."""
