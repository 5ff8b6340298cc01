"""What users train on: reading and checking rows. Never changes or drops one silently."""
