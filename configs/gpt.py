"""GPT-2: "Language Models are Unsupervised Multitask Learners" (Radford et al. 2019), and the first GPT, "Improving Language
Understanding by Generative Pre-Training" (Radford et al. 2018).

Pretraining: python -m experiments.pretrain --config=configs/gpt.py:VARIANT --workdir=DIR
Finetuning: python -m experiments.finetune --config=configs/gpt.py:VARIANT --workdir=DIR --init_from=FOLDER

| VARIANT      | what                                                               | expected time and score             |
|--------------|--------------------------------------------------------------------|-------------------------------------|
| `small`      | table 2: 124M parameters, 12 layers of 768                         | not run                             |
| `medium`     | 355M, 24 layers of 1,024                                           | not run                             |
| `large`      | 774M, 36 layers of 1,280                                           | not run                             |
| `xl`         | 1,558M, 48 layers of 1,600                                         | not run                             |
| `gpt`        | the first GPT: 117M, norms behind the sublayers, rows of 512       | paper: a month on 8 GPUs; not run   |
| `distilgpt2` | 6 layers of 768 from GPT-2 small: --config.task.teacher=FOLDER     | not run                             |
| `quickstart` | 10M parameters on the English Bible, chapter by chapter            | not run                             |
| `books`      | 10M parameters on text files that are given                        | 20 min on two cores: 1.98 bits/byte |
| `tiny`       | seconds on a CPU, for tests: files given                           | none                                |

WebText was never published: the large ones read Wikipedia. Files in place of it: --config.data.train=FILES
--config.data.validation=FILES, text, plain or gzip, or JSON lines with a key text. For texts of any size experiments.tokenize
makes token files: --config.data.train=A.tokens,B.tokens --config.tokenizer.path=TOKENIZER.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(variant: str = "small") -> ConfigDict:
    """The config of a variant; ValueError: there is no such one."""
    variants = {"small": (base.wikipedia,), "medium": (size, 24, 1024, 3e-4), "large": (size, 36, 1280, 2.5e-4)}
    variants |= {"xl": (size, 48, 1600, 2e-4, 25), "gpt": (first,), "distilgpt2": (distilgpt2,)}
    variants |= {"quickstart": (quickstart,), "books": (books,), "tiny": (tiny,)}
    return base.varied(common(), variants, variant)


def common() -> ConfigDict:
    """GPT-2 small. The paper does not say how it was trained: rates and batches are those of GPT-3 (Brown et al. 2020, table
    2.1 and appendix B) at these sizes."""
    config = base.decoder("gpt")
    with config.unlocked():
        config.model.variant = "gpt2"  # or "openai-gpt", the first GPT
    config.model.update(max_length=1024, activation="gelu_tanh")
    return config


def size(config: ConfigDict, layers: int, width: int, learning_rate: float, heads: int = 0) -> None:
    """A larger one of table 2, with heads of 64."""
    base.wikipedia(config)
    config.model.update(layers=layers, width=width, mlp_width=4 * width, num_heads=heads or width // 64)
    config.optimizer.learning_rate = learning_rate


def first(config: ConfigDict) -> None:
    """Section 4.1: 64 rows of 512, 100 epochs of BookCorpus, of which here a hundred thousand updates on Wikipedia."""
    base.wikipedia(config)
    config.model.update(variant="openai-gpt", max_length=512)
    config.tokenizer.vocab_size = 40_478
    config.data.update(batch_size=64, lengths={"tokens": 512})
    config.optimizer.update(learning_rate=2.5e-4, end_factor=0.0, b2=0.999, weight_decay=0.01)
    config.training.steps = 100_000


def distilgpt2(config: ConfigDict) -> None:
    """DistilBERT's recipe (Sanh et al. 2019) for GPT-2 small: every second layer to start with."""
    base.wikipedia(config)
    config.model.layers = 6
    base.distillation(config, "causal_lm", (0, 2, 4, 7, 9, 11))
    config.optimizer.update(learning_rate=2.5e-4, clip_norm=5.0)
    config.training.steps = 60_000


def quickstart(config: ConfigDict) -> None:
    """Six layers of 320 on the English Bible, of which every 31st chapter is kept for validation."""
    base.laptop(config)
    config.model.update(layers=6, width=320, num_heads=5, mlp_width=1280, max_length=256)
    config.tokenizer.vocab_size = 8000
    config.data.update(source="bible_text", batch_size=16, lengths={"tokens": 256})
    config.optimizer.update(learning_rate=1e-3, warmup_steps=100)
    config.training.update(steps=1500, log_every=50, eval_every=250, checkpoint_every=250)


def books(config: ConfigDict) -> None:
    """`quickstart`'s model on text files: --config.data.train=a.txt,b.txt.gz --config.data.validation=c.txt. Each file is a
    document; where a file has several, --config.data.unit=document --config.data.begins="# Title:" say."""
    quickstart(config)
    config.model.update(dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0)
    config.data.update(source="text", unit="file")
    config.optimizer.update(learning_rate=2e-3, warmup_steps=60)
    config.training.update(steps=560, log_every=20, eval_every=280, checkpoint_every=140)


def tiny(config: ConfigDict) -> None:
    base.tiny(config)
    config.model.max_length = 64
    config.data.update(unit="document", max_length=0)
