"""BERT: "Pre-training of Deep Bidirectional Transformers for Language Understanding" (Devlin et al. 2019,
https://arxiv.org/abs/1810.04805).

Pretraining: python -m experiments.pretrain --config=configs/bert.py:VARIANT --workdir=DIR

| VARIANT      | what                                                        | expected time and score                 |
|--------------|-------------------------------------------------------------|-----------------------------------------|
| `base`       | section 3: 12 layers of 768, a million steps of 256 × 512   | paper: 4 days on 16 TPU chips; not run  |
| `large`      | 24 layers of 1,024                                          | paper: 4 days on 64 TPU chips; not run  |
| `quickstart` | 7M parameters on the English Bible, on a laptop             | 6 to 40 minutes, perplexity 27 to 29    |
| `tiny`       | seconds on a CPU, for tests: files given                    | none                                    |

Finetuning, section 4, three epochs each: python -m experiments.finetune --config=configs/bert.py:VARIANT --workdir=DIR
--init_from=DIR, a folder of Hugging Face's or another workdir, whatever the architecture.

| VARIANT     | what                                                          | paper, base and large            |
|-------------|---------------------------------------------------------------|----------------------------------|
| `mnli` …    | mnli, qqp, qnli, sst2, cola, stsb, mrpc, rte, wnli: a part of GLUE, from TFDS | table 1          |
| `glue`      | all of table 1, one after the other, and the table            | average 79.6 and 82.1 (test)     |
| `squad`     | SQuAD 1.1, from TFDS or files                                 | F1 88.5 and 90.9 (dev)           |
| `squad2`    | SQuAD 2.0                                                     | large: F1 81.9 (dev)             |
| `swag`      | SWAG, from its files                                          | accuracy 81.6 and 86.6 (dev)     |
| `conll2003` | named entities, from TFDS                                     | F1 92.4 and 92.8 (test)          |
| `ner`       | the same from CoNLL files, of any labels                      | none                             |
| `sentences` | a label for each line of "sentence TAB label"                 | see benchmarks/README.md         |
| `nli`       | a label for each pair, as SICK's files have them              | see benchmarks/README.md         |
| `sts`       | a number for each pair, of "score TAB sentence TAB sentence"  | see benchmarks/README.md         |

--config.data.train=FILE and .validation=FILE name files; --config.finetuning.trainable=head leaves the encoder as it is.
"""

from ml_collections import ConfigDict

GLUE = {  # labels as TFDS has them, metrics, tokens
    "mnli": (("entailment", "neutral", "contradiction"), ("accuracy",), 128),
    "qqp": (("not_duplicate", "duplicate"), ("f1", "accuracy"), 128),
    "qnli": (("entailment", "not_entailment"), ("accuracy",), 128),
    "sst2": (("negative", "positive"), ("accuracy",), 64),
    "cola": (("unacceptable", "acceptable"), ("matthews", "accuracy"), 64),
    "stsb": ((), ("spearman", "pearson"), 128),
    "mrpc": (("not_equivalent", "equivalent"), ("f1", "accuracy"), 128),
    "rte": (("entailment", "not_entailment"), ("accuracy",), 256),
    "wnli": (("not_entailment", "entailment"), ("accuracy",), 128),
}
ENTITIES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant.

    Raises:
      ValueError: there is no such variant.
    """
    config = common()
    pretraining = {"base": base, "large": large, "quickstart": quickstart, "tiny": tiny}
    others = {"squad": squad, "squad2": squad2, "swag": swag, "conll2003": conll2003, "ner": ner}
    own = {"sentences": sentences, "nli": nli, "sts": sts}
    known = {**pretraining, **dict.fromkeys(GLUE), "glue": sweep, **others, **own}
    if variant not in known:
        raise ValueError(f"unknown variant {variant!r}; known variants: {', '.join(known)}")
    if variant in GLUE:
        glue(config, variant)
    else:
        known[variant](config)
    return config


def common() -> ConfigDict:
    """Every key, with the values of the paper's base model and its pretraining."""
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
    config.model.genome = ""  # a JSON file, text or name: its encoder cells in place of the layers
    config.model.genome_unit = 0
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "float32"

    config.task = ConfigDict()
    config.task.name = "bert_pretraining"
    config.task.max_length = 512
    config.task.mask_rate = 0.15
    config.task.masking = "static"
    config.task.whole_words = False

    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "wordpiece"
    config.tokenizer.vocab_size = 30_522
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


