"""The network (fcn8s) and its weights on disk (weights)."""
