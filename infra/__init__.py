"""What the system runs on: AWS stacks, and the same infrastructure on one machine."""
