"""The Transformer of "Attention Is All You Need" (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

python -m experiments.pretrain --config=configs/transformer.py:VARIANT --workdir=DIR

| VARIANT      | what                                                         | expected time and score  |
|--------------|--------------------------------------------------------------|--------------------------|
| `quickstart` | a small model on the Bible, English to German, on a laptop   | 8 minutes: BLEU 10.1     |
| `multi30k`   | 3 + 3 layers of width 256 on image captions, files given     | 2,000 steps: BLEU 37.8   |
| `base`       | table 3, base: WMT14, 100,000 steps                          | paper: 27.3 (en-fr 38.1) |
| `big`        | table 3, big: WMT14, 300,000 steps                           | paper: 28.4 (en-fr 41.8) |
| `tiny`       | seconds on a CPU, for tests: files given                     | none                     |

Files in place of these: --config.data.train=A.en,A.de --config.data.validation=B.en,B.de, two of text, plain or gzip, line by
line; splits that are not named are not used.
A language pair may follow the variant: `base,en-fr`, `quickstart,en-fr`. Paper scores are tokenized BLEU of
newstest2014 after 12 hours (base) and 3.5 days (big) on eight P100 GPUs; `experiments.evaluate` prints sacreBLEU, which
is lower.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "base") -> ConfigDict:
    """The config of `NAME` or `NAME,PAIR`; ValueError: an unknown name or language pair."""
    variants = {"quickstart": (quickstart,), "multi30k": (multi30k,), "base": (wmt,), "big": (big,), "tiny": (tiny,)}
    return base.paired(common(), variants, variant)


def common() -> ConfigDict:
    """Table 3, base, with the schedule of section 5.3; 196 rows of 128 are 25,000 tokens a side."""
    config = base.transformer("transformer")
    config.optimizer.update(schedule="noam", warmup_steps=4000)
    return config


def wmt(config: ConfigDict) -> None:
    """Section 5.1: WMT14, 37,000 joint tokens for en-de, 32,000 for en-fr."""
    base.wmt14(config)
    if config.data.languages == ("en", "fr"):
        config.tokenizer.vocab_size = 32_000


def big(config: ConfigDict) -> None:
    """Table 3, big. Section 6.1: dropout 0.1 for en-fr, the last 20 checkpoints averaged."""
    wmt(config)
    config.model.update(width=1024, num_heads=16, mlp_width=4096)
    config.model.dropout = 0.1 if config.data.languages == ("en", "fr") else 0.3
    config.training.update(steps=300_000, keep_checkpoints=20, average_checkpoints=20)


def small(config: ConfigDict) -> None:
    """What the models for a laptop share: 3 + 3 layers of width 256 in float32, packed rows of 64 positions."""
    base.laptop(config)
    config.model.update(width=256, num_heads=4, mlp_width=1024, encoder_layers=3, decoder_layers=3, norm="pre")
    config.tokenizer.vocab_size = 8000
    config.data.update(batch_size=64, lengths={"source": 64, "target": 64}, max_length=64)
    config.optimizer.warmup_steps = 800
    config.training.log_every = 20


def quickstart(config: ConfigDict) -> None:
    """A small model on the verses of up to 24 words of the Bible, World English Bible to Elberfelder or Segond."""
    small(config)
    config.model.update(encoder_layers=2, decoder_layers=2)
    config.optimizer.update(schedule="cosine", learning_rate=0.002, warmup_steps=100, clip_norm=1.0)
    verses(config)


def verses(config: ConfigDict) -> None:
    """The quickstart's data and steps."""
    config.tokenizer.vocab_size = 4000
    config.data.update(source="bible", max_words=24, max_words_evaluation=24, batch_size=32)
    config.training.update(steps=500, eval_every=125, bleu_every=250, bleu_sentences=200, checkpoint_every=50)
    config.training.update(keep_checkpoints=3, average_checkpoints=3)


def multi30k(config: ConfigDict) -> None:
    small(config)
    config.optimizer.update(schedule="inverse_sqrt", learning_rate=0.002, warmup_steps=500, clip_norm=1.0)
    captions(config)


def captions(config: ConfigDict) -> None:
    """The data and steps of multi30k, and its dropout."""
    base.captions(config)
    config.model.update(dropout=0.2, attention_dropout=0.1, mlp_dropout=0.1)
    config.data.batch_size = 32
    config.training.update(steps=2000, log_every=25, eval_every=250, bleu_every=500, bleu_sentences=1014)
    config.training.update(checkpoint_every=125, keep_checkpoints=8, average_checkpoints=8)


def tiny(config: ConfigDict) -> None:
    small(config)
    base.tiny_pairs(config)
    config.model.update(num_heads=2, mlp_width=64, encoder_layers=1, decoder_layers=1)
