"""RoBERTa: "A Robustly Optimized BERT Pretraining Approach" (Liu et al. 2019, https://arxiv.org/abs/1907.11692): BERT masked
anew each time, without next sentences, on full rows, with byte-level tokens, in large batches.

Pretraining: python -m experiments.pretrain --config=configs/roberta.py:VARIANT --workdir=DIR
Finetuning: python -m experiments.finetune --config=configs/roberta.py:VARIANT --workdir=DIR --init_from=FOLDER

| VARIANT          | what                                                   | expected time and score              |
|------------------|--------------------------------------------------------|--------------------------------------|
| `base`           | table 9: 125M parameters, 500,000 steps of 8,192 × 512 | paper: 1,024 V100; not run           |
| `large`          | 355M parameters                                        | the same                             |
| `quickstart`     | 7M parameters on the English Bible, on a laptop        | as configs/bert.py's                 |
| `tiny`           | seconds on a CPU, for tests: files given               | none                                 |
| `mnli` `sst2`    | GLUE's MNLI and SST-2 from TFDS                        | paper, large: 90.2 and 96.4 (dev)    |
| `squad` `squad2` | SQuAD 1.1 and 2.0                                      | paper, large: F1 94.6 and 89.4 (dev) |

Files in place of the Bible or TFDS: --config.data.train=FILE --config.data.validation=FILE, text, plain or gzip, or .tokens of
experiments.tokenize. Finetuning: as in configs/bert.py.
Other tasks: configs/bert.py has them, and takes any --init_from.
"""

from ml_collections import ConfigDict

from configs import base, bert


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant; ValueError: there is no such one."""
    variants = {"base": (base.wikipedia,), "large": (large,), "quickstart": (bert.verses,), "tiny": (base.tiny,)}
    variants |= {part: (finetuning, part) for part in ("mnli", "sst2")} | {"squad": (squad,), "squad2": (squad, True)}
    return base.varied(common(), variants, variant)


def common() -> ConfigDict:
    """Table 9, on Wikipedia alone: most of the paper's 160 GB of text is not to be had. Its relatives begin here, too."""
    config = bert.common()
    config.model.update(variant="roberta", position_offset=2, max_length=514, token_types=1, norm_epsilon=1e-5)
    base.masked_lm(config)
    config.tokenizer.update(kind="byte_bpe", vocab_size=50_265, lowercase=False)
    config.data.update(unit="paragraph", chunk_words=350, batching="packing", batch_size=8192, max_length=512)
    config.optimizer.update(learning_rate=6e-4, warmup_steps=24_000, b2=0.98, clip_norm=0.0)
    config.training.steps = 500_000
    return config


def large(config: ConfigDict) -> None:
    base.large(config)
    config.optimizer.update(learning_rate=4e-4, warmup_steps=30_000)  # table 9


def finetuning(config: ConfigDict, part: str) -> None:
    """Table 10: 16 or 32 rows, rates from 1e-5 to 3e-5, ten epochs, 6 % of them warming up."""
    base.finetuning(config, learning_rate=2e-5, epochs=10.0, evaluations=10, warmup=0.06)
    config.optimizer.weight_decay = 0.1
    bert.glue(config, part)


def squad(config: ConfigDict, no_answers: bool = False) -> None:
    """Table 10: 48 rows, rate 1.5e-5, two epochs; of SQuAD 2.0 the same."""
    base.finetuning(config, learning_rate=1.5e-5, epochs=2.0, warmup=0.06)
    bert.squad(config, 1.5e-5, no_answers)
    config.data.batch_size = 48
