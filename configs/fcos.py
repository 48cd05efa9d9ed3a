"""FCOS: "FCOS: Fully Convolutional One-Stage Object Detection" (Tian et al. 2019), on the pyramid of a ConvNeXt or a Swin.

    python -m experiments.pretrain --config=configs/fcos.py:bccd --workdir=/tmp/cells
    python -m experiments.predict --workdir=/tmp/cells photos/*.jpg

| VARIANT    | what                                                                   | expected time and score   |
|------------|------------------------------------------------------------------------|---------------------------|
| `bccd`     | three kinds of blood cells, 205 images of data/bccd/BCCD, small Swin   | 2,000 steps: AP50 86 %    |
| `convnext` | of the papers' size tiny, for COCO, from pretrained weights            | not run                   |
| `swin`     | the same                                                               | not run                   |
| `tiny`     | seconds on a CPU, for tests: files given                               | none                      |

`convnext` and `swin` begin with pretrained weights: experiments.finetune --init_from=FOLDER.

Images: --config.data.train=F --config.data.validation=G, Pascal VOC's lists of names, VOC2012/ImageSets/Main/train.txt, or
COCO's JSON and its folder, instances.json,photos. Splits that are not named are not used.
"""

from ml_collections import ConfigDict

from configs import base


def swin(config: ConfigDict) -> None:
    """Swin-T (Liu et al. 2021, section 3.3) in place of ConvNeXt-T."""
    base.without(config.model, "widths", "layer_scale")
    with config.model.unlocked():
        config.model.update(name="swin", depths=(2, 2, 6, 2), width=96, num_heads=(3, 6, 12, 24), window=7)


def bccd(config: ConfigDict) -> None:
    """A Swin of three stages, 32 wide, on images of half their size."""
    base.laptop(config)
    swin(config)
    config.model.update(depths=(2, 2, 2), width=32, num_heads=(1, 2, 4), window=5, drop_path=0.0, image_size=320)
    config.model.update(decoder_width=64, decoder_layers=2)
    lists = {"train": "train", "validation": "val", "test": "val"}
    config.data.update({split: f"data/bccd/BCCD/ImageSets/Main/{name}.txt" for split, name in lists.items()})
    config.data.update(source="voc", size=(240, 320), scale=(0.4, 0.65), colour=0.2, batch_size=8)
    config.optimizer.update(schedule="cosine", learning_rate=1e-3, warmup_steps=100)
    config.training.update(steps=2000, log_every=20, eval_every=250, checkpoint_every=250, keep_checkpoints=1)


def tiny(config: ConfigDict) -> None:
    """Two stages, for tests."""
    base.laptop(config)
    config.model.update(widths=(8, 16), depths=(1, 1), decoder_width=16, decoder_layers=1, drop_path=0.0, layer_scale=0.0)
    config.model.image_size = 32
    config.data.update(source="voc", size=(24, 32), scale=(0.9, 1.2), batch_size=8)
    config.task.most_objects = 8
    config.optimizer.update(learning_rate=1e-2, warmup_steps=4, weight_decay=0.0)
    config.training.update(steps=80, log_every=20, eval_every=40, checkpoint_every=40)


VARIANTS = {"convnext": (lambda config: None,), "swin": (swin,), "bccd": (bccd,), "tiny": (tiny,)}


def get_config(variant: str = "convnext") -> ConfigDict:
    config = base.base()
    base.objects(config)
    base.scenes(config, size=(640, 640))
    with config.unlocked():
        config.model = ConfigDict()
        config.model.name = "convnext"  # or "swin": what the pyramid is of
        config.model.image_size = 640  # that it is made for
        config.model.channels = config.data.get_ref("channels")  # of the images
        config.model.mean = (0.485, 0.456, 0.406)  # a pixel, divided by 255, less this, over std
        config.model.std = (0.229, 0.224, 0.225)  # see mean
        config.model.widths = (96, 192, 384, 768)  # of the stages
        config.model.depths = (3, 3, 9, 3)  # layers of each stage
        config.model.layer_scale = 1e-6  # initial scale of each branch
        config.model.decoder_width = 256  # of the head
        config.model.decoder_layers = 4  # convolutions in front of each output
        config.model.drop_path = 0.1  # of the last layer, 0 of the first
        config.model.scan_layers = True  # one compiled block for all layers of a stage; without it CPUs are faster
        config.model.remat = False  # a layer's activations are computed again in the backward pass, not kept
        config.model.dtype = "bfloat16"  # of the computation: "bfloat16", "float16" or "float32"
        config.model.param_dtype = "float32"  # of the parameters
    config.data.update(source="coco", scale=(0.5, 1.5), batch_size=16)
    config.optimizer.update(learning_rate=1e-4, weight_decay=0.05, warmup_steps=1000)
    config.training.update(steps=90_000, log_every=50, eval_every=10_000, checkpoint_every=10_000)
    config = base.varied(config, VARIANTS, variant)
    return config.lock()
