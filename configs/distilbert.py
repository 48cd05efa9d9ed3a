"""DistilBERT: "a distilled version of BERT: smaller, faster, cheaper and lighter" (Sanh et al. 2019,
https://arxiv.org/abs/1910.01108): half of BERT's layers, which learn from BERT.

Distillation: python -m experiments.pretrain --config=configs/distilbert.py:VARIANT --workdir=DIR --config.task.teacher=FOLDER
Finetuning: python -m experiments.finetune --config=configs/distilbert.py:VARIANT --workdir=DIR --init_from=FOLDER

| VARIANT       | what                                                         | expected time and score            |
|---------------|--------------------------------------------------------------|------------------------------------|
| `base`        | section 3: 6 layers of 768, from BERT base                   | paper: 90 hours on 8 V100; not run |
| `quickstart`  | 3 layers of 256 from a workdir of configs/bert.py:quickstart | not run                            |
| `tiny`        | seconds on a CPU, for tests: from configs/bert.py:tiny's     | none                               |
| `mnli` `sst2` | GLUE's MNLI and SST-2 from TFDS                              | paper: 82.2 and 91.3 (dev)         |
| `squad`       | SQuAD 1.1                                                    | paper: F1 85.8 (dev)               |

Files in place of the Bible or TFDS: --config.data.train=FILE --config.data.validation=FILE, text, plain or gzip, or .tokens of
experiments.tokenize. Finetuning: as in configs/bert.py.
Other tasks: configs/bert.py has them, and takes any --init_from.
"""

from ml_collections import ConfigDict

from configs import base, bert


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant; ValueError: there is no such one."""
    variants = {"base": (base.wikipedia,), "quickstart": (quickstart,), "tiny": (tiny,)}
    variants |= {"mnli": (finetuning, bert.glue, "mnli"), "sst2": (finetuning, bert.glue, "sst2")}
    variants |= {"squad": (finetuning, bert.squad, 3e-5)}
    return base.varied(common(), variants, variant)


def common() -> ConfigDict:
    """Section 3, on Wikipedia."""
    config = base.encoder("distilbert")
    config.model.update(layers=6, token_types=0, classifier_dropout=0.2)
    base.masked_lm(config)
    masked = {key: value for key, value in config.task.items() if key != "name"}
    base.distillation(config, "masked_lm", (0, 2, 4, 7, 9, 11), **masked)  # every second layer
    config.tokenizer.lowercase = True
    config.data.update(languages=("en",), unit="paragraph", chunk_words=350, batch_size=4096, max_length=512)
    config.optimizer.update(learning_rate=5e-4, warmup_steps=0, warmup_share=0.05, clip_norm=5.0)
    config.training.steps = 60_000
    return config


def quickstart(config: ConfigDict) -> None:
    """The English Bible verse by verse, as its teacher reads it: every second one of six layers of 256."""
    base.small(config)
    config.model.layers = 3
    config.task.layers = (0, 2, 4)


def tiny(config: ConfigDict) -> None:
    base.tiny(config)
    config.model.layers = 1
    config.task.layers = (0,)
    config.optimizer.warmup_steps = 0


def finetuning(config: ConfigDict, task, *options) -> None:
    """As BERT."""
    config.tokenizer.path = ""
    bert.finetuning(config, task, *options)
