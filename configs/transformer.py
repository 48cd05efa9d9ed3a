"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

python -m experiments.pretrain --config=configs/transformer.py:VARIANT --workdir=DIR

| VARIANT      | what                                                         | expected time and score  |
|--------------|--------------------------------------------------------------|--------------------------|
| `quickstart` | a small model on the Bible, English to German, on a laptop   | 8 minutes: BLEU 10.1     |
| `multi30k`   | 3 + 3 layers of width 256 on image captions, files given     | 2,000 steps: BLEU 37.8   |
| `base`       | table 3, base: WMT14, 100,000 steps                          | paper: 27.3 (en-fr 38.1) |
| `big`        | table 3, big: WMT14, 300,000 steps                           | paper: 28.4 (en-fr 41.8) |
| `tiny`       | seconds on a CPU, for tests: files given                     | none                     |

A language pair may follow the variant: `base,en-fr`, `quickstart,en-fr`. Paper scores are tokenized BLEU of
newstest2014 after 12 hours (base) and 3.5 days (big) on eight P100 GPUs; `experiments.evaluate` prints sacreBLEU, which
is lower.
"""

from ml_collections import ConfigDict

PAIRS = ("en-de", "en-fr")


def get_config(variant: str = "base") -> ConfigDict:
    """The config of `NAME` or `NAME,PAIR`.

    Raises:
      ValueError: an unknown name or language pair.
    """
    name, _, pair = variant.partition(",")
    pair = pair or PAIRS[0]
    known = {"quickstart": quickstart, "multi30k": multi30k, "base": base, "big": big, "tiny": tiny}
    if name not in known:
        raise ValueError(f"unknown variant {name!r}; known variants: {', '.join(known)}")
    if pair not in PAIRS:
        raise ValueError(f"unknown languages {pair!r} in {variant!r}; known: {', '.join(PAIRS)}")
    config = common()
    config.data.languages = tuple(pair.split("-"))
    known[name](config)
    return config


def common() -> ConfigDict:
    """Every key, with the values of the paper's base model."""
    config = ConfigDict()
    config.seed = 0
    config.prng = "rbg"  # jax_default_prng_impl: rbg is faster than threefry2x32

    config.model = ConfigDict()
    config.model.name = "transformer"
    config.model.width = 512
    config.model.num_heads = 8
    config.model.mlp_width = 2048
    config.model.encoder_layers = 6
    config.model.decoder_layers = 6
    config.model.dropout = 0.1
    config.model.attention_dropout = 0.0
    config.model.mlp_dropout = 0.0
    config.model.norm = "post"
    config.model.positions = "interleaved"
    config.model.relative_distance = 0
    config.model.max_length = 512
    config.model.activation = "relu"
    config.model.attention_bias = False
    config.model.share_embeddings = True
    config.model.scan_layers = True
    config.model.remat = False
    config.model.attention = "auto"
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "float32"
    config.model.genome = ""  # other blocks: a genome's JSON file, text or name (transformer, evolved_transformer)
    config.model.genome_unit = 0  # width of one relative output dimension; 0 is width // 2

    config.task = ConfigDict()
    config.task.name = "translation"
    config.task.label_smoothing = 0.1

    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 37_000
    config.tokenizer.path = ""  # a tokenizer to use instead of learning one

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
    config.data.batch_size = 196  # rows over all devices: 196 · 128 positions are 25,000 tokens a side
    config.data.lengths = ConfigDict({"source": 128, "target": 128})
    config.data.max_length = 128
    config.data.boundaries = (16, 24, 32, 48, 64, 96, 128)
    config.data.tokens_per_batch = 25_000
    config.data.window = 0  # examples that are packed together; 0 leaves it to the pipeline
    config.data.prefetch = 8
    config.data.workers = 0
    config.data.cache = False

    config.optimizer = ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.schedule = "noam"
    config.optimizer.factor = 1.0  # height of noam, over sqrt(d_model); other schedules take their peak, learning_rate
    config.optimizer.d_model = config.model.get_ref("width")
    config.optimizer.learning_rate = 0.0
    config.optimizer.warmup_steps = 4000
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.98
    config.optimizer.eps = 1e-9
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0

    config.training = ConfigDict()
    config.training.steps = 100_000
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


