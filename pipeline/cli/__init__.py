"""The command `gain`."""