# -- pretraining -------------------------------------------------------------------------------------------------------


def base(config: ConfigDict) -> None:
    """Appendix A.2, on Wikipedia: the BooksCorpus is not to be had."""
    config.data.tfds_name = "wikipedia/20230601.en"
    config.data.train = "train[1%:]"
    config.data.validation = "train[:1%]"
    config.data.test = "train[:1%]"


def large(config: ConfigDict) -> None:
    """Section 3."""
    base(config)
    config.model.width = 1024
    config.model.num_heads = 16
    config.model.mlp_width = 4096
    config.model.layers = 24


def quickstart(config: ConfigDict) -> None:
    """The English Bible verse by verse: 6 layers of 256, masked anew each time, packed rows.

    What is not the paper's lets so small a model learn from so little text: short texts, as each position's vector is
    then seen often; twice as many masks; no dropout.
    """
    small(config)
    config.model.width = 256
    config.model.num_heads = 4
    config.model.mlp_width = 1024
    config.model.layers = 6
    config.model.max_length = 256
    config.model.dropout = 0.0
    config.model.attention_dropout = 0.0
    config.model.max_mask_rate = 0.4
    config.task = ConfigDict({"name": "masked_lm", "mask_rate": 0.3, "masking": "dynamic", "whole_words": True})
    config.tokenizer.vocab_size = 8000
    config.data.source = "bible_text"
    config.data.unit = "line"
    config.data.batching = "packing"
    config.data.batch_size = 8
    config.data.lengths = ConfigDict({"tokens": 128})
    config.data.max_length = 128
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.optimizer.b2 = 0.98
    config.training.steps = 2500
    config.training.log_every = 50
    config.training.eval_every = 500
    config.training.checkpoint_every = 500


def tiny(config: ConfigDict) -> None:
    """For tests: masked language model and next sentences of text files that are given."""
    small(config)
    config.model.width = 32
    config.model.num_heads = 2
    config.model.mlp_width = 64
    config.model.layers = 2
    config.model.max_length = 64
    config.task.max_length = 32
    config.tokenizer.vocab_size = 400
    config.data.batch_size = 8
    config.data.lengths = ConfigDict({"tokens": 32})
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
    """Appendix A.3, in float32: 16 or 32 rows, rates from 2e-5 to 5e-5, three epochs, dropout 0.1."""
    small(config)
    config.data.batching = "buckets"
    config.data.tokens_per_batch = 0  # batch_size rows of each width
    config.data.batch_size = 32
    config.data.max_length = 0
    config.data.columns = ()
    config.optimizer.learning_rate = 3e-5
    config.optimizer.warmup_steps = 0
    config.optimizer.warmup_share = 0.1
    config.training.steps = 0
    config.training.log_every = 20
    config.training.eval_every = 0
    config.training.checkpoint_every = 0
    config.training.keep_checkpoints = 1
    config.finetuning.epochs = 3.0
    config.finetuning.evaluations = 6


def classification(config: ConfigDict, labels: tuple, metrics: tuple, tokens: int) -> None:
    """A label, or without labels a number, for a sentence or a pair."""
    finetuning(config)
    config.task = ConfigDict({"name": "sequence_classification", "labels": labels, "metrics": metrics, "max_length": tokens})
    config.data.lengths = ConfigDict({"tokens": tokens})


