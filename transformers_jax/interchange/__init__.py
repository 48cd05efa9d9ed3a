"""Checkpoints of others, in and out, by the tables of names at the bottom of the model files."""
