"""The course of a fine-tuning job, from its creation to a model that answers."""
