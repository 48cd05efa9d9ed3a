"""SegFormer: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers" (Xie et al. 2021).

    python -m experiments.pretrain --config=configs/segformer.py:camvid --workdir=/tmp/camvid
    python -m experiments.predict --workdir=/tmp/camvid --out=/tmp/masks photos/*.jpg

| VARIANT                       | what                                                  | expected time and score   |
|-------------------------------|-------------------------------------------------------|---------------------------|
| `camvid`                      | street scenes (Brostow et al. 2009), from data/camvid | 3,600 steps: IoU 43.8 %   |
| `b0` `b1` `b2` `b3` `b4` `b5` | the paper's sizes, ADE20K (section 4.1)               | not run                   |
| `convnext` `swin`             | heads on the pyramids of those models, ADE20K         | not run                   |
| `tiny`                        | seconds on a CPU, for tests: files given              | none                      |

All but `camvid` begin with a model that was pretrained on ImageNet: experiments.finetune --init_from=FOLDER.

Images: --config.data.train=IMAGES,MASKS --config.data.validation=IMAGES,MASKS, a folder of images and one of PNG masks of the
same names, whose numbers are the classes; --config.task.labels=a,b,c names them. Splits that are not named are not used.
"""

from ml_collections import ConfigDict

from configs import base

CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "cyclist")
STAGES = ("reductions", "mlp_ratios", "patch_sizes", "strides")
WIDE = dict(widths=(64, 128, 320, 512))
DEEP = WIDE | dict(decoder_width=768)


def sized(config: ConfigDict, **fields) -> None:
    """One of table 6's sizes."""
    config.model.update(fields)


def convnext(config: ConfigDict) -> None:
    """ConvNeXt-T (Liu et al. 2022, section 2) with a head of linear maps on its pyramid."""
    base.without(config.model, *STAGES, "num_heads", "dropout", "attention_dropout")
    with config.model.unlocked():
        config.model.update(name="convnext", widths=(96, 192, 384, 768), depths=(3, 3, 9, 3), layer_scale=1e-6)


def swin(config: ConfigDict) -> None:
    """Swin-T (Liu et al. 2021, section 3.3) with the same head."""
    base.without(config.model, *STAGES, "widths")
    with config.model.unlocked():
        config.model.update(name="swin", width=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window=7)


def camvid(config: ConfigDict) -> None:
    """A smaller B0, in float32 and without a scan, whose decoder is as wide as its third stage."""
    base.laptop(config)
    config.model.update(widths=(24, 48, 96, 160), num_heads=(1, 2, 3, 5), decoder_width=96, drop_path=0.0, image_size=240)
    config.model.classifier_dropout = 0.0
    folders = {"train": "train", "validation": "val", "test": "val"}
    config.data.update({split: f"data/camvid/{name},data/camvid/{name}annot" for split, name in folders.items()})
    config.data.update(size=(180, 240), scale=(0.75, 2.0), colour=0.3, most_of_one=0.75, batch_size=8)
    config.task.update(labels=CAMVID, void=11)
    config.optimizer.update(schedule="cosine", learning_rate=1e-3, warmup_steps=100, weight_decay=0.05)
    config.training.update(steps=3600, log_every=20, eval_every=450, checkpoint_every=450, keep_checkpoints=1)


def tiny(config: ConfigDict) -> None:
    """Two stages, for tests."""
    base.laptop(config)
    config.model.update(widths=(8, 12), depths=(1, 1), num_heads=(1, 2), reductions=(2, 1), mlp_ratios=(2, 2))
    config.model.update(patch_sizes=(7, 3), strides=(4, 2), decoder_width=12, drop_path=0.0, classifier_dropout=0.0)
    config.model.image_size = 32
    config.data.update(size=(24, 32), scale=(0.8, 1.3), batch_size=8)
    config.optimizer.update(learning_rate=2e-2, warmup_steps=4, weight_decay=0.0)
    config.training.update(steps=60, log_every=10, eval_every=30, checkpoint_every=30)


VARIANTS = {
    "b0": (sized,),
    "b1": (lambda config: sized(config, **WIDE),),
    "b2": (lambda config: sized(config, depths=(3, 4, 6, 3), **DEEP),),
    "b3": (lambda config: sized(config, depths=(3, 4, 18, 3), **DEEP),),
    "b4": (lambda config: sized(config, depths=(3, 8, 27, 3), **DEEP),),
    "b5": (lambda config: sized(config, depths=(3, 6, 40, 3), **DEEP),),
    "convnext": (convnext,),
    "swin": (swin,),
    "camvid": (camvid,),
    "tiny": (tiny,),
}


def get_config(variant: str = "b0") -> ConfigDict:
    config = base.base()
    base.pixel_classes(config, labels=tuple(f"class_{i}" for i in range(150)))
    base.scenes(config)
    with config.unlocked():
        config.model = ConfigDict()
        config.model.name = "segformer"  # a file of transformers_jax/models
        config.model.image_size = 512  # that it is made for
        config.model.channels = config.data.get_ref("channels")  # of the images
        config.model.mean = (0.485, 0.456, 0.406)  # a pixel, divided by 255, less this, over std
        config.model.std = (0.229, 0.224, 0.225)  # see mean
        config.model.widths = (32, 64, 160, 256)  # of the stages, as all that are as many
        config.model.depths = (2, 2, 2, 2)  # layers of each stage
        config.model.num_heads = (1, 2, 5, 8)  # divisors of the widths
        config.model.reductions = (8, 4, 2, 1)  # so many times fewer rows and columns of keys
        config.model.mlp_ratios = (4, 4, 4, 4)  # width inside the feed-forward over that of the stage
        config.model.patch_sizes = (7, 3, 3, 3)  # of the convolution in front of a stage
        config.model.strides = (4, 2, 2, 2)  # of the same
        config.model.decoder_width = 256  # of the head
        config.model.dropout = 0.0  # of sublayers' outputs
        config.model.attention_dropout = 0.0  # of attention weights
        config.model.classifier_dropout = 0.1  # before the labels
        config.model.drop_path = 0.1  # of the last layer, 0 of the first
        config.model.scan_layers = True  # one compiled block for all layers of a stage; without it CPUs are faster
        config.model.remat = False  # a layer's activations are computed again in the backward pass, not kept
        config.model.dtype = "bfloat16"  # of the computation: "bfloat16", "float16" or "float32"
        config.model.param_dtype = "float32"  # of the parameters
    config.data.update(batch_size=16, colour=0.4, most_of_one=0.75)
    config.task.update(void=0, first=1)
    config.optimizer.update(learning_rate=6e-5, warmup_steps=1500, clip_norm=0.0)
    config.training.update(steps=160_000, log_every=50, eval_every=16_000, checkpoint_every=16_000)
    config = base.varied(config, VARIANTS, variant)
    if variant in ("camvid", "tiny"):
        config.task.first = 0
    if variant == "tiny":
        config.task.update(labels=("ground", "red", "blue"), void=255)
    return config.lock()
