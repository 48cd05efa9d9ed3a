"""Finetuning: what of a pretrained model a run begins with, which of its parameters learn, and for how long."""
