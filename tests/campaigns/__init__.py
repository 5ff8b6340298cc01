"""Long campaigns against the product: each is a program with a count; the suite runs a part."""
