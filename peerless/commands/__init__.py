"""The commands of `peerless`, beside those in peerless/cli.py, and what all of them share."""
