"""Start, follow and stop a run, and fetch its result."""
