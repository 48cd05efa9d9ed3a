"""Architecture search: "The Evolved Transformer" (So, Liang and Le 2019, https://arxiv.org/abs/1901.11117), section 3.

python -m experiments.search --config=configs/search.py:VARIANT --workdir=DIR [--workers=N] [--config.search.method=…]

| VARIANT      | what                                                                  | expected time        |
|--------------|-----------------------------------------------------------------------|----------------------|
| `quickstart` | 8 candidates of a small model on the Bible, on a laptop               | 10 minutes           |
| `multi30k`   | 152 candidates of a small model on image captions, files given        | 2 hours              |
| `wmt`        | the paper's: WMT14, population 100, sample 30, 59.1 to 64.1M parameters | 15,000 trainings     |
| `tiny`       | seconds on a CPU, for tests: files given                              | seconds              |

A language pair may follow the variant: `quickstart,en-fr`. Times are for two workers of one processor core each.
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
    known = {"quickstart": quickstart, "multi30k": multi30k, "wmt": wmt, "tiny": tiny}
    if name not in known:
        raise ValueError(f"unknown variant {name!r}; known variants: {', '.join(known)}")
    if pair not in PAIRS:
        raise ValueError(f"unknown languages {pair!r} in {variant!r}; known: {', '.join(PAIRS)}")
    config = common()
    config.data.languages = tuple(pair.split("-"))
    known[name](config)
    return config


def common() -> ConfigDict:
    """Every key, with the values of the paper's search."""
    config = ConfigDict()
    config.seed = 0
    config.prng = "rbg"

    config.search = ConfigDict()
    config.search.method = "evolution"  # or "evolution_no_hurdles", "evolution_random_seed", "random"
    config.search.controls = ()  # methods that search afterwards, for as many training steps
    config.search.seed_genome = "transformer"  # a name, a text, a JSON file, or "random"
    config.search.parameters = (59_100_000, 64_100_000)  # least and most; () for any, with unit width // 2
    config.search.population = 100
    config.search.sample = 30  # members in a tournament
    config.search.mutation = 0.025  # of each field
    config.search.children = 5000  # measured before a hurdle is set, and after the last
    config.search.steps = (30_000, 60_000, 120_000)  # of training by stage, with a hurdle between two
    config.search.fixed_steps = 0  # of a candidate without hurdles; 0 is the sum of the stages
    config.search.finalists = 1  # genomes of each method of which the best after final_steps stands for it at the end
    config.search.final_steps = 0  # of the best ones and the seed, trained anew at the end; 0 is the sum of the stages
    config.search.final_seeds = 1  # how often; 0 leaves it out
    config.search.retries = 2  # a candidate over which a worker dies is trained so many times more
    config.search.cores = 1  # of a worker

    config.model = ConfigDict()
    config.model.name = "transformer"
    config.model.width = 512
    config.model.num_heads = 8  # of the decoder's attention to the encoder
    config.model.mlp_width = 2048  # of the model without a genome, as are the numbers of layers
    config.model.encoder_layers = 6
    config.model.decoder_layers = 6
    config.model.dropout = 0.1
    config.model.attention_dropout = 0.0
    config.model.mlp_dropout = 0.0
    config.model.norm = "pre"
    config.model.positions = "concatenated"
    config.model.relative_distance = 0
    config.model.max_length = 512
    config.model.activation = "relu"
    config.model.attention_bias = False
    config.model.share_embeddings = True
    config.model.scan_layers = True  # a cell is compiled once
    config.model.remat = False
    config.model.attention = "auto"
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "float32"
    config.model.genome = ""  # each candidate's own
    config.model.genome_unit = 0

    config.task = ConfigDict()
    config.task.name = "translation"
    config.task.label_smoothing = 0.1

    config.tokenizer = ConfigDict()
    config.tokenizer.kind = "bpe"
    config.tokenizer.vocab_size = 33_288
    config.tokenizer.path = ""

    config.data = ConfigDict()
    config.data.source = "tfds"
    config.data.languages = ("en", "de")
    config.data.tfds_name = ""
    config.data.data_dir = ""
    config.data.train = ""
    config.data.validation = ""
    config.data.test = ""
    config.data.max_words = 0
    config.data.max_words_evaluation = 0
    config.data.batching = "packing"
    config.data.batch_size = 32
    config.data.lengths = ConfigDict({"source": 128, "target": 128})
    config.data.max_length = 128
    config.data.boundaries = (16, 24, 32, 48, 64, 96, 128)
    config.data.tokens_per_batch = 4096
    config.data.window = 0
    config.data.prefetch = 8
    config.data.workers = 0
    config.data.cache = False

    config.optimizer = ConfigDict()
    config.optimizer.name = "adafactor"
    config.optimizer.schedule = "inverse_sqrt"  # one that does not end: a candidate may train on
    config.optimizer.factor = 1.0
    config.optimizer.d_model = config.model.get_ref("width")
    config.optimizer.learning_rate = 0.01
    config.optimizer.warmup_steps = 10_000
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0

    config.training = ConfigDict()
    config.training.accumulate = 1
    config.training.parallelism = "jit"
    config.training.log_every = 100  # a loss that is not finite is seen by then
    config.training.checkpoint_every = 0  # keeps checkpoints of trainings under way; 0: a killed one starts over
    config.training.keep_checkpoints = 1

    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    return config


