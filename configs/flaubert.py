"""FlauBERT: "Unsupervised Language Model Pre-training for French" (Le et al. 2020,
https://arxiv.org/abs/1912.05372): an encoder built as XLM, trained as RoBERTa.

Pretraining: python -m experiments.pretrain --config=configs/flaubert.py:VARIANT --workdir=DIR
Finetuning: python -m experiments.finetune --config=configs/flaubert.py:VARIANT --workdir=DIR --init_from=FOLDER

| VARIANT      | what                                            | expected time and score               |
|--------------|-------------------------------------------------|---------------------------------------|
| `base`       | table 2: 138M parameters                        | paper: 410 hours on 32 V100; not run  |
| `large`      | 373M parameters, norms before the sublayers     | paper: 390 hours on 128 V100; not run |
| `quickstart` | 7M parameters on the French Bible, on a laptop  | as configs/bert.py's                  |
| `tiny`       | seconds on a CPU, for tests: files given        | none                                  |
| `cls`        | FLUE's reviews (books, DVD, music), files given | paper, base: 93.1, 92.5, 94.1         |
| `pawsx`      | FLUE's paraphrases, files given                 | paper, base: 89.5                     |
| `xnli`       | French XNLI, files given                        | paper, base: 80.6                     |
| `ner`        | named entities, CoNLL files given               | none                                  |

Files in place of the Bible or TFDS: --config.data.train=FILE --config.data.validation=FILE, text, plain or gzip, or .tokens of
experiments.tokenize. Finetuning: cls, pawsx and xnli TSV of "sentence [TAB sentence] TAB label" or JSON lines; ner CoNLL's
columns.
Other tasks: configs/bert.py has them, and takes any --init_from.
"""

from ml_collections import ConfigDict

from configs import base, bert


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant; ValueError: there is no such one."""
    variants = {"base": (base.wikipedia, "fr"), "large": (large,), "quickstart": (bert.verses,), "tiny": (base.tiny,)}
    variants |= {"cls": (finetuning, bert.tsv, ("0", "1"), ("first", "label"), 512)}  # section 4.1: 1 for a good one
    variants |= {"pawsx": (finetuning, bert.tsv, ("0", "1"))}  # section 4.2: 1 for a paraphrase
    variants |= {"xnli": (finetuning, bert.tsv, bert.ENTAILMENT), "ner": (finetuning, bert.ner)}
    return base.varied(common(), variants, variant)


def common() -> ConfigDict:
    """Section 3, on Wikipedia: one of the 24 corpora of the paper; a byte-level vocabulary in place of Moses' words."""
    config = base.encoder("flaubert")
    with config.unlocked():
        config.model.norm = "post"
    config.model.token_types = 0
    base.masked_lm(config)
    config.tokenizer.update(kind="byte_bpe", vocab_size=68_729)
    config.data.update(languages=("fr",), unit="paragraph", chunk_words=350, batch_size=8192, max_length=512)
    config.optimizer.update(learning_rate=6e-4, warmup_steps=24_000, b2=0.98)
    config.training.steps = 200_000
    return config


def large(config: ConfigDict) -> None:
    """Table 2: more stable with the norms first."""
    base.large(config, base.wikipedia, "fr")
    config.model.norm = "pre"
    config.optimizer.learning_rate = 3e-4


def finetuning(config: ConfigDict, task, *options) -> None:
    """As the published code finetunes for FLUE: 8 rows, rate 5e-6."""
    base.finetuning(config, learning_rate=5e-6, epochs=10.0, evaluations=10)
    config.data.batch_size = 8
    task(config, *options)
