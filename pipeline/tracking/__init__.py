"""What a run says of itself: its record in MLflow, its progress on the terminal."""
