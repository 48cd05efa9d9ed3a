"""What each key of a config may be: one table of patterns over keys, checked once when a launcher starts.

A key is looked for as "MODEL/KEY", "TASK/KEY" and KEY: "vit/model.positions", "model.positions"; then among the patterns, in
their order. What cannot be told without data or devices (whether a file is there,
whether heads divide a width) is checked where it is used.
"""

import fnmatch
import importlib
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple


class Whole(NamedTuple):
    """Whole numbers from `least` to `most`, both among them."""

    least: int = 0
    most: int | None = None

    def allows(self, value: Any) -> bool:
        """Whether it is one of them."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and value >= self.least and (self.most is None or value <= self.most)

    def says(self) -> str:
        """What to give."""
        return f"give {self.least} or more" if self.most is None else f"give {self.least} to {self.most}"


class Number(NamedTuple):
    """Finite numbers from `least` on; with `above` not it itself. Up to `most`, or with `below` below it."""

    least: float = 0
    most: float | None = None
    above: bool = False
    below: bool = False

    def allows(self, value: Any) -> bool:
        """Whether it is one of them."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        low = value > self.least if self.above else value >= self.least
        return low and (self.most is None or (value < self.most if self.below else value <= self.most))

    def says(self) -> str:
        """What to give."""
        low = f"above {self.least:g}" if self.above else f"{self.least:g} or more"
        high = "" if self.most is None else f", and {'below' if self.below else 'at most'} {self.most:g}"
        return f"give a number {low}{high}"


class OneOf(NamedTuple):
    """Texts of a list, or of one that `known` gives when it is asked for."""

    names: tuple[str, ...] = ()
    known: Callable[[], Iterable[str]] | None = None

    def allows(self, value: Any) -> bool:
        """Whether it is one of them."""
        return isinstance(value, str) and value in self.all()

    def all(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.names, *(self.known() if self.known else ()))

    def says(self) -> str:
        """What to give."""
        return "it is one of " + ", ".join(repr(name) if not name else name for name in self.all())


class Flag(NamedTuple):
    """True or False."""

    def allows(self, value: Any) -> bool:
        """Whether it is one of them."""
        return isinstance(value, bool)

    def says(self) -> str:
        """What to give."""
        return "give True or False"


class Text(NamedTuple):
    """Any text; as a regular expression one that can be read."""

    regex: bool = False

    def allows(self, value: Any) -> bool:
        """Whether it is one."""
        if not isinstance(value, str) or not self.regex:
            return isinstance(value, str)
        try:
            re.compile(value)
        except re.error:
            return False
        return True

    def says(self) -> str:
        """What to give."""
        return "give a regular expression" if self.regex else "give a text"


class Each(NamedTuple):
    """Several values, all of one kind; `count`: how many there are, if that is certain."""

    of: Any
    count: int | None = None

    def allows(self, value: Any) -> bool:
        """Whether it is such."""
        return isinstance(value, (tuple, list)) and self.count in (None, len(value)) and all(map(self.of.allows, value))

    def says(self) -> str:
        """What to give."""
        return f"of {'each' if self.count is None else f'each of {self.count}'}, {self.of.says()}"


class Either(NamedTuple):
    """A value of one kind or of another."""

    first: Any
    second: Any

    def allows(self, value: Any) -> bool:
        """Whether it is one."""
        return self.first.allows(value) or self.second.allows(value)

    def says(self) -> str:
        """What to give."""
        return f"{self.first.says()}; or {self.second.says()}"


class PatternAnd(NamedTuple):
    """(pattern of names, value) pairs."""

    of: Any

    def allows(self, value: Any) -> bool:
        """Whether it is one."""
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        return pair and Text(regex=True).allows(value[0]) and self.of.allows(value[1])

    def says(self) -> str:
        """What to give."""
        return f"give (pattern, value); of the value, {self.of.says()}"


def _known(module: str, of: str = "known") -> Callable[[], Iterable[str]]:
    """Names that a module gives, which is imported when they are asked for."""
    return lambda: getattr(importlib.import_module(f"transformers_jax.{module}"), of)()


SEVERAL = Either(Whole(1), Each(Whole(1)))
SHARE, PROBABILITY = Number(0, 1, below=True), Number(0, 1)
PATTERNS = Each(Text(regex=True))
DTYPES = OneOf(("bfloat16", "float16", "float32"))
ACTIVATIONS = OneOf(("relu", "gelu", "gelu_tanh", "swish"))
HEADS = (
    "none", "masked_lm", "pretraining", "next_sentence", "sequence", "tagging", "span", "multiple_choice", "causal_lm",
    "classification", "segmentation", "detection", "",
)  # fmt: skip
METHODS = ("evolution", "evolution_no_hurdles", "evolution_random_seed", "random")

