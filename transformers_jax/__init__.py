"""Transformers in JAX and Flax: trained, evaluated and decoded by one set of commands."""

__version__ = "0.1.0"
