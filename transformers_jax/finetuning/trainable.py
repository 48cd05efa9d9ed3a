"""Which parameters learn: config.finetuning's method and `trainable`, as patterns over their names (see `parameters`)."""

import dataclasses
from collections.abc import Mapping

from transformers_jax.errors import UserError
from transformers_jax.layers.adapter import ADAPTER
from transformers_jax.layers.product import LOW_RANK
from transformers_jax.layers.quantized import KINDS

HEAD = r"^(batch_stats:)?(pooler|classifier|choice|next_sentence|lm|lm_bias|decode_head|detection_head)(/|$)"
"""Parameters of heads, which may be new."""

NEW_HEAD = r"^(pooler|classifier|choice|next_sentence|decode_head|detection_head)(/|$)"
"""Parameters of heads that are a task's own: pretrained models bring the others along."""

NAMES = {"all": ".", "head": HEAD}
"""Words that stand for a pattern: all parameters, and those that a finetuned model has beside the encoder's."""

NORM = r"norm[^/]*/(scale|bias)$"

METHODS = {
    "full": "",
    "head": HEAD,
    "bias": r"(^|/)bias$",  # Ben Zaken et al. 2022
    "lora": LOW_RANK,  # Hu et al. 2021
    "adapters": f"{ADAPTER}|{NORM}",  # Houlsby et al. 2019, section 2.1
}
"""What learns, by method, beside a new head; of "full" `trainable` says it."""


@dataclasses.dataclass(frozen=True)
class Options:
    """The keys of config.finetuning that say what learns and what is added; configs/base.py has their meaning."""

    method: str = "full"
    trainable: tuple[str, ...] = ("all",)
    new_head: bool = True
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (r"(^|/)(query|value)/",)
    rslora: bool = False
    dora: bool = False
    rank_pattern: tuple[tuple[str, int], ...] = ()
    alpha_pattern: tuple[tuple[str, float], ...] = ()
    layers: tuple[int, ...] = ()
    adapter_width: int = 64
    quantization: str = ""
    block: int = 64
    double: bool = True

    def __post_init__(self):
        if self.method not in METHODS:
            raise UserError(f"config.finetuning.method is {self.method!r}; known: {', '.join(METHODS)}")
        if self.quantization not in ("", *KINDS):
            known = ", ".join(KINDS)
            raise UserError(f"config.finetuning.quantization is {self.quantization!r}; known: {known}, and '' for none")
        if self.quantization and self.method == "full":
            raise UserError(
                f"config.finetuning.quantization={self.quantization} is of kernels that do not learn, and with method=full all "
                "do: give another method, lora say"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"config.finetuning.dropout is {self.dropout}; give a share of 0 or more, and below 1")
        if self.method == "lora" and not self.targets:
            raise UserError("config.finetuning.targets is empty: give patterns of the kernels that are adapted")
        if self.method == "adapters" and self.adapter_width < 1:
            raise UserError(f"config.finetuning.adapter_width is {self.adapter_width}; give 1 or more")
        if self.layers and self.method not in ("lora", "adapters"):
            raise UserError(f"config.finetuning.layers picks layers of method=lora and method=adapters, not of {self.method}")

    @property
    def everything(self) -> bool:
        """Whether all parameters learn."""
        return self.method == "full" and self.trainable == ("all",)


def options(config: Mapping) -> Options:
    """The options of a run's config; a config that lacks the keys has their defaults.

    Raises:
      UserError: a value that there is not.
    """
    given, found = config.get("finetuning", {}), {}
    for field in dataclasses.fields(Options):
        if field.name in given:
            value = given[field.name]
            found[field.name] = _tuples(value) if isinstance(field.default, tuple) else value
    return Options(**found)


def patterns(config: Mapping, frozen: str = "") -> tuple[str, ...]:
    """Patterns of what learns in a run: of the method, and `trainable`'s; all parameters where neither says otherwise.

    Args:
      frozen: a pattern of parameters that never do, a teacher's.
    """
    chosen = options(config)
    wanted = [NAMES.get(pattern, pattern) for pattern in chosen.trainable]
    if chosen.method != "full":
        own = METHODS[chosen.method] + (f"|{NEW_HEAD}" if chosen.new_head else "")
        wanted = [own, *([] if chosen.trainable == ("all",) else wanted)]
    return tuple(f"^(?!.*(?:{frozen}))(?=.*(?:{pattern}))" if frozen else pattern for pattern in wanted)


def decays(config: Mapping, kernels: str) -> str:
    """The pattern of what decays: config.optimizer's or `kernels`, and the factors of low rank where there are any, which
    take part of a kernel's place."""
    pattern = config["optimizer"].get("decay_pattern") or kernels
    return rf"{pattern}|(^|/)lora_(a|b)$" if options(config).method == "lora" else pattern


def _tuples(value) -> tuple:
    value = (value,) if isinstance(value, str) else value
    return tuple(tuple(x) if isinstance(x, list | tuple) else x for x in value)
