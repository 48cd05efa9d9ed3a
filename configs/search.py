"""Architecture search: "The Evolved Transformer" (So, Liang and Le 2019, https://arxiv.org/abs/1901.11117), section 3.

python -m experiments.search --config=configs/search.py:VARIANT --workdir=DIR [--workers=N] [--config.search.method=…]

| VARIANT      | what                                                                  | expected time        |
|--------------|-----------------------------------------------------------------------|----------------------|
| `quickstart` | 8 candidates of a small model on the Bible, on a laptop               | 10 minutes           |
| `multi30k`   | 152 candidates of a small model on image captions, files given        | 2 hours              |
| `wmt`        | the paper's: WMT14, population 100, sample 30, 59.1 to 64.1M parameters | 15,000 trainings     |
| `causal_lm`  | 20 candidates for a block of gpt.py's, by bits per byte, on text files that are given | not run |
| `tiny`       | seconds on a CPU, for tests: files given                              | seconds              |
| `tiny_causal_lm` | likewise                                                          | seconds              |

Files in place of these: --config.data.train=A.en,A.de --config.data.validation=B.en,B.de, two of text, plain or gzip, line by
line; splits that are not named are not used.
A language pair may follow the variant: `quickstart,en-fr`. Times are for two workers of one processor core each.
"""

from ml_collections import ConfigDict

from configs import base, gpt


def get_config(variant: str = "wmt") -> ConfigDict:
    """The config of `NAME` or `NAME,PAIR`; ValueError: an unknown name or language pair."""
    variants = {"quickstart": (quickstart,), "multi30k": (multi30k,), "wmt": (wmt,), "tiny": (tiny,)}
    variants |= {"causal_lm": (causal_lm,), "tiny_causal_lm": (tiny_causal_lm,)}
    if variant in ("causal_lm", "tiny_causal_lm"):
        return base.varied(continuing(), variants, variant)
    return base.paired(common(), variants, variant)


def search() -> ConfigDict:
    """The paper's search."""
    search = ConfigDict()
    search.method = "evolution"  # or "evolution_no_hurdles", "evolution_random_seed", "random"
    search.controls = ()  # methods that search afterwards, for as many training steps
    search.seed_genome = "transformer"  # a name, a text, a JSON file, or "random"
    search.parameters = (59_100_000, 64_100_000)  # least and most; () for any, with unit width // 2
    search.population = 100  # candidates that live
    search.sample = 30  # members in a tournament
    search.mutation = 0.025  # of each field
    search.children = 5000  # measured before a hurdle is set, and after the last
    search.steps = (30_000, 60_000, 120_000)  # of training by stage, with a hurdle between two
    search.fixed_steps = 0  # of a candidate without hurdles; 0 is the sum of the stages
    search.finalists = 1  # genomes of each method of which the best after final_steps stands for it at the end
    search.final_steps = 0  # of the best ones and the seed, trained anew at the end; 0 is the sum of the stages
    search.final_seeds = 1  # how often; 0 leaves it out
    search.retries = 2  # a candidate over which a worker dies is trained so many times more
    search.cores = 1  # of a worker
    return search


def common() -> ConfigDict:
    """A candidate is a model of the Transformer's size with a genome of its own; `search` says how long it learns."""
    config = searched(base.transformer("transformer"), "bleu_every", "bleu_sentences")
    base.without(config, "decoding")
    config.model.update(norm="pre", positions="concatenated")
    config.tokenizer.vocab_size = 33_288
    config.data.update(batch_size=32, tokens_per_batch=4096)
    config.optimizer.update(name="adafactor", schedule="inverse_sqrt", learning_rate=0.01)  # endless: candidates may train on
    return config


def searched(config: ConfigDict, *unused: str) -> ConfigDict:
    """The config with a search in place of one training; unused: keys of training that it has no use for, either."""
    base.without(config, "finetuning")
    base.without(config.training, "steps", "eval_every", "average_checkpoints", *unused)
    with config.unlocked():
        config.search = search()
    config.training.update(checkpoint_every=0, keep_checkpoints=1)  # of trainings under way; 0: a killed one starts over
    return config


def continuing() -> ConfigDict:
    """A candidate is a GPT whose block is the genome's decoder cell without attention to a source; the encoder cell has no
    part in it."""
    config = searched(gpt.common())
    base.laptop(config)
    config.model.update(dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0)
    config.data.source = "text"
    config.optimizer.update(name="adam", schedule="inverse_sqrt", learning_rate=0.004, warmup_steps=40, weight_decay=0.0)
    config.training.log_every = 20
    return config


def wmt(config: ConfigDict) -> None:
    """Section 4: WMT14. The stages' lengths and the number of children are to be set to the devices there are."""
    base.wmt14(config)
    config.training.checkpoint_every = 5000


def small(config: ConfigDict) -> None:
    """What the searches on a laptop share: width 64 in float32, packed rows of 32 positions."""
    config.model.update(width=64, mlp_width=256, dtype="float32")
    config.tokenizer.vocab_size = 2000
    config.data.update(batch_size=48, lengths={"source": 32, "target": 32}, max_length=32, cache=True)
    config.optimizer.update(name="adam", learning_rate=0.004, warmup_steps=40, clip_norm=1.0)
    config.training.log_every = 20  # a loss that is not finite is seen by then
    config.search.parameters = (790_000, 858_000)


def quickstart(config: ConfigDict) -> None:
    small(config)
    config.data.update(source="bible", max_words=16, max_words_evaluation=16)
    config.data.batch_size = 64  # enough training that compiling is a small part of the time
    config.search.update(population=4, sample=2, children=2, steps=(200, 150))


def multi30k(config: ConfigDict) -> None:
    small(config)
    base.captions(config, test=False)
    config.data.batch_size = 16
    config.optimizer.update(learning_rate=0.008, warmup_steps=60)
    config.search.update(population=20, sample=6, children=44, finalists=4)
    config.search.steps = (150, 150, 400)  # the order after 120 steps says little of that after 1,000, that after 300 much
    config.search.final_steps = 1000  # the first after 700 steps need not be the first here


def tiny(config: ConfigDict) -> None:
    small(config)
    config.model.update(width=16, mlp_width=64)
    config.tokenizer.vocab_size = 400
    config.data.update(source="files", batch_size=4)
    config.training.log_every = 2
    config.search.update(parameters=(20_000, 80_000), population=3, sample=2, children=2, steps=(2, 2))


def causal_lm(config: ConfigDict) -> None:
    """Width 64, rows of 64 tokens: --config.data.train=a.txt,b.txt.gz --config.data.validation=c.txt."""
    config.model.update(width=64, num_heads=4, mlp_width=256, layers=2, max_length=64)
    config.tokenizer.vocab_size = 2000
    config.data.update(unit="file", batch_size=16, lengths={"tokens": 64})
    config.search.update(parameters=(), population=6, sample=3, children=4, steps=(150, 150, 400))


def tiny_causal_lm(config: ConfigDict) -> None:
    config.model.update(width=16, num_heads=4, mlp_width=64, layers=2, max_length=32)
    config.tokenizer.vocab_size = 400
    config.data.update(batch_size=4, lengths={"tokens": 32})
    config.training.log_every = 2
    config.search.update(parameters=(10_000, 60_000), population=3, sample=2, children=2, steps=(2, 2))
