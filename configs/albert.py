"""ALBERT: "A Lite BERT for Self-supervised Learning of Language Representations" (Lan et al. 2020,
https://arxiv.org/abs/1909.11942): one set of parameters for all layers, narrow embeddings, and the order of two sentences.

Pretraining: python -m experiments.pretrain --config=configs/albert.py:VARIANT --workdir=DIR
Finetuning: python -m experiments.finetune --config=configs/albert.py:VARIANT --workdir=DIR --init_from=FOLDER

| VARIANT          | what                                                  | expected time and score               |
|------------------|-------------------------------------------------------|---------------------------------------|
| `base`           | table 1: 12M parameters, 125,000 steps of 4,096 × 512 | paper: MNLI 81.6 (table 2); not run   |
| `large`          | 18M                                                   | paper: MNLI 83.5; not run             |
| `xlarge`         | 60M                                                   | paper: MNLI 86.4; not run             |
| `xxlarge`        | 235M                                                  | paper: MNLI 88.0; not run             |
| `quickstart`     | 2M parameters on the English Bible, on a laptop       | about 20 minutes on two cores         |
| `tiny`           | seconds on a CPU, for tests: files given              | none                                  |
| `mnli` `sst2`    | GLUE's MNLI and SST-2 from TFDS                       | see above; paper, xxlarge: SST-2 95.2 |
| `squad` `squad2` | SQuAD 1.1 and 2.0                                     | paper, xxlarge: F1 94.1 and 88.1      |

Other tasks: configs/bert.py has them, and takes any --init_from.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant.

    Raises:
      ValueError: there is no such variant.
    """
    config = common()
    known = {"base": base, "large": large, "xlarge": xlarge, "xxlarge": xxlarge, "quickstart": quickstart, "tiny": tiny}
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
    config.model.name = "albert"
    config.model.width = 768
    config.model.num_heads = 12
    config.model.mlp_width = 3072
    config.model.layers = 12
    config.model.embedding_width = 128
    config.model.groups = 1  # sets of parameters that the layers share
    config.model.max_length = 512
    config.model.token_types = 2
    config.model.vocab_size = 0  # rows of the embedding, where they are more than the tokenizer's tokens
    config.model.activation = "gelu_tanh"
    config.model.dropout = 0.0
    config.model.attention_dropout = 0.0
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
    config.task.name = "bert_pretraining"
    config.task.relation = "sentence_order"
    config.task.max_length = 512
    config.task.mask_rate = 0.15
    config.task.masking = "dynamic"
    config.task.whole_words = False

    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "unigram"
    config.tokenizer.vocab_size = 30_000
    config.tokenizer.lowercase = True
    config.tokenizer.path = ""  # a tokenizer to use instead of learning one

    config.data = ConfigDict()
    config.data.source = "text"
    config.data.tfds_name = ""
    config.data.data_dir = ""
    config.data.train = ""  # files, plain or gzip; or, with tfds_name, the split's name there
    config.data.validation = ""
    config.data.test = ""
    config.data.languages = ("en",)
    config.data.unit = "sentence"
    config.data.chunk_words = 0
    config.data.smoothing = 1.0
    config.data.batching = "rows"  # or "packing" where rows have no label, or "buckets" with the two keys below
    config.data.batch_size = 4096  # rows over all devices
    config.data.lengths = ConfigDict({"tokens": 512})
    config.data.max_length = 0
    config.data.boundaries = (32, 64, 128, 256, 512)
    config.data.tokens_per_batch = 131_072
    config.data.window = 0  # examples that are planned together; 0 leaves it to the pipeline
    config.data.prefetch = 8
    config.data.workers = 0
    config.data.cache = False

    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "linear"
    config.optimizer.learning_rate = 1.76e-3
    config.optimizer.warmup_steps = 3125
    config.optimizer.warmup_share = 0.0  # of all steps, where warmup_steps is 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_pattern = r"(^|/)(kernel|word|token_type|embedding)$"
    config.optimizer.clip_norm = 1.0

    config.training = ConfigDict()
    config.training.steps = 125_000
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
    """Table 1 and section 4.1, on Wikipedia: AdamW in place of LAMB, tokens in place of n-grams."""
    config.data.tfds_name = "wikipedia/20230601.en"
    config.data.train = "train[1%:]"
    config.data.validation = "train[:1%]"
    config.data.test = "train[:1%]"


def large(config: ConfigDict) -> None:
    """Table 1."""
    base(config)
    config.model.width = 1024
    config.model.num_heads = 16
    config.model.mlp_width = 4096
    config.model.layers = 24


def xlarge(config: ConfigDict) -> None:
    """Table 1; heads as in the published weights."""
    base(config)
    config.model.width = 2048
    config.model.num_heads = 16
    config.model.mlp_width = 8192
    config.model.layers = 24


def xxlarge(config: ConfigDict) -> None:
    """Table 1."""
    base(config)
    config.model.width = 4096
    config.model.num_heads = 64
    config.model.mlp_width = 16384
    config.model.layers = 12


def quickstart(config: ConfigDict) -> None:
    """The English Bible in verses, their order to be told: 6 layers of 256 that share their parameters."""
    small(config)
    config.model.width = 256
    config.model.num_heads = 4
    config.model.mlp_width = 1024
    config.model.layers = 6
    config.model.max_length = 256
    config.task.max_length = 128
    config.tokenizer.vocab_size = 8000
    config.data.source = "bible_text"
    config.data.batch_size = 16
    config.data.lengths = ConfigDict({"tokens": 128})
    config.optimizer.learning_rate = 5e-4
    config.optimizer.warmup_steps = 200
    config.training.steps = 2000
    config.training.log_every = 50
    config.training.eval_every = 400
    config.training.checkpoint_every = 400


def tiny(config: ConfigDict) -> None:
    """For tests: sentences of text files that are given."""
    small(config)
    config.model.width = 32
    config.model.num_heads = 2
    config.model.mlp_width = 64
    config.model.layers = 2
    config.model.embedding_width = 16
    config.model.max_length = 64
    config.task.max_length = 32
    config.tokenizer.vocab_size = 400
    config.data.batch_size = 8
    config.data.lengths = ConfigDict({"tokens": 32})
    config.data.max_length = 32
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
    """Table 14, in float32: rates from 1e-5 to 5e-5, about three epochs."""
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
    """Table 14: 128 rows, rate 3e-5, 10,000 steps."""
    glue(config, "mnli", ("entailment", "neutral", "contradiction"), 128)


def sst2(config: ConfigDict) -> None:
    """Table 14: 32 rows, rate 1e-5."""
    glue(config, "sst2", ("negative", "positive"), 64)


def squad(config: ConfigDict) -> None:
    """Table 14: 48 rows, rate 5e-5."""
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
    config.optimizer.learning_rate = 5e-5


def squad2(config: ConfigDict) -> None:
    """Table 14: 48 rows, rate 3e-5."""
    squad(config)
    config.task.no_answers = True
    config.data.tfds_name = "squad/v2.0"
    config.optimizer.learning_rate = 3e-5
