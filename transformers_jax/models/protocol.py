"""What a model tells about itself. Whoever has to know asks for it and never what kind of model it is.

Each `Model` has a method `protocol()`, under Flax's `nn.nowrap`, that needs no parameters and returns a `Protocol`. What must
be known before there is a model, which keys of a foreign config.json are refused, stands in `NAMES` (`NameMap.neutral`).

Axes: those of `batch.FIELDS`.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from transformers_jax.batch import FIELDS, positions_name, segments_name

TEXT, IMAGES = "text", "images"
"""What a model may read."""

ENCODES, TRANSLATES, CONTINUES = "encodes", "translates", "continues"
"""What a model may do: give hidden states by its method `encode`; write a target after a source, or continue a prompt, by its
methods `start` and `step`."""


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A model's description of itself.

    reads: of TEXT and IMAGES.
    does: of ENCODES, TRANSLATES and CONTINUES.
    fields: of a batch, those that `__call__` reads.
    longest: tokens of its longest input, prompt and output together where it continues one; 0 for no limit.
    head: the head that it has; heads: all that its architecture may have. "" is the output of a model without choice of heads.
    labelled: heads that give labels; labels: how many this model's head gives, 0 for none.
    token_heads: heads that predict tokens.
    tied: whether the output embedding is the input's.
    token_types: whether it tells the two texts of a pair apart by their `token_types`.
    max_mask_rate: share of a row's positions of which it predicts tokens, at most.
    configs: by head, the config that a converted model's workdir begins with, as `--config` takes it below configs/.
    sizes: of the axes of an example batch, where 2 is not possible: {"H": 32, "W": 32}.
    """

    reads: tuple[str, ...]
    does: tuple[str, ...]
    fields: tuple[str, ...]
    longest: int = 0
    head: str = ""
    heads: tuple[str, ...] = ("",)
    labelled: tuple[str, ...] = ()
    labels: int = 0
    token_heads: tuple[str, ...] = ("",)
    tied: bool = True
    token_types: bool = False
    max_mask_rate: float = 1.0
    configs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def predicts_tokens(self) -> bool:
        """Whether its head predicts tokens."""
        return self.head in self.token_heads

    def within(self, longest: int) -> "Protocol":
        """The same of a model whose inputs are no longer than `longest` tokens either; 0 for no further limit."""
        limits = [limit for limit in (self.longest, longest) if limit]
        return dataclasses.replace(self, longest=min(limits, default=0))

    def example(self, **sizes: int) -> dict[str, np.ndarray]:
        """A batch that the model takes: zeros, but for segments, of ones, and positions, that count.

        Args:
          sizes: of axes by their letters, T=8 say; C for groups of C rows. 2 where neither this nor `self.sizes` says another.
        """
        sizes, batch = dict(self.sizes) | sizes, {}
        for name in self.fields:
            field = FIELDS[name]
            axes = ("B", "C", "T") if "C" in sizes and field.axes == ("B", "T") else field.axes
            shape = [sizes.get(axis, 2) for axis in axes]
            batch[name] = np.zeros(shape, field.dtype)
            if name.endswith("segments"):
                batch[name] += 1
            elif name.endswith("positions"):
                batch[name] += np.arange(shape[-1], dtype=field.dtype)
        return batch


def translator(longest: int = 0) -> Protocol:
    """Of a model that writes a target after a source; longest: tokens of each, 0 for no limit."""
    streams = {"source": ("source",), "target": ("target_inputs",)}
    fields = [name for stream, own in streams.items() for name in (*own, positions_name(stream), segments_name(stream))]
    return Protocol(reads=(TEXT,), does=(TRANSLATES,), fields=tuple(fields), longest=longest)
