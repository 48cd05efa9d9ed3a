"""ConvNeXt: "A ConvNet for the 2020s" (Liu et al. 2022).

    python -m experiments.pretrain --config=configs/convnext.py:digits --workdir=/tmp/digits
    python -m experiments.finetune --config=configs/convnext.py:finetune --workdir=/tmp/pets --init_from=FOLDER|WORKDIR
        --config.data.train=DIR --config.data.validation=DIR

| VARIANT          | what                                                         | expected time and score        |
|------------------|--------------------------------------------------------------|--------------------------------|
| `digits`         | MNIST's first 5,000 (`pip install transformers_jax[images]`) | 4,000 steps: 98.5 %            |
| `folders`        | class folders of small photographs, given                    | not run                        |
| `finetune`       | pretrained weights, lower layers more slowly: table 6        | not run                        |
| `imagenet_tiny`  | table 5's recipe, 300 epochs of batches of 4,096             | paper: top-1 82.1; not run     |
| `imagenet_small` | the same                                                     | paper: 83.1; not run           |
| `imagenet_base`  | the same                                                     | paper: 83.8; not run           |
| `imagenet_large` | the same                                                     | paper: 84.3; not run           |
| `tiny`           | seconds on a CPU, for tests: class folders given             | none                           |

The paper's recipe is that of appendix A.1 (AdamW at 4e-3, weight decay 0.05, weights averaged with a decay of 0.9999).

Images: --config.data.train=DIR --config.data.validation=DIR, a folder with one for each class, train/cat/1.jpg; or lists,
A.csv with columns path and label (or labels, a|b). Splits that are not named are not used.
"""

from ml_collections import ConfigDict

from configs import base

DEEP = (3, 3, 27, 3)


def paper(config: ConfigDict, **model) -> None:
    base.imagenet(config, batch_size=4096, epochs=300, warmup=20)
    base.deit(config, **model)
    config.optimizer.update(learning_rate=4e-3, weight_decay=0.05, clip_norm=0.0)
    config.training.ema = 0.9999


def digits(config: ConfigDict) -> None:
    base.few_digits(config, steps=4000)
    config.model.update(widths=(32, 64), depths=(2, 2), patch_size=2, layer_scale=0.0)
    config.optimizer.update(learning_rate=3e-3)


def folders(config: ConfigDict) -> None:
    base.photos(config)
    config.model.update(widths=(48, 96, 192), depths=(2, 2, 2), patch_size=2, layer_scale=0.0, drop_path=0.1)
    config.data.update(randaugment_ops=1)


def finetune(config: ConfigDict) -> None:
    """Appendix A.1, table 6. A batch is an eighth of the paper's; under Adam the rate is divided by the root of that."""
    base.image_finetuning(config)
    config.optimizer.update(learning_rate=5e-5 / 8**0.5, weight_decay=1e-8, layer_decay=0.8, clip_norm=0.0)
    config.task.label_smoothing = 0.1


def tiny(config: ConfigDict) -> None:
    base.laptop(config)
    base.tiny_images(config)
    config.model.update(widths=(8, 12), depths=(1, 2), patch_size=2, layer_scale=0.5)


VARIANTS = {
    "imagenet_tiny": (lambda config: paper(config, drop_path=0.1),),
    "imagenet_small": (lambda config: paper(config, drop_path=0.4, depths=DEEP),),
    "imagenet_base": (lambda config: paper(config, drop_path=0.5, depths=DEEP, widths=(128, 256, 512, 1024)),),
    "imagenet_large": (lambda config: paper(config, drop_path=0.5, depths=DEEP, widths=(192, 384, 768, 1536)),),
    "digits": (digits,),
    "folders": (folders,),
    "finetune": (finetune,),
    "tiny": (tiny,),
}


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.vision("convnext")
    base.without(config.model, "attention")
    with config.unlocked():
        config.model.widths = (96, 192, 384, 768)  # channels of the stages
        config.model.depths = (3, 3, 9, 3)  # their blocks
        config.model.patch_size = 4  # pixels of a side of the first convolution, which moves by its own width
        config.model.layer_scale = 1e-6  # initial scale of each branch's channels; 0: none
    return base.varied(config, VARIANTS, variant).lock()
