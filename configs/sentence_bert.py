"""Sentence-BERT: "Sentence Embeddings using Siamese BERT-Networks" (Reimers and Gurevych 2019,
https://arxiv.org/abs/1908.10084): an encoder finetuned so that near vectors mean the same.

python -m experiments.finetune --config=configs/sentence_bert.py:VARIANT --workdir=DIR --init_from=FOLDER
python -m experiments.embed --init_from=DIR < lines

| VARIANT | what                                                                    | expected score                         |
|---------|-------------------------------------------------------------------------|----------------------------------------|
| `nli`   | classification, section 3: MNLI from TFDS, or files                     | paper, base: STS-B Spearman 77.0       |
| `sick`  | the same on SICK's files                                                | none                                   |
| `sts`   | regression, section 4.2, on files of "score TAB sentence TAB sentence"  | paper, base: STS-B Spearman 84.7       |
| `stsb`  | the same on STS-B from TFDS                                             | the same                               |
| `pairs` | multiple negatives, on files of "sentence TAB sentence"                 | none                                   |
"""

from ml_collections import ConfigDict


def get_config(variant: str = "nli") -> ConfigDict:
    """The config of a variant.

    Raises:
      ValueError: there is no such variant.
    """
    config = common()
    known = {"nli": nli, "sick": sick, "sts": sts, "stsb": stsb, "pairs": pairs}
    if variant not in known:
        raise ValueError(f"unknown variant {variant!r}; known variants: {', '.join(known)}")
    known[variant](config)
    return config


def common() -> ConfigDict:
    """Every key, with the values of BERT base."""
    config = ConfigDict()
    config.seed = 0
    config.prng = "rbg"  # jax_default_prng_impl: rbg is faster than threefry2x32

    config.model = ConfigDict()
    config.model.name = "bert"
    config.model.variant = "bert"  # or "roberta", "camembert", "xlm-roberta"
    config.model.width = 768
    config.model.num_heads = 12
    config.model.mlp_width = 3072
    config.model.layers = 12
    config.model.max_length = 512
    config.model.position_offset = 0
    config.model.token_types = 2
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
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "float32"

    config.task = ConfigDict()
    config.task.name = "similarity"
    config.task.max_length = 512

    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "wordpiece"
    config.tokenizer.vocab_size = 30_522
    config.tokenizer.lowercase = True
    config.tokenizer.path = ""  # a tokenizer to use instead of learning one

    config.data = ConfigDict()
    config.data.source = "tsv"
    config.data.tfds_name = ""
    config.data.data_dir = ""
    config.data.train = ""  # files, plain or gzip; or, with tfds_name, the split's name there
    config.data.validation = ""
    config.data.test = ""
    config.data.batching = "rows"  # or "packing" where rows have no label, or "buckets" with the two keys below
    config.data.batch_size = 256  # rows over all devices
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
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 10_000
    config.optimizer.warmup_share = 0.0  # of all steps, where warmup_steps is 0
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-6
    config.optimizer.weight_decay = 0.01
    config.optimizer.decay_pattern = r"(^|/)(kernel|word|token_type|embedding)$"
    config.optimizer.clip_norm = 1.0

    config.training = ConfigDict()
    config.training.steps = 1_000_000
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


def small(config: ConfigDict) -> None:
    """What models for a laptop share."""
    config.model.dtype = "float32"
    config.model.scan_layers = False
    config.data.cache = True


def finetuning(config: ConfigDict) -> None:
    """Section 3.1, in float32: 16 rows, rate 2e-5, one epoch, a tenth of it warming up."""
    small(config)
    config.data.batching = "rows"
    config.data.batch_size = 16
    config.data.max_length = 0
    config.data.columns = ()
    config.data.header = False
    config.data.lengths = ConfigDict({"tokens": 128})
    config.optimizer.learning_rate = 2e-5
    config.optimizer.warmup_steps = 0
    config.optimizer.warmup_share = 0.1
    config.training.steps = 0
    config.training.log_every = 20
    config.training.eval_every = 0
    config.training.checkpoint_every = 0
    config.training.keep_checkpoints = 1
    config.finetuning.epochs = 1.0
    config.finetuning.evaluations = 6


def similarity(config: ConfigDict, objective: str, labels: tuple = ()) -> None:
    """Pairs of sentences of up to 128 tokens each."""
    finetuning(config)
    config.task = ConfigDict({"name": "similarity", "objective": objective, "pooling": "mean", "max_length": 128})
    if objective == "classification":
        config.task.labels = labels
    if objective == "regression":
        config.task.highest = 5.0
    if objective == "multiple_negatives":
        config.task.scale = 20.0


def nli(config: ConfigDict) -> None:
    """Section 3.1; SNLI, the paper's other half, may be given as files: --config.data.source=tsv."""
    similarity(config, "classification", ("entailment", "neutral", "contradiction"))
    config.data.source = "glue"
    config.data.tfds_name = "glue/mnli"
    config.data.train = "train"
    config.data.validation = "validation_matched"
    config.data.test = "validation_mismatched"


def sick(config: ConfigDict) -> None:
    """Files as SICK has them (Marelli et al. 2014), columns by the names in their first line."""
    similarity(config, "classification", ("CONTRADICTION", "ENTAILMENT", "NEUTRAL"))
    config.data.columns = ("first=sentence_A", "second=sentence_B", "label=entailment_judgment")
    config.data.header = True


def sts(config: ConfigDict) -> None:
    """Section 4.2, four epochs."""
    similarity(config, "regression")
    config.data.columns = ("score", "first", "second")
    config.finetuning.epochs = 4.0


def stsb(config: ConfigDict) -> None:
    """Section 4.2 on GLUE's STS-B."""
    sts(config)
    config.data.source = "glue"
    config.data.tfds_name = "glue/stsb"
    config.data.columns = ()
    config.data.train = "train"
    config.data.validation = "validation"
    config.data.test = "validation"


def pairs(config: ConfigDict) -> None:
    """Henderson et al. 2017: of all second sentences of a batch the right one is nearest; 64 rows."""
    similarity(config, "multiple_negatives")
    config.data.columns = ("first", "second")
    config.data.batch_size = 64
