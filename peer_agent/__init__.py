"""One peer: `python -m peer_agent --rank N …`, locally and on EC2."""
