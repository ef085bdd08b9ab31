"""The loop, its state, its devices and its checkpoints."""
