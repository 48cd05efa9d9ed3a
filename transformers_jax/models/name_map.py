"""The language of the tables at the bottom of model files: which leaf of a Hugging Face file is which of our parameters.

A table is read both ways, by `interchange.mapping`. Its rows name leaves by patterns in which `{i}` is a number, a layer's:
"encoder.layer.{i}.x.weight" is "encoder/layer_{i}/block/x/kernel". Stacked layers ("encoder/layer/block/x/kernel", first axis
the layers) are the same leaves: the reader stacks them. What is done to an array on the way is a verb of `mapping.VERBS`.

Our names are those of parameters. In front of a leaf of another collection stands the collection's: "batch_stats:norm/mean".
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from transformers_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Row:
    """One leaf there is one here, or several: those that lie behind each other along an axis of theirs, as a fused query, key
    and value do, each as large as ours.

    verb: a name of `mapping.VERBS`; each part goes through it.
    axis: of the file's array, along which the parts lie.
    """

    theirs: str
    ours: str | tuple[str, ...]
    verb: str = ""
    axis: int = 0

    def names(self) -> tuple[str, ...]:
        """Our patterns."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclasses.dataclass(frozen=True)
class Tie:
    """A leaf that repeats another one of the file: if it is there it must be equal, and it is not written."""

    theirs: str
    of: str


@dataclasses.dataclass(frozen=True)
class Ignore:
    """Leaves that carry nothing, by a regular expression over the whole name, and why."""

    pattern: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Constant:
    """A leaf that carries nothing, but that `transformers` misses in a file: it is written as this number, and not read.

    beside: the pattern of another leaf of theirs, next to which it stands.
    """

    theirs: str
    beside: str
    value: int


AnyRow = Row | Tie | Ignore | Constant


@dataclasses.dataclass(frozen=True)
class Head:
    """A model with this head: the class of `transformers`, and the rows that it adds to the body's.

    A row replaces one of the body for the same parameter of ours.
    """

    architecture: str
    rows: tuple[AnyRow, ...] = ()


@dataclasses.dataclass(frozen=True)
class NameMap:
    """The names of one architecture.

    model_type: of config.json.
    prefix: of the body's leaves in a model with a head. Files may lack it, or have it where there is no head.
    body: rows of what all heads have, without the prefix.
    heads: by `Protocol.head`.
    neutral: keys of config.json that change numbers and of which one value alone is computed; with another a file is refused.
      NEUTRAL is refused for every architecture.
    keys: further keys of config.json that `from_hf` reads. A key that is in none of these, nor in INERT, gives a warning.
    optional: our fields that are True where a file without a head has leaves that begin so: {"pooler": "pooler."}.
    padded_positions: whether position 0 is the row behind the padding's id, as RoBERTa's.
    modules: where the modules of `transformers` 5 have other names than leaves in files, (expression, replacement) pairs that
      make the modules' names, one after another.
    """

    model_type: str
    prefix: str
    body: tuple[AnyRow, ...]
    heads: dict[str, Head]
    neutral: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keys: tuple[str, ...] = ()
    optional: Mapping[str, str] = dataclasses.field(default_factory=dict)
    padded_positions: bool = False
    modules: tuple[tuple[str, str], ...] = ()

    def module(self, name: str) -> str:
        """The name in memory, in `transformers` 5, of a leaf of a file."""
        return functools.reduce(lambda name, pair: re.sub(*pair, name), self.modules, name)

    def rows(self, head: str) -> list[AnyRow]:
        """The rows of a model with this head, names in full."""
        own = self.heads[head].rows
        replaced = {row.names() for row in own if isinstance(row, Row)}
        kept = [row for row in self.body if not isinstance(row, Row) or row.names() not in replaced]
        return [*(self._prefixed(row) if head != "none" else row for row in kept), *own]

    def _prefixed(self, row):
        if isinstance(row, Ignore):
            return Ignore(f"({re.escape(self.prefix)})?{row.pattern}", row.reason)
        changes = {"of": self.prefix + row.of} if isinstance(row, Tie) else {}
        changes |= {"beside": self.prefix + row.beside} if isinstance(row, Constant) else {}
        return dataclasses.replace(row, theirs=self.prefix + row.theirs, **changes)

    def ties(self) -> list[Tie]:
        """Of all heads."""
        return list(dict.fromkeys(row for head in self.heads for row in self.rows(head) if isinstance(row, Tie)))

    def knows(self, name: str) -> bool:
        """Whether some head has a leaf of this name."""
        return any(match(row, name) for head in self.heads for row in self.rows(head))


