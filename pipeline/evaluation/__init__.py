"""A network over data, and the scores of what it says."""
