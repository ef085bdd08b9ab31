"""Guided attention: the paper's equations (attention) and its losses (losses)."""
