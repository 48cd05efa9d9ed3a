"""RoBERTa: "A Robustly Optimized BERT Pretraining Approach" (Liu et al. 2019, https://arxiv.org/abs/1907.11692): BERT masked
anew each time, without next sentences, on full rows, with byte-level tokens, in large batches.

Pretraining: python -m experiments.pretrain --config=configs/roberta.py:VARIANT --workdir=DIR
Finetuning: python -m experiments.finetune --config=configs/roberta.py:VARIANT --workdir=DIR --init_from=FOLDER

| VARIANT          | what                                                   | expected time and score              |
|------------------|--------------------------------------------------------|--------------------------------------|
| `base`           | table 9: 125M parameters, 500,000 steps of 8,192 × 512 | paper: 1,024 V100; not run           |
| `large`          | 355M parameters                                        | the same                             |
| `quickstart`     | 7M parameters on the English Bible, on a laptop        | as configs/bert.py's                 |
| `tiny`           | seconds on a CPU, for tests: files given               | none                                 |
| `mnli`           | GLUE's MNLI from TFDS                                  | paper, large: 90.2/90.2 (dev)        |
| `sst2`           | GLUE's SST-2 from TFDS                                 | paper, large: 96.4 (dev)             |
| `squad` `squad2` | SQuAD 1.1 and 2.0                                      | paper, large: F1 94.6 and 89.4 (dev) |

Other tasks: configs/bert.py has them, and takes any --init_from.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant.

    Raises:
      ValueError: there is no such variant.
    """
    config = common()
    known = {"base": base, "large": large, "quickstart": quickstart, "tiny": tiny}
    known |= {"mnli": mnli, "sst2": sst2, "squad": squad, "squad2": squad2}
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
    config.model.variant = "roberta"  # or "roberta", "camembert", "xlm-roberta"
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
    config.tokenizer.kind = "byte_bpe"
    config.tokenizer.vocab_size = 50_265
    config.tokenizer.lowercase = False
    config.tokenizer.path = ""  # a tokenizer to use instead of learning one

    config.data = ConfigDict()
    config.data.source = "text"
    config.data.tfds_name = ""
    config.data.data_dir = ""
    config.data.train = ""  # files, plain or gzip; or, with tfds_name, the split's name there
    config.data.validation = ""
    config.data.test = ""
    config.data.languages = ("en",)
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
    config.optimizer.clip_norm = 0.0

    config.training = ConfigDict()
    config.training.steps = 500_000
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
    """Table 9, on Wikipedia alone: most of the paper's 160 GB of text is not to be had."""
    config.data.tfds_name = "wikipedia/20230601.en"
    config.data.train = "train[1%:]"
    config.data.validation = "train[:1%]"
    config.data.test = "train[:1%]"


def large(config: ConfigDict) -> None:
    """Table 9: 30,000 steps to a peak of 4e-4."""
    base(config)
    config.model.width = 1024
    config.model.num_heads = 16
    config.model.mlp_width = 4096
    config.model.layers = 24
    config.optimizer.learning_rate = 4e-4
    config.optimizer.warmup_steps = 30_000


def quickstart(config: ConfigDict) -> None:
    """The English Bible verse by verse: 6 layers of 256, packed rows, as configs/bert.py:quickstart."""
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


def small(config: ConfigDict) -> None:
    """What models for a laptop share."""
    config.model.dtype = "float32"
    config.model.scan_layers = False
    config.data.cache = True


# -- finetuning --------------------------------------------------------------------------------------------------------


def finetuning(config: ConfigDict) -> None:
    """Table 10, in float32: 16 or 32 rows, rates from 1e-5 to 3e-5, ten epochs, 6 % of them warming up."""
    small(config)
    config.data.batching = "buckets"
    config.data.tokens_per_batch = 0  # batch_size rows of each width
    config.data.batch_size = 32
    config.data.max_length = 0
    config.data.columns = ()
    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_steps = 0
    config.optimizer.weight_decay = 0.1
    config.optimizer.warmup_share = 0.06
    config.training.steps = 0
    config.training.log_every = 20
    config.training.eval_every = 0
    config.training.checkpoint_every = 0
    config.training.keep_checkpoints = 1
    config.finetuning.epochs = 10.0
    config.finetuning.evaluations = 10


def glue(config: ConfigDict, part: str, labels: tuple, tokens: int) -> None:
    """A part of GLUE from TFDS; its test labels are not public: `test` is the validation set, of MNLI the mismatched one."""
    finetuning(config)
    config.task = ConfigDict({"name": "sequence_classification", "labels": labels, "metrics": ("accuracy",)})
    config.task.max_length = tokens
    config.data.source = "glue"
    config.data.tfds_name = f"glue/{part}"
    config.data.train = "train"
    config.data.validation = "validation_matched" if part == "mnli" else "validation"
    config.data.test = "validation_mismatched" if part == "mnli" else "validation"
    config.data.lengths = ConfigDict({"tokens": tokens})


def mnli(config: ConfigDict) -> None:
    """Table 8."""
    glue(config, "mnli", ("entailment", "neutral", "contradiction"), 128)


def sst2(config: ConfigDict) -> None:
    """Table 8."""
    glue(config, "sst2", ("negative", "positive"), 64)


def squad(config: ConfigDict) -> None:
    """Table 10: 48 rows, rate 1.5e-5, two epochs."""
    finetuning(config)
    config.task = ConfigDict({"name": "span_qa", "max_length": 384, "stride": 128, "max_question": 64, "max_answer": 30})
    config.task.no_answers = False
    config.data.source = "squad"
    config.data.tfds_name = "squad/v1.1"  # "" for files
    config.data.train = "train"
    config.data.validation = "validation"
    config.data.test = "validation"
    config.data.lengths = ConfigDict({"tokens": 384})
    config.data.batch_size = 48
    config.optimizer.learning_rate = 1.5e-5
    config.optimizer.weight_decay = 0.01
    config.finetuning.epochs = 2.0
    config.finetuning.evaluations = 6


def squad2(config: ConfigDict) -> None:
    """SQuAD 2.0, the same recipe."""
    squad(config)
    config.task.no_answers = True
    config.data.tfds_name = "squad/v2.0"