def wmt(config: ConfigDict) -> None:
    """Section 4: WMT14. The stages' lengths and the number of children are to be set to the devices there are."""
    config.data.tfds_name = f"wmt14_translate/{config.data.languages[1]}-en"
    config.training.checkpoint_every = 5000


def small(config: ConfigDict) -> None:
    """What the searches on a laptop share: width 64 in float32, packed rows of 32 positions."""
    config.model.width = 64
    config.model.num_heads = 8
    config.model.mlp_width = 256
    config.model.dtype = "float32"
    config.tokenizer.vocab_size = 2000
    config.data.batch_size = 48
    config.data.lengths = ConfigDict({"source": 32, "target": 32})
    config.data.max_length = 32
    config.data.cache = True
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 0.004
    config.optimizer.warmup_steps = 40
    config.optimizer.clip_norm = 1.0
    config.training.log_every = 20
    config.search.parameters = (790_000, 858_000)


def quickstart(config: ConfigDict) -> None:
    """A search of minutes on the verses of up to 16 words of the Bible."""
    small(config)
    config.data.source = "bible"
    config.data.max_words = 16
    config.data.max_words_evaluation = 16
    config.data.batch_size = 64  # enough training that compiling is a small part of the time
    config.search.population = 4
    config.search.sample = 2
    config.search.children = 2
    config.search.steps = (200, 150)


def multi30k(config: ConfigDict) -> None:
    """Multi30k (Elliott et al. 2016), task 1: --config.data.train=train.en,train.de and so on name its files."""
    small(config)
    config.data.source = "files"
    for split, file in ("train", "train"), ("validation", "val"):
        config.data[split] = ",".join(f"data/multi30k/{file}.{language}" for language in config.data.languages)
    config.data.batch_size = 16
    config.optimizer.learning_rate = 0.008
    config.optimizer.warmup_steps = 60
    config.search.population = 20
    config.search.sample = 6
    config.search.children = 44
    config.search.steps = (150, 150, 400)  # the order after 120 steps says little of that after 1,000, that after 300 much
    config.search.finalists = 4
    config.search.final_steps = 1000  # the first after 700 steps need not be the first here


def tiny(config: ConfigDict) -> None:
    """For tests: a search of seconds on files that are given."""
    small(config)
    config.model.width = 16
    config.model.mlp_width = 64
    config.data.source = "files"
    config.tokenizer.vocab_size = 400
    config.data.batch_size = 4
    config.data.lengths = ConfigDict({"source": 32, "target": 32})
    config.training.log_every = 2
    config.search.parameters = (20_000, 80_000)
    config.search.population = 3
    config.search.sample = 2
    config.search.children = 2
    config.search.steps = (2, 2)
    config.search.final_seeds = 1
