"""What the embedded data set is drawn with: flat illustrations (painting) of objects, and the grounds behind them."""
