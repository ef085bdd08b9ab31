"""What becomes of a trained model: registry, promotion, prediction, serving."""