TABLE: dict[str, Any] = {
    "seed": Whole(0, 2**32 - 1),
    "prng": OneOf(("rbg", "threefry2x32", "unsafe_rbg")),
    "sweep": Each(Text()),
    "tokenizer.kind": OneOf(("wordpiece", "unigram", "byte_bpe", "bpe")),
    "tokenizer.vocab_size": Whole(1),
    "tokenizer.lowercase": Flag(),
    "tokenizer.path": Text(),
    # where examples come from
    "data.source": OneOf(known=_known("data.sources", "names")),
    "data.tfds_name": Text(), "data.data_dir": Text(), "data.train": Text(), "data.validation": Text(), "data.test": Text(),
    "data.begins": Text(), "data.languages": Each(Text()), "data.columns": Each(Text()),
    "data.unit": OneOf(("line", "paragraph", "sentence", "document", "file")),
    "data.smoothing": Number(0),
    "data.header": Flag(), "data.across_documents": Flag(), "data.cache": Flag(),
    "data.tag_column": Whole(-99, 99),
    "data.batching": OneOf(("packing", "buckets", "rows", "documents")),
    "data.batch_size": Whole(1), "data.rows_multiple": Whole(1),
    "data.lengths.*": Whole(1),
    "data.boundaries": Each(Whole(1)),
    # of images
    "segmentation/data.size": Each(Whole(1), 2), "detection/data.size": Each(Whole(1), 2),
    "data.scale": Each(Number(0, above=True), 2), "data.most_of_one": Number(0, 1, above=True),
    "data.size": SEVERAL, "model.image_size": SEVERAL, "model.num_heads": SEVERAL,
    "data.channels": Whole(1, 4), "data.padding": Whole(0),
    "data.interpolation": OneOf(("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")),
    "data.crop": OneOf(("inception", "pad", "center", "squash")),
    "data.crop_scale": Each(Number(0, above=True), 2), "data.crop_ratio": Each(Number(0, above=True), 2),
    "data.rotation": Number(0, 180), "data.flip": PROBABILITY, "data.erasing": PROBABILITY,
    "data.colour": Either(Number(0), Each(Number(0))),
    "data.randaugment_magnitude": Number(0, 30),
    **dict.fromkeys(
        ("model.depths", "model.widths", "model.stem_depths", "model.patch_sizes", "model.reductions", "model.strides"),
        Each(Whole(1))),
    "data.on_error": OneOf(("fatal", "skip")),
    # the update
    "optimizer.name": OneOf(("adam", "adamw", "adafactor", "sgd")),
    "optimizer.schedule": OneOf(("noam", "inverse_sqrt", "cosine", "linear", "constant")),
    "optimizer.d_model": Whole(0), "optimizer.warmup_steps": Whole(0), "optimizer.min_factored": Whole(1),
    "optimizer.decay_pattern": Text(regex=True),
    "optimizer.warmup_share": SHARE, "optimizer.b1": SHARE, "optimizer.b2": SHARE, "optimizer.momentum": SHARE,
    "optimizer.end_factor": PROBABILITY,
    "optimizer.layer_decay": Number(0, 1, above=True),
    "optimizer.factor": Number(0, above=True), "optimizer.decay_rate": Number(0, above=True),
    "optimizer.learning_rate": Number(0), "optimizer.eps": Number(0), "optimizer.weight_decay": Number(0),
    "optimizer.clip_norm": Number(0),
    "training.accumulate": Whole(1), "training.keep_checkpoints": Whole(1), "training.average_checkpoints": Whole(1),
    "training.log_every": Whole(1), "training.keep_best": Flag(), "training.patience": Whole(0), "training.ema": SHARE,
    "training.parallelism": OneOf(("jit", "pmap")),
    "mesh.*": Whole(-1),
    # finetuning
    "finetuning.init_from": Text(),
    "finetuning.fresh": Flag(), "finetuning.new_head": Flag(), "finetuning.rslora": Flag(), "finetuning.dora": Flag(),
    "finetuning.double": Flag(),
    "finetuning.method": OneOf(("full", "head", "bias", "lora", "adapters")),
    "finetuning.quantization": OneOf(("nf4", "int8", "")),
    "finetuning.trainable": PATTERNS, "finetuning.targets": PATTERNS,
    "finetuning.rank_pattern": Each(PatternAnd(Whole(1))), "finetuning.alpha_pattern": Each(PatternAnd(Number(0, above=True))),
    "finetuning.layers": Each(Whole(0)),
    "finetuning.dropout": SHARE,
    "finetuning.rank": Whole(1), "finetuning.block": Whole(1), "finetuning.adapter_width": Whole(1),
    "finetuning.alpha": Number(0, above=True), "finetuning.epochs": Number(0), "finetuning.evaluations": Whole(0),
    # models
    "model.name": OneOf(known=_known("models")),
    "model.head": OneOf(HEADS),
    "model.genome": Text(), "model.genome_cell": OneOf(("decoder", "encoder")),
    "model.dtype": DTYPES, "model.param_dtype": DTYPES,
    "model.activation": ACTIVATIONS,
    "model.attention": OneOf(("auto", "xla", "cudnn", "splash")),
    "model.norm": OneOf(("pre", "post")),
    "vit/model.positions": OneOf(("learned", "sinusoidal_2d", "none")),
    "model.positions": OneOf(("interleaved", "concatenated", "learned", "none")),
    "vit/model.pooling": OneOf(("class", "mean")), "vit/model.stem": OneOf(("patches", "resnet")),
    "luong/model.score": OneOf(("dot", "general", "concat")),
    "bert/model.variant": OneOf(("bert", "roberta", "camembert", "xlm-roberta")),
    "gpt/model.variant": OneOf(("gpt2", "openai-gpt")),
    "llama/model.variant": OneOf(("llama", "mistral", "qwen2", "qwen3")),
    "llama/model.rope_scaling": OneOf(("", "linear", "llama3")),
    "model.dropout": SHARE, "model.*_dropout": SHARE, "model.drop_path": SHARE,
    "model.max_mask_rate": PROBABILITY,
    "model.norm_epsilon": Number(0, above=True), "model.stddev": Number(0, above=True), "model.layer_scale": Number(0),
    "model.mlp_ratio": Number(0, above=True), "model.mlp_ratios": Each(Number(0, above=True)),
    "model.mean": Each(Number(-1000, 1000)), "model.std": Each(Number(0, above=True)),
    "model.rope_original_length": Whole(1), "model.rope_*": Number(0, above=True),
    **dict.fromkeys(
        ("model.scan_layers", "model.remat", "model.*_bias", "model.share_embeddings", "model.tie_embeddings",
         "model.input_feeding", "model.bidirectional", "model.qk_norm", "model.pooler", "model.absolute_positions",
         "model.token_types_as_tokens"), Flag()),
    **dict.fromkeys(
        ("model.width", "model.mlp_width", "model.embedding_width", "model.decoder_width",
         "model.max_length", "model.encoder_layers", "model.decoder_layers", "model.labels", "model.groups", "model.inner",
         "model.languages",
         "model.channels", "model.patch_size", "swin/model.window"), Whole(1)),
    **dict.fromkeys(
        ("data.max_words", "data.max_words_evaluation", "data.chunk_words", "data.stride", "data.max_length",
         "data.tokens_per_batch", "data.window", "data.prefetch", "data.workers", "data.resize", "data.randaugment_ops",
         "training.steps", "training.eval_every", "training.checkpoint_every", "training.bleu_every",
         "training.bleu_sentences", "search.fixed_steps", "search.final_steps", "search.final_seeds", "search.retries",
         "model.layers", "model.vocab_size", "model.kv_heads", "model.head_width", "model.window", "model.token_types",
         "model.position_offset", "model.genome_unit", "model.relative_distance", "model.lstm_width"), Whole(0)),
    # tasks
    "task.name": OneOf(known=_known("tasks")),
    "task.labels": Each(Either(Text(), Whole(-(2**62)))),
    "similarity/task.objective": OneOf(("regression", "classification", "multiple_negatives")),
    **dict.fromkeys(
        ("image_classification/task.objective", "image_distillation/task.objective"), OneOf(("softmax", "sigmoid"))),
    "task.distillation": OneOf(("hard", "soft")), "task.share": Number(0, 1, above=True),
    "task.metrics": Each(OneOf(("accuracy", "f1", "matthews", "pearson", "spearman"))),
    "task.pooling": OneOf(("mean", "first", "max", "mean_sqrt_len", "weighted_mean", "last")),
    "task.similarity": OneOf(("cosine", "dot", "euclidean", "manhattan")),
    "task.prompts": Each(Text()), "task.prompt": Text(), "task.teacher": Text(), "task.template": Text(),
    "task.bleu_tokenize": OneOf(
        ("", "13a", "zh", "ja-mecab", "ko-mecab", "char", "intl", "none", "spm", "flores101", "flores200", "spBLEU-1K")),
    "task.masking": OneOf(("dynamic", "static")),
    "task.relation": OneOf(("next_sentence", "sentence_order")),
    "task.of": OneOf(("masked_lm", "causal_lm")),
    "task.layers": Each(Whole(0)),
    "task.mask_rate": Number(0, 1, above=True), "task.label_smoothing": SHARE, "task.short": PROBABILITY,
    "task.temperature": Number(0, above=True), "task.highest": Number(0, above=True), "task.scale": Number(0, above=True),
    "tagging/task.overlap": Whole(-1), "task.overlap": SHARE, "task.threshold": Number(-1e9),
    "task.void": Whole(0, 255), "task.first": Whole(0, 255),
    "task.most_objects": Whole(1), "task.least": Number(0, 1, above=True, below=True),
    **dict.fromkeys(
        ("task.whole_words", "task.no_answers", "task.normalise", "task.lowercase", "task.real"), Flag()),
    **dict.fromkeys(
        ("task.choices", "task.duplicates", "task.stride", "task.max_question", "task.max_answer", "task.best"), Whole(1)),
    **dict.fromkeys(("task.soft", "task.hard", "task.cosine", "task.mixup", "task.cutmix"), Number(0)),
    "task.max_length": Whole(0), "model.stem_width": Whole(1),
    # decoding
    "decoding.method": OneOf(("greedy", "beam", "sample")),
    "decoding.beam_size": Whole(1), "decoding.n_best": Whole(1), "decoding.batch_size": Whole(1),
    "decoding.alpha": Number(0), "decoding.max_ratio": Number(0), "decoding.extra_length": Whole(0),
    "decoding.temperature": Number(0, above=True), "decoding.top_k": Whole(0), "decoding.top_p": Number(0, 1, above=True),
    "decoding.max_length": Whole(0),
    # search
    "search.method": OneOf(METHODS), "search.controls": Each(OneOf(METHODS)),
    "search.seed_genome": Text(), "search.parameters": Each(Whole(0)), "search.steps": Each(Whole(1)),
    "search.mutation": PROBABILITY,
    "search.population": Whole(1), "search.sample": Whole(1), "search.children": Whole(1), "search.finalists": Whole(1),
    "search.cores": Whole(1),
}  # fmt: skip

