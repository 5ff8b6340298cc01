"""What fits: pure arithmetic over a model's shape. Nothing here asks the device or reads a file."""
