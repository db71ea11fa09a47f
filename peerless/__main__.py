"""`python -m peerless`, the same as the `peerless` command."""

from peerless.cli import main

main()
