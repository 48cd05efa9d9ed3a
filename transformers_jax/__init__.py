"""Transformers in JAX and Flax: trained, evaluated and decoded by one set of commands, or from a notebook:

    import transformers_jax as tj

    model = tj.load("workdir, folder of transformers, or name on the hub")

See `transformers_jax.inference.notebook`; it is imported at the first use of a name.
"""

__version__ = "0.1.0"
__all__ = ["Model", "evaluate", "load", "train"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'transformers_jax' has no attribute {name!r}; it has {', '.join(__all__)}")
    from transformers_jax.inference import notebook

    return getattr(notebook, name)
