"""Sentence-BERT: "Sentence Embeddings using Siamese BERT-Networks" (Reimers and Gurevych 2019,
https://arxiv.org/abs/1908.10084): an encoder finetuned so that near vectors mean the same.

python -m experiments.finetune --config=configs/sentence_bert.py:VARIANT --workdir=DIR --init_from=FOLDER
python -m experiments.embed --init_from=DIR < lines

| VARIANT | what                                                                    | expected score                         |
|---------|-------------------------------------------------------------------------|----------------------------------------|
| `nli`   | classification, section 3: MNLI from TFDS, or files                     | paper, base: STS-B Spearman 77.0       |
| `sick`  | the same on SICK's files                                                | none                                   |
| `sts`   | regression, section 4.2, on files of "score TAB sentence TAB sentence"  | paper, base: STS-B Spearman 84.7       |
| `stsb`  | the same on STS-B from TFDS                                             | the same                               |
| `pairs` | multiple negatives, on files of "sentence TAB sentence"                 | none                                   |

Files: --config.data.train=FILE --config.data.validation=FILE; nli TSV of "sentence TAB sentence TAB label", sick with SICK's
header, the others as above; or JSON lines with the keys first, second, and label or score. Splits that are not named are not
used.
"""

from ml_collections import ConfigDict

from configs import base, bert


def get_config(variant: str = "nli") -> ConfigDict:
    """The config of a variant; ValueError: there is no such one."""
    variants = {"nli": (nli,), "sick": (sick,), "sts": (sts,), "stsb": (stsb,), "pairs": (pairs,)}
    return base.varied(bert.common(), variants, variant)


def similarity(config: ConfigDict, objective: str, **others) -> None:
    """Section 3.1: pairs of sentences of up to 128 tokens each, 16 rows, rate 2e-5, one epoch, a tenth of it warming up."""
    base.finetuning(config, learning_rate=2e-5, epochs=1.0)
    config.data.update(source="tsv", languages=(), unit="line", batching="rows", batch_size=16, tokens_per_batch=131_072)
    base.labelled(config, "similarity", 128, objective=objective, **others)
    with config.task.unlocked():
        config.task.pooling = "mean"  # of the states; or "first", "max", "mean_sqrt_len"


def nli(config: ConfigDict) -> None:
    """Section 3.1; SNLI, the paper's other half, may be given as files: --config.data.source=tsv."""
    similarity(config, "classification", labels=bert.ENTAILMENT)
    base.splits(config, "glue", "glue/mnli", "train", "validation_matched", "validation_mismatched")


def sick(config: ConfigDict) -> None:
    """Files as SICK has them (Marelli et al. 2014), columns by the names in their first line."""
    similarity(config, "classification", labels=("CONTRADICTION", "ENTAILMENT", "NEUTRAL"))
    config.data.columns = ("first=sentence_A", "second=sentence_B", "label=entailment_judgment")
    config.data.header = True


def sts(config: ConfigDict) -> None:
    """Section 4.2, four epochs."""
    similarity(config, "regression", highest=5.0)  # the best score in the data
    config.data.columns = ("score", "first", "second")
    config.finetuning.epochs = 4.0


def stsb(config: ConfigDict) -> None:
    """Section 4.2 on GLUE's STS-B."""
    sts(config)
    base.splits(config, "glue", "glue/stsb", "train", "validation")
    config.data.columns = ()


def pairs(config: ConfigDict) -> None:
    """Henderson et al. 2017: of all second sentences of a batch the right one is nearest; 64 rows."""
    similarity(config, "multiple_negatives", scale=20.0)  # cosines times it are the logits
    config.data.update(columns=("first", "second"), batch_size=64)