def glue(config: ConfigDict, part: str) -> None:
    """Section 4.1. Labels of GLUE's test sets are not public: `test` is the validation set, of MNLI the mismatched one."""
    classification(config, *GLUE[part])
    config.data.source = "glue"
    config.data.tfds_name = f"glue/{part}"
    config.data.train = "train"
    config.data.validation = "validation_matched" if part == "mnli" else "validation"
    config.data.test = "validation_mismatched" if part == "mnli" else "validation"


def sweep(config: ConfigDict) -> None:
    """Table 1: --config.sweep=('sst2','rte') takes some of it. Other keys that are given hold for all parts."""
    glue(config, "cola")
    config.sweep = tuple(part for part in GLUE if part != "wnli")


def squad(config: ConfigDict) -> None:
    """Section 4.2: SQuAD 1.1, windows of 384 tokens every 128, 32 rows, rate 5e-5, three epochs."""
    finetuning(config)
    config.task = ConfigDict({"name": "span_qa", "max_length": 384, "stride": 128, "max_question": 64, "max_answer": 30})
    config.task.no_answers = False
    config.data.source = "squad"
    config.data.tfds_name = "squad/v1.1"  # "" for files
    config.data.train = "train"
    config.data.validation = "validation"
    config.data.test = "validation"
    config.data.lengths = ConfigDict({"tokens": 384})
    config.optimizer.learning_rate = 5e-5


def squad2(config: ConfigDict) -> None:
    """Section 4.3: SQuAD 2.0, 48 rows, rate 5e-5, two epochs."""
    squad(config)
    config.task.no_answers = True
    config.data.tfds_name = "squad/v2.0"
    config.data.batch_size = 48
    config.finetuning.epochs = 2.0


def swag(config: ConfigDict) -> None:
    """Section 4.4: four choices a row, 16 rows, rate 2e-5, three epochs; files train.csv and val.csv of its repository."""
    finetuning(config)
    config.task = ConfigDict({"name": "multiple_choice", "choices": 4, "max_length": 128})
    config.data.source = "swag"
    config.data.lengths = ConfigDict({"tokens": 128})
    config.data.batch_size = 16
    config.optimizer.learning_rate = 2e-5


def ner(config: ConfigDict) -> None:
    """Section 5.3 on files in CoNLL's columns: --config.task.labels names their tags."""
    finetuning(config)
    config.task = ConfigDict({"name": "tagging", "labels": ENTITIES, "max_length": 128})
    config.data.source = "conll"
    config.data.tag_column = -1
    config.data.lengths = ConfigDict({"tokens": 128})
    config.optimizer.learning_rate = 5e-5


def conll2003(config: ConfigDict) -> None:
    """Section 5.3 and table 7: CoNLL-2003 from TFDS, whose names of the splits are the usual ones."""
    ner(config)
    config.data.tfds_name = "conll2003"
    config.data.train = "train"
    config.data.validation = "dev"
    config.data.test = "test"


def sentences(config: ConfigDict) -> None:
    """Files of "sentence TAB label": --config.task.labels names the labels."""
    classification(config, ("0", "1"), ("accuracy",), 64)
    config.data.source = "tsv"
    config.data.columns = ("first", "label")
    config.data.header = False


def nli(config: ConfigDict) -> None:
    """Files as SICK has them (Marelli et al. 2014), columns by the names in their first line."""
    classification(config, ("CONTRADICTION", "ENTAILMENT", "NEUTRAL"), ("accuracy",), 128)
    config.data.source = "tsv"
    config.data.columns = ("first=sentence_A", "second=sentence_B", "label=entailment_judgment")
    config.data.header = True


def sts(config: ConfigDict) -> None:
    """Files of "score TAB sentence TAB sentence"."""
    classification(config, (), ("spearman", "pearson"), 128)
    config.data.source = "tsv"
    config.data.columns = ("score", "first", "second")
    config.data.header = False
