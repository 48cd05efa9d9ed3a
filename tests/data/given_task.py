"""A task whose hooks are given to it."""

from transformers_jax.tasks.task import Task


class Given(Task):
    """encode, streams and others of `Task`, by name."""

    def __init__(self, **hooks):
        vars(self).update(hooks)
