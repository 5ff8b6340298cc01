"""What leaves the box with a model: documents for people, auditors and other programs. Text only."""
