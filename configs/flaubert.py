"""FlauBERT: "Unsupervised Language Model Pre-training for French" (Le et al. 2020,
https://arxiv.org/abs/1912.05372): an encoder built as XLM, trained as RoBERTa.

Pretraining: python -m experiments.pretrain --config=configs/flaubert.py:VARIANT --workdir=DIR
Finetuning: python -m experiments.finetune --config=configs/flaubert.py:VARIANT --workdir=DIR --init_from=FOLDER

| VARIANT      | what                                            | expected time and score               |
|--------------|-------------------------------------------------|---------------------------------------|
| `base`       | table 2: 138M parameters                        | paper: 410 hours on 32 V100; not run  |
| `large`      | 373M parameters, norms before the sublayers     | paper: 390 hours on 128 V100; not run |
| `quickstart` | 7M parameters on the French Bible, on a laptop  | as configs/bert.py's                  |
| `tiny`       | seconds on a CPU, for tests: files given        | none                                  |
| `cls`        | FLUE's reviews (books, DVD, music), files given | paper, base: 93.1, 92.5, 94.1         |
| `pawsx`      | FLUE's paraphrases, files given                 | paper, base: 89.5                     |
| `xnli`       | French XNLI, files given                        | paper, base: 80.6                     |
| `ner`        | named entities, CoNLL files given               | none                                  |

Other tasks: configs/bert.py has them, and takes any --init_from.
"""

from ml_collections import ConfigDict

ENTITIES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant.

    Raises:
      ValueError: there is no such variant.
    """
    config = common()
    known = {"base": base, "large": large, "quickstart": quickstart, "tiny": tiny}
    known |= {"cls": cls, "pawsx": pawsx, "xnli": xnli, "ner": ner}
    if variant not in known:
        raise ValueError(f"unknown variant {variant!r}; known variants: {', '.join(known)}")
    known[variant](config)
    return config


def common() -> ConfigDict:
    """Every key, with the values of the paper's base model and its pretraining."""
    config = ConfigDict()
    config.seed = 0
    config.prng = "rbg"  # jax_default_prng_impl: rbg is faster than threefry2x32

    config.model = ConfigDict()
    config.model.name = "flaubert"
    config.model.width = 768
    config.model.num_heads = 12
    config.model.mlp_width = 3072
    config.model.layers = 12
    config.model.norm = "post"
    config.model.max_length = 512
    config.model.token_types = 0
    config.model.vocab_size = 0  # rows of the embedding, where they are more than the tokenizer's tokens
    config.model.activation = "gelu"
    config.model.dropout = 0.1
    config.model.attention_dropout = 0.1
    config.model.classifier_dropout = 0.1
    config.model.norm_epsilon = 1e-12
    config.model.max_mask_rate = 0.2
    config.model.scan_layers = True
    config.model.remat = False
    config.model.attention = "auto"
    config.model.genome = ""  # a JSON file, text or name: its encoder cells in place of the layers
    config.model.genome_unit = 0
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "float32"

    config.task = ConfigDict()
    config.task.name = "masked_lm"
    config.task.max_length = 512
    config.task.mask_rate = 0.15
    config.task.masking = "dynamic"
    config.task.whole_words = False

    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "byte_bpe"
    config.tokenizer.vocab_size = 68_729
    config.tokenizer.lowercase = False
    config.tokenizer.path = ""  # a tokenizer to use instead of learning one

    config.data = ConfigDict()
    config.data.source = "text"
    config.data.tfds_name = ""
    config.data.data_dir = ""
    config.data.train = ""  # files, plain or gzip; or, with tfds_name, the split's name there
    config.data.validation = ""
    config.data.test = ""
    config.data.languages = ("fr",)
    config.data.unit = "paragraph"
    config.data.chunk_words = 350  # what does not fit a row is left out
    config.data.smoothing = 1.0
    config.data.batching = "packing"  # or "packing" where rows have no label, or "buckets" with the two keys below
    config.data.batch_size = 8192  # rows over all devices
    config.data.lengths = ConfigDict({"tokens": 512})
    config.data.max_length = 512
    config.data.boundaries = (32, 64, 128, 256, 512)
    config.data.tokens_per_batch = 131_072
    config.data.window = 0  # examples that are planned together; 0 leaves it to the pipeline
    config.data.prefetch = 8
    config.data.workers = 0
    config.data.cache = False

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "linear"
    config.optimizer.learning_rate = 6e-4
    config.optimizer.warmup_steps = 24_000
    config.optimizer.warmup_share = 0.0  # of all steps, where warmup_steps is 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_pattern = r"(^|/)(kernel|word|token_type|embedding)$"
    config.optimizer.clip_norm = 1.0

    config.training = ConfigDict()
    config.training.steps = 200_000
    config.training.accumulate = 1
    config.training.parallelism = "jit"
    config.training.log_every = 100
    config.training.eval_every = 10_000
    config.training.checkpoint_every = 10_000
    config.training.keep_checkpoints = 3
    config.training.average_checkpoints = 1

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    config.finetuning = ConfigDict()
    config.finetuning.init_from = ""  # what --init_from gave
    config.finetuning.fresh = False  # its architecture and vocabulary without its weights
    config.finetuning.trainable = ("all",)  # or ("head",), or patterns of the names of parameters that learn
    config.finetuning.epochs = 0.0  # where training.steps is 0
    config.finetuning.evaluations = 0  # so many in a run, each with a checkpoint, where eval_every is 0
    return config