def base(config: ConfigDict) -> None:
    """Table 3, base. Section 5.1: WMT14, 37,000 joint tokens for en-de, 32,000 for en-fr."""
    french = config.data.languages == ("en", "fr")
    config.data.tfds_name = f"wmt14_translate/{config.data.languages[1]}-en"
    config.tokenizer.vocab_size = 32_000 if french else 37_000


def big(config: ConfigDict) -> None:
    """Table 3, big. Section 6.1: dropout 0.1 for en-fr, the last 20 checkpoints averaged."""
    base(config)
    config.model.width = 1024
    config.model.num_heads = 16
    config.model.mlp_width = 4096
    config.model.dropout = 0.1 if config.data.languages == ("en", "fr") else 0.3
    config.training.steps = 300_000
    config.training.keep_checkpoints = 20
    config.training.average_checkpoints = 20


def small(config: ConfigDict) -> None:
    """What the models for a laptop share: 3 + 3 layers of width 256 in float32, packed rows of 64 positions."""
    config.model.width = 256
    config.model.num_heads = 4
    config.model.mlp_width = 1024
    config.model.encoder_layers = 3
    config.model.decoder_layers = 3
    config.model.norm = "pre"
    config.model.scan_layers = False
    config.model.dtype = "float32"
    config.tokenizer.vocab_size = 8000
    config.data.batch_size = 64
    config.data.lengths = ConfigDict({"source": 64, "target": 64})
    config.data.max_length = 64
    config.data.cache = True
    config.optimizer.warmup_steps = 800
    config.training.log_every = 20


def quickstart(config: ConfigDict) -> None:
    """A small model on the verses of up to 24 words of the Bible, World English Bible to Elberfelder or Segond."""
    small(config)
    config.model.encoder_layers = 2
    config.model.decoder_layers = 2
    config.tokenizer.vocab_size = 4000
    config.data.source = "bible"
    config.data.max_words = 24
    config.data.max_words_evaluation = 24
    config.data.batch_size = 32
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 0.002
    config.optimizer.warmup_steps = 100
    config.optimizer.clip_norm = 1.0
    config.training.steps = 500
    config.training.eval_every = 125
    config.training.bleu_every = 250
    config.training.bleu_sentences = 200
    config.training.checkpoint_every = 50
    config.training.keep_checkpoints = 3
    config.training.average_checkpoints = 3


def multi30k(config: ConfigDict) -> None:
    """Multi30k (Elliott et al. 2016), task 1: --config.data.train=train.en,train.de and so on name its files."""
    small(config)
    config.model.dropout = 0.2
    config.model.attention_dropout = 0.1
    config.model.mlp_dropout = 0.1
    config.data.source = "files"
    for split, file in ("train", "train"), ("validation", "val"), ("test", "test_2016_flickr"):
        config.data[split] = ",".join(f"data/multi30k/{file}.{language}" for language in config.data.languages)
    config.data.batch_size = 32
    config.optimizer.schedule = "inverse_sqrt"
    config.optimizer.learning_rate = 0.002
    config.optimizer.warmup_steps = 500
    config.optimizer.clip_norm = 1.0
    config.training.steps = 2000
    config.training.log_every = 25
    config.training.eval_every = 250
    config.training.bleu_every = 500
    config.training.bleu_sentences = 1014
    config.training.checkpoint_every = 125
    config.training.keep_checkpoints = 8
    config.training.average_checkpoints = 8


def tiny(config: ConfigDict) -> None:
    """For tests: trains in seconds on files that are given."""
    small(config)
    config.model.width = 32
    config.model.num_heads = 2
    config.model.mlp_width = 64
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
