"""The Evolved Transformer (So, Liang, Le 2019, https://arxiv.org/abs/1901.11117).

python -m experiments.pretrain --config=configs/evolved_transformer.py:VARIANT --workdir=DIR

| VARIANT      | what                                                          | expected time and score  |
|--------------|---------------------------------------------------------------|--------------------------|
| `quickstart` | a small model on the Bible, English to German, on a laptop    | not measured yet         |
| `multi30k`   | 1 + 2 blocks of width 256 on image captions, files given      | not measured yet         |
| `base`       | width 512, 64.1M parameters: WMT14, 300,000 steps             | paper: 28.2              |
| `big`        | width 1024, 221.7M parameters: WMT14, 300,000 steps           | paper: 29.0              |
| `tiny`       | seconds on a CPU, for tests: files given                      | none                     |

Files in place of these: --config.data.train=A.en,A.de --config.data.validation=B.en,B.de, two of text, plain or gzip, line by
line; splits that are not named are not used.
A language pair may follow the variant: `base,en-fr`, `quickstart,en-fr`. Three encoder blocks and four decoder blocks
stand for six and six layers of the Transformer; the small variants have about the parameters of those of
configs/transformer.py, the same data and the same steps. Paper scores are tokenized BLEU of newstest2014, en-de;
`experiments.evaluate` prints sacreBLEU, which is lower.
"""

from ml_collections import ConfigDict

from configs import base, transformer


def get_config(variant: str = "base") -> ConfigDict:
    """The config of `NAME` or `NAME,PAIR`; ValueError: an unknown name or language pair."""
    variants = {"quickstart": (quickstart,), "multi30k": (multi30k,), "base": (base.wmt14,), "big": (big,), "tiny": (tiny,)}
    return base.paired(common(), variants, variant)


def common() -> ConfigDict:
    """The base model."""
    config = base.transformer("evolved_transformer")
    base.without(config.model, "mlp_width", "norm", "activation", "genome", "genome_unit")  # its blocks are given
    config.model.update(encoder_layers=3, decoder_layers=4, mlp_dropout=0.1, positions="concatenated")
    config.tokenizer.vocab_size = 33_288
    config.optimizer.update(name="adafactor", schedule="cosine", learning_rate=0.01)
    config.training.steps = 300_000
    return config


def big(config: ConfigDict) -> None:
    base.wmt14(config)
    config.model.update(width=1024, num_heads=16, dropout=0.3, mlp_dropout=0.3)


def small(config: ConfigDict) -> None:
    """What the models for a laptop share: 1 + 2 blocks of width 256 in float32, packed rows of 64 positions."""
    base.laptop(config)
    config.model.update(width=256, num_heads=4, encoder_layers=1, decoder_layers=2)
    config.tokenizer.vocab_size = 8000
    config.data.update(batch_size=64, lengths={"source": 64, "target": 64}, max_length=64)
    config.optimizer.update(name="adam", schedule="inverse_sqrt", learning_rate=0.002, warmup_steps=500, clip_norm=1.0)
    config.training.log_every = 20


def quickstart(config: ConfigDict) -> None:
    small(config)
    config.model.decoder_layers = 1
    config.optimizer.update(schedule="cosine", warmup_steps=100)
    transformer.verses(config)


def multi30k(config: ConfigDict) -> None:
    small(config)
    transformer.captions(config)


def tiny(config: ConfigDict) -> None:
    small(config)
    base.tiny_pairs(config)
    config.model.update(num_heads=2, decoder_layers=1)
