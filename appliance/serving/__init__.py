"""Which models are loaded, and who may talk to them."""
