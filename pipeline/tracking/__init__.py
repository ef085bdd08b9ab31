"""What a run reports while it works: its record in MLflow and its progress on the terminal. It changes no result."""
