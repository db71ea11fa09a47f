"""What a person sees of a run: progress while it runs, a table at the end."""