# -- pretraining -------------------------------------------------------------------------------------------------------


def base(config: ConfigDict) -> None:
    """Section 3, on Wikipedia: one of the 24 corpora of the paper; byte-level tokens in place of Moses' words."""
    config.data.tfds_name = "wikipedia/20230601.fr"
    config.data.train = "train[1%:]"
    config.data.validation = "train[:1%]"
    config.data.test = "train[:1%]"


def large(config: ConfigDict) -> None:
    """Table 2: more stable with the norms first."""
    base(config)
    config.model.width = 1024
    config.model.num_heads = 16
    config.model.mlp_width = 4096
    config.model.layers = 24
    config.model.norm = "pre"
    config.optimizer.learning_rate = 3e-4


def quickstart(config: ConfigDict) -> None:
    """The French Bible verse by verse: 6 layers of 256, packed rows, as configs/bert.py:quickstart."""
    small(config)
    config.model.width = 256
    config.model.num_heads = 4
    config.model.mlp_width = 1024
    config.model.layers = 6
    config.model.max_length = 256
    config.model.dropout = 0.0
    config.model.attention_dropout = 0.0
    config.model.max_mask_rate = 0.4
    config.task.mask_rate = 0.3
    config.tokenizer.vocab_size = 8000
    config.data.source = "bible_text"
    config.data.unit = "line"
    config.data.batch_size = 8
    config.data.lengths = ConfigDict({"tokens": 128})
    config.data.max_length = 128
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.training.steps = 2500
    config.training.log_every = 50
    config.training.eval_every = 500
    config.training.checkpoint_every = 500


def tiny(config: ConfigDict) -> None:
    """For tests: text files that are given."""
    small(config)
    config.model.width = 32
    config.model.num_heads = 2
    config.model.mlp_width = 64
    config.model.layers = 2
    config.model.max_length = 64
    config.tokenizer.vocab_size = 400
    config.data.batch_size = 8
    config.data.lengths = ConfigDict({"tokens": 32})
    config.data.max_length = 32
    config.data.unit = "line"
    config.data.chunk_words = 0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 4
    config.training.steps = 12
    config.training.log_every = 2
    config.training.eval_every = 6
    config.training.checkpoint_every = 6


def small(config: ConfigDict) -> None:
    """What models for a laptop share."""
    config.model.dtype = "float32"
    config.model.scan_layers = False
    config.data.cache = True


# -- finetuning --------------------------------------------------------------------------------------------------------


def finetuning(config: ConfigDict) -> None:
    """In float32, as the published code finetunes for FLUE: 8 rows, rate 5e-6."""
    small(config)
    config.data.batching = "buckets"
    config.data.tokens_per_batch = 0  # batch_size rows of each width
    config.data.batch_size = 8
    config.data.max_length = 0
    config.data.columns = ()
    config.optimizer.learning_rate = 5e-6
    config.optimizer.warmup_steps = 0
    config.optimizer.warmup_share = 0.1
    config.training.steps = 0
    config.training.log_every = 20
    config.training.eval_every = 0
    config.training.checkpoint_every = 0
    config.training.keep_checkpoints = 1
    config.finetuning.epochs = 10.0
    config.finetuning.evaluations = 10


def pairs(config: ConfigDict, labels: tuple, tokens: int = 128) -> None:
    """A label for a sentence or a pair, from TSV files with the columns first, second (of pairs) and label."""
    finetuning(config)
    config.task = ConfigDict({"name": "sequence_classification", "labels": labels, "metrics": ("accuracy",)})
    config.task.max_length = tokens
    config.data.source = "tsv"
    config.data.columns = ("first", "second", "label")
    config.data.header = False
    config.data.lengths = ConfigDict({"tokens": tokens})


def cls(config: ConfigDict) -> None:
    """Section 4.1: files of "review TAB label", 1 for a good one."""
    pairs(config, ("0", "1"), 512)
    config.data.columns = ("first", "label")


def pawsx(config: ConfigDict) -> None:
    """Section 4.2: files of "sentence TAB sentence TAB label", 1 for a paraphrase."""
    pairs(config, ("0", "1"))


def xnli(config: ConfigDict) -> None:
    """XNLI (Conneau et al. 2018), French, as files of "premise TAB hypothesis TAB label"."""
    pairs(config, ("entailment", "neutral", "contradiction"))


def ner(config: ConfigDict) -> None:
    """Named entities of CoNLL files: --config.task.labels names their tags."""
    finetuning(config)
    config.task = ConfigDict({"name": "tagging", "labels": ENTITIES, "max_length": 128})
    config.data.source = "conll"
    config.data.tag_column = -1
    config.data.lengths = ConfigDict({"tokens": 128})
    config.optimizer.learning_rate = 5e-5
