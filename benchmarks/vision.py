"""Models of images beside `transformers` on PyTorch, and decoding beside Pillow's.

    python -m benchmarks.vision --peer=PYTHON_WITH_TORCH_AND_TRANSFORMERS [--models=vit,swin,convnext,segformer]
    python -m benchmarks.vision --part=images [--files=FOLDER]

`speed`: ViT-S/16, Swin-T and ConvNeXt-T at 224², a training step of 8 images with AdamW and inference of 1 and of 8, and
inference of SegFormer-B0, all with 1,000 labels in float32; both sides take turns, each after a product of matrices of its
own. Stochastic depth is 0.1 in Swin and ConvNeXt. Medians leave out the first third of the steps, with compilation.

`images`: images a second decoded, cropped at random, resized to 224² with bilinear interpolation and flipped by the pipeline
with two worker processes, beside Pillow's bare decoding of the same files in two; photographs, or 256 drawn ones of 500 × 375.

The last line is one JSON object.
"""

import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks.vision_timing import INFERENCES, MODELS, ROWS, SIZE, TRAINED, timed
from experiments import launch

FLAGS = flags.FLAGS
flags.DEFINE_enum("part", "speed", ["speed", "images"], "what is measured")
flags.DEFINE_string("peer", None, "speed: python of an environment with torch and transformers")
flags.DEFINE_list("models", list(MODELS), "speed: which")
flags.DEFINE_string("files", None, "images: a folder of JPEGs; others are drawn if it is not given")
flags.DEFINE_integer("rounds", 3, "turns of each side")
flags.DEFINE_integer("steps", 9, "speed: steps of a turn")

SMALL = dict(width=384, num_heads=6, mlp_width=1536)
FIELDS = {"vit": SMALL, "swin": {}, "convnext": {}, "segformer": {}}


def main(_):
    launch.use_large_pages()
    print(json.dumps(speed() if FLAGS.part == "speed" else images()))


# -- speed -------------------------------------------------------------------------------------------------------------


def speed() -> dict:
    """Each model's numbers by name."""
    if not FLAGS.peer:
        sys.exit("--peer is missing: give the python of an environment with torch and transformers")
    return {name: compared(name) for name in FLAGS.models}


def compared(name: str) -> dict:
    """Both sides of one model, in turns."""
    from transformers_jax.planning.peak import matmul_peak

    ours, peer = Ours(name), Path(__file__).with_name("vision_peer.py")
    turns = {"ours": [], "transformers": []}
    for turn in range(FLAGS.rounds):
        command = [FLAGS.peer, peer, name, str(FLAGS.steps)]
        turns["transformers"].append(json.loads(subprocess.run(command, stdout=-1, text=True, check=True).stdout))
        turns["ours"].append({"peak": matmul_peak(seconds=1.0)} | timed(ours.functions(), FLAGS.steps))
        print(f"{name}, turn {turn + 1}: " + json.dumps({side: found[-1] for side, found in turns.items()}), flush=True)
    medians = {side: {n: statistics.median(t[n] for t in found) for n in found[0]} for side, found in turns.items()}
    peaks = {side: m.pop("peak") for side, m in medians.items()}
    result = {
        "seconds": {side: {n: round(t, 4) for n, t in m.items()} for side, m in medians.items()},
        "ratio": {n: round(medians["transformers"][n] / t, 2) for n, t in medians["ours"].items()},
        "peak_gflops": {side: round(p / 1e9) for side, p in peaks.items()},
    }
    if name in TRAINED:
        result["train_share_of_peak"] = round(ours.flops / medians["ours"]["train"] / peaks["ours"], 3)
    return result


