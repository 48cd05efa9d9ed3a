"""ALBERT: "A Lite BERT for Self-supervised Learning of Language Representations" (Lan et al. 2020,
https://arxiv.org/abs/1909.11942): one set of parameters for all layers, narrow embeddings, and the order of two sentences.

Pretraining: python -m experiments.pretrain --config=configs/albert.py:VARIANT --workdir=DIR
Finetuning: python -m experiments.finetune --config=configs/albert.py:VARIANT --workdir=DIR --init_from=FOLDER

| VARIANT          | what                                                  | expected time and score               |
|------------------|-------------------------------------------------------|---------------------------------------|
| `base`           | table 1: 12M parameters, 125,000 steps of 4,096 × 512 | paper: MNLI 81.6 (table 2); not run   |
| `large`          | 18M                                                   | paper: MNLI 83.5; not run             |
| `xlarge`         | 60M                                                   | paper: MNLI 86.4; not run             |
| `xxlarge`        | 235M                                                  | paper: MNLI 88.0; not run             |
| `quickstart`     | 2M parameters on the English Bible, on a laptop       | about 20 minutes on two cores         |
| `tiny`           | seconds on a CPU, for tests: files given              | none                                  |
| `mnli` `sst2`    | GLUE's MNLI and SST-2 from TFDS                       | see above; paper, xxlarge: SST-2 95.2 |
| `squad` `squad2` | SQuAD 1.1 and 2.0                                     | paper, xxlarge: F1 94.1 and 88.1      |

Files in place of the Bible or TFDS: --config.data.train=FILE --config.data.validation=FILE, text, plain or gzip, or .tokens of
experiments.tokenize. Finetuning: as in configs/bert.py.
Other tasks: configs/bert.py has them, and takes any --init_from.
"""

from ml_collections import ConfigDict

from configs import base, bert


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant; ValueError: there is no such one."""
    variants = {"base": (base.wikipedia,), "large": (sized, 1024, 16, 24), "xlarge": (sized, 2048, 16, 24)}
    variants |= {"xxlarge": (sized, 4096, 64, 12), "quickstart": (quickstart,), "tiny": (tiny,)}
    variants |= {"mnli": (finetuning, bert.glue, "mnli"), "sst2": (finetuning, bert.glue, "sst2")}
    variants |= {"squad": (squad, 5e-5, False), "squad2": (squad, 3e-5, True)}
    return base.varied(common(), variants, variant)


def common() -> ConfigDict:
    """Table 1 and section 4.1, on Wikipedia: AdamW in place of LAMB, single tokens masked in place of n-grams."""
    config = base.encoder("albert")
    with config.unlocked():
        config.model.embedding_width = 128  # of a token's vector, before it is made as wide as the model
        config.model.groups = 1  # sets of parameters that the layers share
    config.model.update(activation="gelu_tanh", dropout=0.0, attention_dropout=0.0)
    base.masked_lm(config, "bert_pretraining")
    with config.task.unlocked():
        config.task.relation = "sentence_order"  # or "next_sentence"
    config.tokenizer.update(kind="unigram", vocab_size=30_000, lowercase=True)
    config.data.update(languages=("en",), unit="sentence", batching="rows", batch_size=4096)
    config.optimizer.update(learning_rate=1.76e-3, warmup_steps=3125)
    config.training.steps = 125_000
    return config


def sized(config: ConfigDict, width: int, num_heads: int, layers: int) -> None:
    """Table 1; xlarge's heads as in the published weights."""
    base.wikipedia(config)
    config.model.update(width=width, num_heads=num_heads, mlp_width=4 * width, layers=layers)


def quickstart(config: ConfigDict) -> None:
    """The English Bible in verses, their order to be told: 6 layers of 256 that share their parameters."""
    base.small(config)
    config.task.max_length = 128
    config.data.update(unit="sentence", max_length=0)
    config.optimizer.update(learning_rate=5e-4, warmup_steps=200)


def tiny(config: ConfigDict) -> None:
    base.tiny(config)
    config.model.embedding_width = 16
    config.task.max_length = 32
    config.data.unit = "sentence"


def finetuning(config: ConfigDict, task, *options) -> None:
    """Table 14: rates from 1e-5 to 5e-5, about three epochs. It has for MNLI 128 rows, rate 3e-5, for SST-2 32 and 1e-5."""
    base.finetuning(config, learning_rate=2e-5)
    task(config, *options)


def squad(config: ConfigDict, learning_rate: float, no_answers: bool) -> None:
    """Table 14: 48 rows."""
    finetuning(config, bert.squad, learning_rate, no_answers)
    config.data.batch_size = 48
