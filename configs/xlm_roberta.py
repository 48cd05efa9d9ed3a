"""XLM-RoBERTa: "Unsupervised Cross-lingual Representation Learning at Scale" (Conneau et al. 2020,
https://arxiv.org/abs/1911.02116): RoBERTa in a hundred languages, the small ones drawn more often than they are written.

Pretraining: python -m experiments.pretrain --config=configs/xlm_roberta.py:VARIANT --workdir=DIR
Finetuning: python -m experiments.finetune --config=configs/xlm_roberta.py:VARIANT --workdir=DIR --init_from=FOLDER

| VARIANT      | what                                                         | expected time and score                 |
|--------------|--------------------------------------------------------------|-----------------------------------------|
| `base`       | section 3.3: 278M parameters; a file of text a language      | paper: 500 V100; not run                |
| `large`      | 560M parameters                                              | the same                                |
| `quickstart` | 7M parameters on the Bible in all its languages, on a laptop | as configs/bert.py's                    |
| `tiny`       | seconds on a CPU, for tests: files given                     | none                                    |
| `xnli`       | XNLI, files given: train on English, test on any language    | paper: base 76.2, large 80.9 (mean)     |
| `ner`        | named entities, CoNLL files given                            | paper, large: F1 92.9 (en), 90.0 (mean) |

--config.data.train=en.txt,fr.txt,… names a file a language; --config.data.smoothing is the paper's α.
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
    known = {"base": base, "large": large, "quickstart": quickstart, "tiny": tiny} | {"xnli": xnli, "ner": ner}
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
    config.model.name = "bert"
    config.model.variant = "xlm-roberta"  # or "roberta", "camembert", "xlm-roberta"
    config.model.width = 768
    config.model.num_heads = 12
    config.model.mlp_width = 3072
    config.model.layers = 12
    config.model.max_length = 514  # positions count from 2
    config.model.position_offset = 2
    config.model.token_types = 1
    config.model.vocab_size = 0  # rows of the embedding, where they are more than the tokenizer's tokens
    config.model.activation = "gelu"
    config.model.dropout = 0.1
    config.model.attention_dropout = 0.1
    config.model.classifier_dropout = 0.1
    config.model.norm_epsilon = 1e-5
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
    config.tokenizer.kind = "unigram"
    config.tokenizer.vocab_size = 250_002
    config.tokenizer.lowercase = False
    config.tokenizer.path = ""  # a tokenizer to use instead of learning one

    config.data = ConfigDict()
    config.data.source = "text"
    config.data.tfds_name = ""
    config.data.data_dir = ""
    config.data.train = ""  # files, plain or gzip; or, with tfds_name, the split's name there
    config.data.validation = ""
    config.data.test = ""
    config.data.languages = ("all",)
    config.data.unit = "paragraph"
    config.data.chunk_words = 350  # what does not fit a row is left out
    config.data.smoothing = 0.3
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
    config.optimizer.clip_norm = 0.0

    config.training = ConfigDict()
    config.training.steps = 1_500_000
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
    """Section 3: α = 0.3; its two and a half terabytes of text (CC-100) are given as files."""
    config.data.train = "en.txt,fr.txt"
    config.data.validation = "en.validation.txt,fr.validation.txt"


def large(config: ConfigDict) -> None:
    """Section 3.3."""
    base(config)
    config.model.width = 1024
    config.model.num_heads = 16
    config.model.mlp_width = 4096
    config.model.layers = 24


def quickstart(config: ConfigDict) -> None:
    """The Bible in 22 languages, verse by verse: 6 layers of 256, packed rows, as configs/bert.py:quickstart."""
    small(config)
    config.model.width = 256
    config.model.num_heads = 4
    config.model.mlp_width = 1024
    config.model.layers = 6
    config.model.max_length = 258
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
    config.model.max_length = 66
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
    config.data.smoothing = 0.3


def small(config: ConfigDict) -> None:
    """What models for a laptop share."""
    config.model.dtype = "float32"
    config.model.scan_layers = False
    config.data.cache = True


# -- finetuning --------------------------------------------------------------------------------------------------------


def finetuning(config: ConfigDict) -> None:
    """In float32: 32 rows, three epochs."""
    small(config)
    config.data.batching = "buckets"
    config.data.tokens_per_batch = 0  # batch_size rows of each width
    config.data.batch_size = 32
    config.data.max_length = 0
    config.data.columns = ()
    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_steps = 0
    config.optimizer.warmup_share = 0.1
    config.training.steps = 0
    config.training.log_every = 20
    config.training.eval_every = 0
    config.training.checkpoint_every = 0
    config.training.keep_checkpoints = 1
    config.finetuning.epochs = 3.0
    config.finetuning.evaluations = 6


def pairs(config: ConfigDict, labels: tuple, tokens: int = 128) -> None:
    """A label for a sentence or a pair, from TSV files with the columns first, second (of pairs) and label."""
    finetuning(config)
    config.task = ConfigDict({"name": "sequence_classification", "labels": labels, "metrics": ("accuracy",)})
    config.task.max_length = tokens
    config.data.source = "tsv"
    config.data.columns = ("first", "second", "label")
    config.data.header = False
    config.data.lengths = ConfigDict({"tokens": tokens})


def xnli(config: ConfigDict) -> None:
    """XNLI (Conneau et al. 2018), any language, as files of "premise TAB hypothesis TAB label"."""
    pairs(config, ("entailment", "neutral", "contradiction"))


def ner(config: ConfigDict) -> None:
    """Named entities of CoNLL files: --config.task.labels names their tags."""
    finetuning(config)
    config.task = ConfigDict({"name": "tagging", "labels": ENTITIES, "max_length": 128})
    config.data.source = "conll"
    config.data.tag_column = -1
    config.data.lengths = ConfigDict({"tokens": 128})
    config.optimizer.learning_rate = 5e-5