_PATTERNS = tuple(key for key in TABLE if "*" in key)

BY_TYPE: dict[type, Any] = {bool: Flag(), int: Whole(0), float: Number(0)}
"""Keys that the table does not name: by the type of their value. Other texts may be anything."""


def rule_of(key: str, value: Any, *, model: str = "", task: str = "") -> Any:
    """The rule of a key, "model.dropout" say; None where it may be anything.

    Args:
      value: which a key that the table does not name is told by.
      model, task: names of the config's model and task.
    """
    for name in (f"{model}/{key}", f"{task}/{key}", key):
        if name in TABLE:
            return TABLE[name]
    for pattern in _PATTERNS:
        if fnmatch.fnmatchcase(key, pattern):
            return TABLE[pattern]
    if isinstance(value, tuple) and value and all(type(x) in (int, float) for x in value):
        return Each(Number(0))
    return BY_TYPE.get(type(value))


def mistakes(leaves: Iterable[tuple[str, Any]]) -> Iterable[str]:
    """One line for each value that its key cannot have: the key, the value and what is possible.

    Args:
      leaves: (dotted key, value) of a whole config.
    """
    values = dict(leaves)
    names = {"model": str(values.get("model.name", "")), "task": str(values.get("task.name", ""))}
    for key, value in values.items():
        rule = rule_of(key, value, **names)
        if rule is not None and not rule.allows(value):
            yield f"config.{key} is {value!r}: {rule.says()}"
    if values.get("optimizer.schedule") == "noam" and values.get("optimizer.learning_rate"):
        rate = values["optimizer.learning_rate"]
        yield f"config.optimizer.learning_rate is {rate!r}: the schedule noam has none; its height is config.optimizer.factor"