def match(row: AnyRow, name: str) -> re.Match | None:
    """Whether a leaf of a file is the row's."""
    return (re.compile(row.pattern) if isinstance(row, Ignore) else regex(row.theirs)).fullmatch(name)


@functools.cache
def regex(pattern: str) -> re.Pattern:
    """The expression of a row's pattern; `{i}` is a group of digits."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(pattern)))


# Rows that come together

def linear(theirs: str, ours: str | tuple[str, ...], verb: str = "transpose", axis: int = 0) -> tuple[Row, Row]:
    """A dense layer: weight and bias there, kernel and bias here; of several fused ones, the kernel along `axis` there."""
    names = (ours,) if isinstance(ours, str) else ours
    kernels, biases = (tuple(f"{name}/{leaf}" for name in names) for leaf in ("kernel", "bias"))
    bias_verb = "heads" if verb in ("to_heads", "flat_heads") else ""
    return Row(f"{theirs}.weight", kernels, verb, axis), Row(f"{theirs}.bias", biases, bias_verb)


def norm(theirs: str, ours: str) -> tuple[Row, Row]:
    """A layer norm: weight and bias there, scale and bias here."""
    return Row(f"{theirs}.weight", f"{ours}/scale"), Row(f"{theirs}.bias", f"{ours}/bias")


def batch_norm(theirs: str, ours: str) -> tuple[Row | Constant, ...]:
    """A batch norm: a norm, and its running statistics in the collection "batch_stats"."""
    return (
        *norm(theirs, ours),
        Row(f"{theirs}.running_mean", f"batch_stats:{ours}/mean"),
        Row(f"{theirs}.running_var", f"batch_stats:{ours}/var"),
        Constant(f"{theirs}.num_batches_tracked", f"{theirs}.running_var", 0),
    )


POSITION_IDS = Ignore(r"(embeddings\.)?position_ids", "the numbers 0, 1, 2, … that older files hold")


# Keys and values of config.json

NEUTRAL = {
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}
"""Keys that change the numbers of any architecture, and the value that is computed."""

ENCODER = {"is_decoder": False, "position_embedding_type": "absolute"}
"""The same of encoders: no causal mask, and positions that are added to the embeddings."""

INERT = frozenset(
    """
    _attn_implementation _name_or_path _num_labels architectures attn_implementation bos_token_id bad_words_ids
    chunk_size_feed_forward cls_token_id decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size end_n_top eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id gradient_checkpointing id2label initializer_range keys_to_ignore_at_inference label2id lang_id
    language layerdrop length_penalty mask_index mask_token_id max_length min_length model_type name no_repeat_ngram_size
    num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past
    output_scores pad_token_id prefix problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id start_n_top suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p unk_index unk_token_id use_bfloat16 use_cache
    """.split()
)
"""Keys that change no numbers of a model's output: names, ids, generation's defaults, training's choices. Or, as
`tie_word_embeddings`, those that are looked at for every architecture."""

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "swish": "silu"}


def activation_to_hf(name: str) -> str:
    """The name that `transformers` has for one of `layers.feedforward.ACTIVATIONS`."""
    return _ACTIVATIONS[name]


def activation_from_hf(name: str) -> str:
    """Ours for one of `transformers`'.

    Raises:
      UserError: it is none of ours.
    """
    known = {theirs: ours for ours, theirs in _ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu_tanh", "swish": "swish"}
    if name not in known:
        raise UserError(f"config.json: the activation {name!r} is none of {', '.join(known)}")
    return known[name]


def renamed(config: dict, table: dict[str, str], defaults: type) -> dict:
    """Our fields from the keys of a config.json; a key that it lacks gives the field's default, if it has one.

    Raises:
      UserError: a key without default is missing.
    """
    given = {f.name: f.default for f in dataclasses.fields(defaults) if f.default is not dataclasses.MISSING}
    fields = {ours: config.get(theirs, given.get(ours)) for theirs, ours in table.items()}
    if missing := [theirs for theirs, ours in table.items() if fields[ours] is None]:
        raise UserError(f"config.json: no {missing[0]}")
    return fields
