"""The first paper's tables and figures, run here and written beside the paper's own numbers."""
