"""What every room stands on: errors, files, ranks, parameters."""
