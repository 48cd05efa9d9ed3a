"""CamemBERT: "a Tasty French Language Model" (Martin et al. 2020, https://arxiv.org/abs/1911.03894): RoBERTa in French, with
SentencePiece and whole words masked.

Pretraining: python -m experiments.pretrain --config=configs/camembert.py:VARIANT --workdir=DIR
Finetuning: python -m experiments.finetune --config=configs/camembert.py:VARIANT --workdir=DIR --init_from=FOLDER

| VARIANT      | what                                                      | expected time and score             |
|--------------|-----------------------------------------------------------|-------------------------------------|
| `base`       | section 4.3: 110M parameters, 100,000 steps of 8,192 rows | paper: a day on 256 V100; not run   |
| `large`      | 335M parameters                                           | not run                             |
| `quickstart` | 7M parameters on the French Bible, on a laptop            | as configs/bert.py's                |
| `tiny`       | seconds on a CPU, for tests: files given                  | none                                |
| `xnli`       | French XNLI, files given                                  | paper: base 82.5, large 85.7 (test) |
| `ner`        | named entities, CoNLL files given                         | paper: F1 89.1 (French Treebank)    |

Files in place of the Bible or TFDS: --config.data.train=FILE --config.data.validation=FILE, text, plain or gzip, or .tokens of
experiments.tokenize. Finetuning: xnli TSV of "sentence TAB sentence TAB label" or JSON lines, ner CoNLL's columns.
Other tasks: configs/bert.py has them, and takes any --init_from.
"""

from ml_collections import ConfigDict

from configs import base, bert, roberta


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant; ValueError: there is no such one."""
    variants = {"base": (base.wikipedia, "fr"), "large": (base.large, base.wikipedia, "fr")}
    variants |= {"quickstart": (bert.verses,), "tiny": (base.tiny,)}
    variants |= {"xnli": (finetuning, bert.tsv, bert.ENTAILMENT), "ner": (finetuning, bert.ner)}
    return base.varied(common(), variants, variant)


def common() -> ConfigDict:
    """Section 4.3, on Wikipedia (table 5): OSCAR is not among TFDS' own."""
    config = roberta.common()
    config.model.variant = "camembert"
    config.task.whole_words = True
    config.tokenizer.update(kind="unigram", vocab_size=32_005)
    config.data.languages = ("fr",)
    config.optimizer.update(learning_rate=7e-4, warmup_steps=10_000)
    config.training.steps = 100_000
    return config


def finetuning(config: ConfigDict, task, *options) -> None:
    """Section 4.4: the best of some rates and batches, up to ten epochs."""
    base.finetuning(config, learning_rate=2e-5, epochs=10.0, evaluations=10)
    task(config, *options)
