"""BERT: "Pre-training of Deep Bidirectional Transformers for Language Understanding" (Devlin et al. 2019,
https://arxiv.org/abs/1810.04805).

Pretraining: python -m experiments.pretrain --config=configs/bert.py:VARIANT --workdir=DIR

| VARIANT      | what                                                        | expected time and score                 |
|--------------|-------------------------------------------------------------|-----------------------------------------|
| `base`       | section 3: 12 layers of 768, a million steps of 256 × 512   | paper: 4 days on 16 TPU chips; not run  |
| `large`      | 24 layers of 1,024                                          | paper: 4 days on 64 TPU chips; not run  |
| `quickstart` | 7M parameters on the English Bible, on a laptop             | 6 to 40 minutes, perplexity 27 to 29    |
| `tiny`       | seconds on a CPU, for tests: files given                    | none                                    |

Finetuning, section 4, three epochs each: python -m experiments.finetune --config=configs/bert.py:VARIANT --workdir=DIR
--init_from=DIR, a folder of Hugging Face's or another workdir, whatever the architecture.

| VARIANT     | what                                                          | paper, base and large            |
|-------------|---------------------------------------------------------------|----------------------------------|
| `mnli` `qqp` `qnli` `mrpc` `rte` `wnli` | parts of GLUE, from TFDS: pairs   | table 1                          |
| `sst2` `cola` `stsb` | others: single sentences; similarity                 | table 1                          |
| `glue`      | all of table 1, one after the other, and the table            | average 79.6 and 82.1 (test)     |
| `squad`     | SQuAD 1.1, from TFDS or files                                 | F1 88.5 and 90.9 (dev)           |
| `squad2`    | SQuAD 2.0                                                     | large: F1 81.9 (dev)             |
| `swag`      | SWAG, from its files, train.csv and val.csv                   | accuracy 81.6 and 86.6 (dev)     |
| `conll2003` | named entities, from TFDS                                     | F1 92.4 and 92.8 (test)          |
| `ner`       | the same from CoNLL files, of any labels                      | none                             |
| `sentences` | a label for each line of "sentence TAB label"                 | see benchmarks/README.md         |
| `nli`       | a label for each pair, as SICK's files have them              | see benchmarks/README.md         |
| `sts`       | a number for each pair, of "score TAB sentence TAB sentence"  | see benchmarks/README.md         |

--config.data.train=FILE and .validation=FILE (.test=FILE) take files in place of TFDS; splits that are not named are not used,
and labels are those of the files. Their forms: pretraining text, or .tokens; squad SQuAD's JSON; ner and conll2003 CoNLL's
columns; swag SWAG's CSV; sentences and GLUE's parts TSV of "sentence [TAB sentence] TAB label"; stsb and sts "score TAB
sentence TAB sentence"; nli TSV with SICK's header. All but pretraining take JSON lines, too, A.jsonl, with the keys that
transformers_jax/data/sources.py lists, or SWAG's. --config.finetuning.trainable=head leaves the encoder as it is.
"""

from ml_collections import ConfigDict

from configs import base

GLUE = {  # labels as TFDS has them, tokens, metrics
    "mnli": (("entailment", "neutral", "contradiction"), 128),
    "qqp": (("not_duplicate", "duplicate"), 128, ("f1", "accuracy")),
    "qnli": (("entailment", "not_entailment"), 128),
    "sst2": (("negative", "positive"), 64),
    "cola": (("unacceptable", "acceptable"), 64, ("matthews", "accuracy")),
    "stsb": ((), 128, ("spearman", "pearson")),
    "mrpc": (("not_equivalent", "equivalent"), 128, ("f1", "accuracy")),
    "rte": (("entailment", "not_entailment"), 256),
    "wnli": (("not_entailment", "entailment"), 128),
}
ENTITIES = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
ENTAILMENT = GLUE["mnli"][0]


def get_config(variant: str = "base") -> ConfigDict:
    """The config of a variant; ValueError: there is no such one."""
    variants = {"base": (base.wikipedia,), "large": (base.large,), "quickstart": (quickstart,), "tiny": (tiny,)}
    variants |= {part: (finetuning, glue, part) for part in GLUE} | {"glue": (sweep,)}
    variants |= {"squad": (finetuning, squad), "squad2": (squad2,), "swag": (swag,)}
    variants |= {"conll2003": (conll2003,), "ner": (finetuning, ner)}
    variants |= {"sentences": (finetuning, tsv, ("0", "1"), ("first", "label"), 64)}
    variants |= {"nli": (finetuning, sick), "sts": (sts,)}
    return base.varied(common(), variants, variant)