class Ours:
    """A model of images with its training step and its predictor."""

    def __init__(self, name: str):
        import jax

        from transformers_jax import models
        from transformers_jax.inference.predictor import Predictor
        from transformers_jax.mesh import global_batch, make_mesh
        from transformers_jax.planning import flops
        from transformers_jax.tasks.image_classification import Task
        from transformers_jax.training.optimizers import make_optimizer
        from transformers_jax.training.state import create_state
        from transformers_jax.training.step import compile_step, make_train_step

        jax.config.update("jax_default_prng_impl", "rbg")
        self.name, mesh = name, make_mesh({})
        fields = {"name": name, "head": "classification", "labels": 1000, "image_size": SIZE} | FIELDS[name]
        model, task = models.build(fields, 0), Task({"size": SIZE}, labels=[str(i) for i in range(1000)])
        options = {"name": "adamw", "schedule": "constant", "learning_rate": 1e-5, "weight_decay": 0.01}
        tx, _ = make_optimizer(options, 1000)
        images = np.random.default_rng(0).integers(0, 256, (ROWS, SIZE, SIZE, 3)).astype(np.uint8)
        self.examples = [{"image": image} for image in images]
        batch = {"image": images, "label": np.arange(ROWS, dtype=np.int32), "row_weights": np.ones(ROWS, np.int32)}
        self.state, shardings = create_state(model, tx, batch, mesh, seed=0)
        step = make_train_step(model, task, tx, seed=0)
        self.flops = flops.of_jaxpr(jax.make_jaxpr(step)(self.state, batch))
        self.batch, self.step = global_batch(batch, mesh), compile_step(step, mesh, shardings)
        self.variables = {"params": self.state.params, "model_state": {}}
        self.predictor = Predictor(model, task, self.variables, mesh, longest=0)

    def functions(self) -> dict:
        """What is measured, by name: a training step, and inference, here with the images' way to the device."""
        found = {"train": self.train} if self.name in TRAINED else {}
        return found | {f"inference_{n}": lambda n=n: self.infer(n) for n in INFERENCES}

    def train(self) -> None:
        import jax

        self.state, _ = jax.block_until_ready(self.step(self.state, self.batch))
        self.variables["params"] = self.state.params

    def infer(self, count: int) -> None:
        self.predictor(self.examples[:count])


# -- images ------------------------------------------------------------------------------------------------------------

WORKERS = 2


def images() -> dict:
    """Images a second by turns of the pipeline and of Pillow's bare decoding."""
    with tempfile.TemporaryDirectory() as folder:
        files = sorted(map(str, Path(FLAGS.files or drawn(folder)).rglob("*.[jJ]*[gG]")))
        if not files:
            sys.exit(f"--files={FLAGS.files}: there are no JPEGs in this folder")
        bare, ours = [], []
        for _ in range(FLAGS.rounds):
            bare.append(bare_decoding(files))
            ours.append(pipeline(files))
    ratio = [o / b for o, b in zip(ours, bare, strict=True)]
    return {
        "files": len(files),
        "pillow_images_a_second": [round(x, 1) for x in bare],
        "ours_images_a_second": [round(x, 1) for x in ours],
        "ratio": round(statistics.median(ratio), 3),
    }


def drawn(folder: str) -> str:
    """256 JPEGs of 500 × 375 pixels, ImageNet's usual size, with shapes large and small, as photographs have."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(256):
        pixels = np.full((375, 500, 3), 128.0) + rng.normal(0, 10, (375, 500, 3))
        for side, strength in ((250, 10), (64, 16), (16, 25), (4, 30)):
            noise = np.clip(128 + rng.normal(0, strength, (side * 3 // 4, side, 3)), 0, 255).astype(np.uint8)
            pixels += np.asarray(Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC), float) - 128
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(f"{folder}/{i}.jpg", quality=90)
    return folder


def bare_decoding(files: list[str]) -> float:
    """Images a second that Pillow decodes to RGB in two processes, after a first round."""
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
        pool.map(decoded, files, chunksize=8)
        rounds = repeats(len(files))
        began = time.perf_counter()
        for _ in range(rounds):
            pool.map(decoded, files, chunksize=8)
        return rounds * len(files) / (time.perf_counter() - began)


def decoded(file: str) -> tuple[int, int]:
    """The size of an image, all of whose pixels were read."""
    from PIL import Image

    with Image.open(file) as image:
        return image.convert("RGB").size


def pipeline(files: list[str]) -> float:
    """Images a second that come out of the training pipeline with two workers, after the first batches."""
    from configs import base
    from transformers_jax.data.pipeline import train_iterator
    from transformers_jax.tasks.image_classification import Task

    config = base.vision("vit", SIZE)
    config.data.update(batch_size=32, workers=WORKERS, interpolation="bilinear")
    source = [{"image": file, "label": str(i % 2)} for i, file in enumerate(files)]
    iterator = train_iterator(source, Task(config.data, labels=("0", "1")), config.data, seed=0)
    for _ in range(config.data.prefetch + 2 * WORKERS):
        next(iterator)
    batches = repeats(len(files)) * len(files) // 32
    began = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    took = time.perf_counter() - began
    iterator.close()
    return batches * 32 / took


def repeats(files: int) -> int:
    """How often so many files are read in a turn: 2,000 images or more."""
    return -(-2000 // files)


if __name__ == "__main__":
    app.run(main)
