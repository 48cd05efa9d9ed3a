"""ViT: "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale" (Dosovitskiy et al. 2021).

    python -m experiments.pretrain --config=configs/vit.py:digits --workdir=/tmp/digits
    python -m experiments.finetune --config=configs/vit.py:finetune --workdir=/tmp/pets --init_from=FOLDER|WORKDIR
        --config.data.size=384 --config.data.train=DIR --config.data.validation=DIR

| VARIANT          | what                                                          | expected time and score    |
|------------------|---------------------------------------------------------------|----------------------------|
| `digits`         | MNIST's first 5,000 (`pip install transformers_jax[images]`)  | 8,000 steps: 97.3 %        |
| `folders`        | class folders of small photographs, given                     | not run to its end         |
| `finetune`       | pretrained weights, also at another data.size: appendix B.1.1 | not run                    |
| `base_16`        | table 1: ViT-B, patches of 16 × 16                            | paper: top-1 77.9; not run |
| `base_32`        | patches of 32 × 32                                            | not run                    |
| `large_16`       | ViT-L                                                         | paper: 76.5; not run       |
| `large_32`       | ViT-L, patches of 32 × 32                                     | not run                    |
| `huge_14`        | ViT-H                                                         | not run                    |
| `hybrid`         | a ResNet-50 below ViT-B/16                                    | not run                    |
| `deit_tiny`      | size and recipe of Touvron et al. 2021                        | paper: 72.2; not run       |
| `deit_small`     | the same                                                      | paper: 79.8; not run       |
| `deit_base`      | the same                                                      | paper: 81.8; not run       |
| `distilled`      | DeiT-Ti beside --config.task.teacher=FOLDER (its table 3)     | not run                    |
| `tiny`           | seconds on a CPU, for tests: class folders given              | none                       |
| `tiny_distilled` | the same beside a teacher                                     | none                       |

The recipe is that for ImageNet alone (table 3: AdamW at 3e-3, weight decay 0.3, 300 epochs of batches of 4,096); scores are
those of table 5, at 384.

Images: --config.data.train=DIR --config.data.validation=DIR, a folder with one for each class, train/cat/1.jpg; or lists,
A.csv with columns path and label (or labels, a|b). Splits that are not named are not used.
"""

from ml_collections import ConfigDict

from configs import base

LARGE = dict(width=1024, num_heads=16, mlp_width=4096, layers=24)
HUGE = dict(width=1280, num_heads=16, mlp_width=5120, layers=32, patch_size=14)


def paper(config: ConfigDict, **model) -> None:
    """Table 3's column ImageNet; warmup of 10,000 steps."""
    base.imagenet(config, batch_size=4096, epochs=300, warmup=0)
    config.model.update(dict(dropout=0.1, attention_dropout=0.0) | model)
    config.optimizer.update(learning_rate=3e-3, weight_decay=0.3, warmup_steps=10_000)


def deit(config: ConfigDict, **model) -> None:
    """Touvron et al. 2021, table 9, without repeated augmentation."""
    base.imagenet(config, batch_size=1024, epochs=300, warmup=5)
    base.deit(config, drop_path=0.1, **model)
    config.optimizer.update(learning_rate=1e-3, weight_decay=0.05, clip_norm=0.0)


def digits(config: ConfigDict) -> None:
    """Mean pooling, with which small models learn sooner (Beyer et al. 2022, "Better plain ViT baselines for ImageNet-1k")."""
    base.few_digits(config, steps=8000)
    config.model.update(width=96, num_heads=3, mlp_width=192, layers=4, patch_size=4, pooling="mean", drop_path=0.1)
    config.data.update(crop="inception", crop_scale=(0.7, 1.0), crop_ratio=(0.8, 1.25))
    config.optimizer.update(learning_rate=2e-3)


def distilled(config: ConfigDict) -> None:
    """DeiT-Ti beside a teacher, hard distillation without its token (table 3): --config.task.teacher=FOLDER|WORKDIR."""
    deit(config, width=192, num_heads=3, mlp_width=768)
    base.image_distillation(config)


def tiny_distilled(config: ConfigDict) -> None:
    tiny(config)
    base.image_distillation(config)


def folders(config: ConfigDict) -> None:
    base.photos(config)
    config.model.update(width=192, num_heads=3, mlp_width=384, layers=6, patch_size=4, drop_path=0.1)
    config.data.update(randaugment_ops=1)


def finetune(config: ConfigDict) -> None:
    """Appendix B.1.1: SGD with momentum and without weight decay. A batch is an eighth of the paper's, and so is the rate."""
    base.image_finetuning(config)
    config.optimizer.update(name="sgd", momentum=0.9, learning_rate=0.03 / 8)


def tiny(config: ConfigDict) -> None:
    base.laptop(config)
    base.tiny_images(config)
    config.model.update(width=16, num_heads=2, mlp_width=32, layers=2, patch_size=4)


VARIANTS = {
    "base_16": (paper,),
    "base_32": (lambda config: paper(config, patch_size=32),),
    "large_16": (lambda config: paper(config, **LARGE),),
    "large_32": (lambda config: paper(config, patch_size=32, **LARGE),),
    "huge_14": (lambda config: paper(config, **HUGE),),
    "hybrid": (lambda config: paper(config, stem="resnet"),),
    "deit_tiny": (lambda config: deit(config, width=192, num_heads=3, mlp_width=768),),
    "deit_small": (lambda config: deit(config, width=384, num_heads=6, mlp_width=1536),),
    "deit_base": (deit,),
    "distilled": (distilled,),
    "digits": (digits,),
    "folders": (folders,),
    "finetune": (finetune,),
    "tiny": (tiny,),
    "tiny_distilled": (tiny_distilled,),
}


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.vision("vit")
    with config.unlocked():
        config.model.width = 768  # of a position's vector
        config.model.num_heads = 12  # a divisor of it
        config.model.mlp_width = 3072  # inside the feed-forward
        config.model.layers = 12
        config.model.patch_size = 16  # pixels of a patch's side
        config.model.positions = "learned"  # interpolated at other sizes; or "sinusoidal_2d", or "none"
        config.model.pooling = "class"  # what is read for the label: a class token, or the "mean" of the patches
        config.model.stem = "patches"  # or "resnet": positions of a ResNet take the place of patches
        config.model.stem_depths = (3, 4, 9)  # of its stages
        config.model.stem_width = 64
        config.model.attention_dropout = 0.0
        config.model.layer_scale = 0.0  # initial scale of each branch's channels; 0: none
        config.model.genome = ""  # other blocks: a genome's JSON file, text or name
        config.model.genome_unit = 0  # width of one relative output dimension of it; 0 is width // 2
    return base.varied(config, VARIANTS, variant).lock()
