"""XLM-RoBERTa: "Unsupervised Cross-lingual Representation Learning at Scale" (Conneau et al. 2020,
https://arxiv.org/abs/1911.02116): RoBERTa in a hundred languages, the small ones drawn more often than they are written.

Pretraining: python -m experiments.pretrain --config=configs/xlm_roberta.py:VARIANT --workdir=DIR
Finetuning: python -m experiments.finetune --config=configs/xlm_roberta.py:VARIANT --workdir=DIR --init_from=FOLDER

| VARIANT      | what                                                         | expected time and score                 |
|--------------|--------------------------------------------------------------|-----------------------------------------|
| `base`       | section 3.3: 278M parameters; a file of text a language      | paper: 500 V100; not run                |
| `large`      | 560M parameters                                              | the same                                |
| `quickstart` | 7M parameters on the Bible in all its languages, on a laptop | as configs/bert.py's                    |
| `tiny`       | seconds on a CPU, for tests: files given                     | none                                    |
| `xnli`       | XNLI, files given: train on English, test on any language    | paper: base 76.2, large 80.9 (mean)     |
| `ner`        | named entities, CoNLL files given                            | paper, large: F1 92.9 (en), 90.0 (mean) |

Files: --config.data.train=en.txt,fr.txt,… names a text file a language; --config.data.smoothing is the paper's α. Finetuning:
xnli TSV of "sentence TAB sentence TAB label" or JSON lines, ner CoNLL's columns.
Other tasks: configs/bert.py has them, and takes any --init_from.
"""

from ml_collections import ConfigDict

from configs import base, bert, roberta


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant; ValueError: there is no such one."""
    variants = {"base": (files,), "large": (base.large, files), "quickstart": (bert.verses,), "tiny": (base.tiny,)}
    variants |= {"xnli": (finetuning, bert.tsv, bert.ENTAILMENT), "ner": (finetuning, bert.ner)}
    return base.varied(common(), variants, variant)


def common() -> ConfigDict:
    """Section 3: α = 0.3."""
    config = roberta.common()
    config.model.variant = "xlm-roberta"
    config.tokenizer.update(kind="unigram", vocab_size=250_002)
    config.data.update(languages=("all",), smoothing=0.3)
    config.training.steps = 1_500_000
    return config


def files(config: ConfigDict) -> None:
    """The paper's two and a half terabytes of text (CC-100) are given as files."""
    config.data.update(train="en.txt,fr.txt", validation="en.validation.txt,fr.validation.txt")


def finetuning(config: ConfigDict, task, *options) -> None:
    """32 rows, three epochs."""
    base.finetuning(config, learning_rate=2e-5)
    task(config, *options)
