"""A perceptron of pixels: what a model of images has to beat, and the quickest run of all.

    python -m experiments.pretrain --config=configs/perceptron.py:digits --workdir=/tmp/digits
    python -m experiments.predict --workdir=/tmp/digits photos/*.png

| VARIANT   | what                                                         | expected time and score    |
|-----------|--------------------------------------------------------------|----------------------------|
| `digits`  | MNIST's first 5,000 (`pip install transformers_jax[images]`) | half a minute on two cores |
| `folders` | class folders given                                          | none                       |
| `tiny`    | seconds on a CPU, for tests: class folders given             | none                       |

Images: --config.data.train=DIR --config.data.validation=DIR, a folder with one for each class, train/cat/1.jpg; or lists,
A.csv with columns path and label (or labels, a|b). Splits that are not named are not used.
"""

from ml_collections import ConfigDict

from configs import base

VARIANTS = {"digits": (base.digits,), "folders": (lambda config: None,), "tiny": (base.tiny_images,)}


def get_config(variant: str = "digits") -> ConfigDict:
    config = base.base()
    base.image_classes(config)
    base.images(config, size=32)
    with config.unlocked():
        config.model = ConfigDict()
        config.model.name = "perceptron"  # a file of transformers_jax/models
        config.model.image_size = config.data.get_ref("size")  # of the images
        config.model.channels = config.data.get_ref("channels")  # likewise
        config.model.mean = (0.5,)  # a pixel, divided by 255, less this, over std; one number, or one a channel
        config.model.std = (0.5,)  # see mean
        config.model.width = 512  # of a hidden layer
        config.model.layers = 1  # hidden ones
        config.model.dropout = 0.2  # of hidden layers
        config.model.activation = "relu"  # or "gelu", "gelu_tanh", "swish"
        config.model.dtype = "float32"  # of the computation: "bfloat16", "float16" or "float32"
        config.model.param_dtype = "float32"  # of the parameters
    config.data.update(crop="pad", batch_size=64)
    config.optimizer.update(schedule="cosine", learning_rate=1e-3, warmup_steps=100)
    config.training.update(steps=2000, log_every=100, eval_every=500, checkpoint_every=500, keep_checkpoints=1)
    config = base.varied(config, VARIANTS, variant)
    if variant == "tiny":
        config.model.width = 8
    return config.lock()
