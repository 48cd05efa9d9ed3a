"""Swin: "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (Liu et al. 2021).

    python -m experiments.pretrain --config=configs/swin.py:digits --workdir=/tmp/digits
    python -m experiments.finetune --config=configs/swin.py:finetune --workdir=/tmp/pets --init_from=FOLDER|WORKDIR
        --config.data.train=DIR --config.data.validation=DIR

| VARIANT          | what                                                         | expected time and score    |
|------------------|--------------------------------------------------------------|----------------------------|
| `digits`         | MNIST's first 5,000 (`pip install transformers_jax[images]`) | not run to its end         |
| `folders`        | class folders of small photographs, given                    | not run to its end         |
| `finetune`       | pretrained weights: appendix A2.1                            | not run                    |
| `imagenet_tiny`  | 300 epochs of batches of 1,024                               | paper: top-1 81.3; not run |
| `imagenet_small` | the same                                                     | paper: 83.0; not run       |
| `imagenet_base`  | the same                                                     | paper: 83.5; not run       |
| `tiny`           | seconds on a CPU, for tests: class folders given             | none                       |

The paper's recipe is that of appendix A2.1 (AdamW at 1e-3, weight decay 0.05), its scores those of table 1a.

Images: --config.data.train=DIR --config.data.validation=DIR, a folder with one for each class, train/cat/1.jpg; or lists,
A.csv with columns path and label (or labels, a|b). Splits that are not named are not used.
"""

from ml_collections import ConfigDict

from configs import base

DEEP = (2, 2, 18, 2)


def paper(config: ConfigDict, **model) -> None:
    base.imagenet(config, batch_size=1024, epochs=300, warmup=20)
    base.deit(config, **model)
    config.optimizer.update(learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0)


def digits(config: ConfigDict) -> None:
    base.few_digits(config, steps=2000)
    config.model.update(width=48, depths=(2, 4), num_heads=(2, 4), window=7, patch_size=2, mlp_ratio=2.0, drop_path=0.1)


def folders(config: ConfigDict) -> None:
    base.photos(config)
    config.model.update(width=48, depths=(2, 2, 4), num_heads=(2, 4, 8), window=4, patch_size=2, drop_path=0.1)
    config.data.update(randaugment_ops=1)


def finetune(config: ConfigDict) -> None:
    """Appendix A2.1. A batch is a sixteenth of the paper's; under Adam the rate is divided by the root of that."""
    base.image_finetuning(config)
    config.optimizer.update(learning_rate=1e-5 / 4, weight_decay=1e-8)
    config.task.label_smoothing = 0.1


def tiny(config: ConfigDict) -> None:
    base.laptop(config)
    base.tiny_images(config)
    config.model.update(width=8, depths=(2, 1), num_heads=(1, 2), window=4, patch_size=2)


VARIANTS = {
    "imagenet_tiny": (lambda config: paper(config, drop_path=0.2),),
    "imagenet_small": (lambda config: paper(config, drop_path=0.3, depths=DEEP),),
    "imagenet_base": (lambda config: paper(config, drop_path=0.5, depths=DEEP, width=128, num_heads=(4, 8, 16, 32)),),
    "digits": (digits,),
    "folders": (folders,),
    "finetune": (finetune,),
    "tiny": (tiny,),
}


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.vision("swin")
    with config.unlocked():
        config.model.width = 96  # channels of the first stage; each further one has twice as many
        config.model.depths = (2, 2, 6, 2)  # blocks of the stages
        config.model.num_heads = (3, 6, 12, 24)
        config.model.window = 7  # positions of its side
        config.model.mlp_ratio = 4.0  # how many times wider the feed-forward is inside
        config.model.patch_size = 4  # pixels of a patch's side
        config.model.absolute_positions = False  # learned ones are added to the patches, too
        config.model.attention_dropout = 0.0
    return base.varied(config, VARIANTS, variant).lock()
