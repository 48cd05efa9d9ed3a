"""Which parameters learn: config.finetuning.trainable, as patterns over their names (see `parameters`)."""

from collections.abc import Mapping

HEAD = r"^(pooler|classifier|choice|next_sentence|lm|lm_bias)(/|$)"
"""Parameters of heads, which may be new."""

NAMES = {"all": ".", "head": HEAD}
"""Words that stand for a pattern: all parameters, and those that a finetuned model has beside the encoder's."""


def patterns(config: Mapping, frozen: str = "") -> tuple[str, ...]:
    """The patterns of a run's config; all parameters learn where it has no such key.

    Args:
      frozen: a pattern of parameters that never do, a teacher's.
    """
    given = config.get("finetuning", {}).get("trainable", ("all",))
    wanted = [NAMES.get(pattern, pattern) for pattern in ((given,) if isinstance(given, str) else given)]
    return tuple(f"^(?!.*(?:{frozen}))(?=.*(?:{pattern}))" if frozen else pattern for pattern in wanted)