def common() -> ConfigDict:
    """The paper's base model and its pretraining; its relatives begin here, too."""
    config = base.encoder("bert")
    with config.unlocked():
        config.model.variant = "bert"  # or "roberta", "camembert", "xlm-roberta": names in foreign files, and a dropout
        config.model.position_offset = 0  # row of position 0
    base.masked_lm(config, "bert_pretraining")
    config.task.masking = "static"
    config.tokenizer.lowercase = True
    config.data.update(languages=("en",), unit="sentence", batching="rows")
    return config


# -- pretraining -------------------------------------------------------------------------------------------------------


def quickstart(config: ConfigDict) -> None:
    """Masked anew each time, packed rows, and the next sentence is not told."""
    base.masked_lm(config)
    config.task.update(max_length=0, whole_words=True)
    config.data.batching = "packing"
    config.optimizer.b2 = 0.98
    verses(config)


def verses(config: ConfigDict) -> None:
    """The Bible verse by verse: 6 layers of 256, packed rows.

    What is not the paper's lets so small a model learn from so little text: short texts, as each position's vector is
    then seen often; twice as many masks; no dropout.
    """
    base.small(config)
    config.model.update(dropout=0.0, attention_dropout=0.0, max_mask_rate=0.4)
    config.task.mask_rate = 0.3
    config.data.batch_size = 8
    config.optimizer.update(learning_rate=1e-3, warmup_steps=200)
    config.training.update(steps=2500, eval_every=500, checkpoint_every=500)


def tiny(config: ConfigDict) -> None:
    """Masked language model and next sentences."""
    base.tiny(config)
    config.task.max_length = 32
    config.data.update(unit="sentence", max_length=0)


# -- finetuning --------------------------------------------------------------------------------------------------------


def finetuning(config: ConfigDict, task, *options) -> None:
    """Appendix A.3: 16 or 32 rows, rates from 2e-5 to 5e-5, three epochs, dropout 0.1."""
    base.finetuning(config, learning_rate=3e-5)
    task(config, *options)


def glue(config: ConfigDict, part: str) -> None:
    """Section 4.1. Labels of GLUE's test sets are not public: `test` is the validation set, of MNLI the mismatched one."""
    base.classification(config, *GLUE[part])
    parts = ("validation_matched", "validation_mismatched") if part == "mnli" else ("validation",)
    base.splits(config, "glue", f"glue/{part}", "train", *parts)


def sweep(config: ConfigDict) -> None:
    """Table 1: --config.sweep=('sst2','rte') takes some of it. Other keys that are given hold for all parts."""
    finetuning(config, glue, "cola")
    config.sweep = tuple(part for part in GLUE if part != "wnli")


def squad(config: ConfigDict, learning_rate: float = 5e-5, no_answers: bool = False) -> None:
    """Section 4.2: SQuAD 1.1, or 2.0, where some questions have no answer."""
    base.spans(config, no_answers)
    base.splits(config, "squad", "squad/v2.0" if no_answers else "squad/v1.1", "train", "validation")
    config.optimizer.learning_rate = learning_rate


def squad2(config: ConfigDict) -> None:
    """Section 4.3: 48 rows, rate 5e-5, two epochs."""
    finetuning(config, squad, 5e-5, True)
    config.data.batch_size = 48
    config.finetuning.epochs = 2.0


def swag(config: ConfigDict) -> None:
    """Section 4.4: four choices a row, 16 rows, rate 2e-5, three epochs; files train.csv and val.csv of its repository."""
    finetuning(config, base.labelled, "multiple_choice", 128)
    with config.task.unlocked():
        config.task.choices = 4  # of each example
    config.data.update(source="swag", batch_size=16)
    config.optimizer.learning_rate = 2e-5


def ner(config: ConfigDict) -> None:
    """Section 5.3 on files in CoNLL's columns: --config.task.labels names their tags."""
    base.labelled(config, "tagging", 128, labels=ENTITIES)
    config.data.source = "conll"
    config.optimizer.learning_rate = 5e-5


def conll2003(config: ConfigDict) -> None:
    """Section 5.3 and table 7."""
    finetuning(config, ner)
    base.splits(config, "conll", "conll2003", "train", "dev", "test")


def tsv(config: ConfigDict, labels: tuple, columns: tuple = ("first", "second", "label"), tokens: int = 128) -> None:
    """A label for a sentence or a pair, from TSV files: --config.task.labels names the labels."""
    base.classification(config, labels, tokens)
    config.data.update(source="tsv", columns=columns)


def sick(config: ConfigDict) -> None:
    """Files as SICK has them (Marelli et al. 2014), columns by the names in their first line."""
    columns = ("first=sentence_A", "second=sentence_B", "label=entailment_judgment")
    tsv(config, ("CONTRADICTION", "ENTAILMENT", "NEUTRAL"), columns)
    config.data.header = True


def sts(config: ConfigDict) -> None:
    """Files of "score TAB sentence TAB sentence"."""
    finetuning(config, tsv, (), ("score", "first", "second"))
    config.task.metrics = ("spearman", "pearson")
