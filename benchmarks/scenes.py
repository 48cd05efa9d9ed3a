"""Segmentation and detection beside others, and what their heads cost.

    python -m benchmarks.scenes --part=camvid-peer --run=WORKDIR   (in an environment with torch and transformers)
    python -m benchmarks.scenes --part=coco --data=COCO_MINI
    python -m benchmarks.scenes --part=heads [--rounds=5]

`camvid-peer`: PyTorch's SegFormer of `transformers` with the config, first numbers, batches, recipe and steps of the run in
WORKDIR, a training of configs/segformer.py:camvid; evaluated where that was, by the run's own task.

`coco`: average precisions of detections made by hand from the boxes of COCO_MINI (moved, doubled, invented, mistaken and left
out; found in crowds, too), from a predicted JSON's lines, beside a call of pycocotools on the file of COCO_MINI itself. No two
scores are equal: such are counted in the order of images. Ends with exit code 1 where both differ by more than 1e-9.

`heads`: seconds of a training step of 8 images of 240 × 320 pixels with AdamW, of each model with each of its heads, in turns.

The last line is one JSON object.
"""

import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_enum("part", None, ["camvid-peer", "coco", "heads"], "what is measured", required=True)
flags.DEFINE_string("run", None, "camvid-peer: workdir of our training")
flags.DEFINE_string("data", None, "coco: folder with annotations/instances_train2017.json and train2017")
flags.DEFINE_integer("rounds", 5, "heads: turns of each")
flags.DEFINE_integer("steps", 0, "camvid-peer: ends after so many, to try it; 0: as many as the run")


def main(_):
    parts = {"camvid-peer": camvid_peer, "coco": coco, "heads": heads}
    print(json.dumps(parts[FLAGS.part]()))


# -- camvid-peer -------------------------------------------------------------------------------------------------------


def camvid_peer() -> dict:
    """Both sides' mean IoU at each measurement, and the seconds of PyTorch's training."""
    import torch

    from benchmarks.finetuning_peer import optimizer_of
    from transformers_jax import config as configuration
    from transformers_jax.runs.evaluate import Scorer
    from transformers_jax.runs.experiment import Experiment

    config = configuration.read(FLAGS.run)
    run, options, last = Experiment(config, FLAGS.run), config.training, FLAGS.steps or config.training.steps
    torch.manual_seed(config.seed)
    model = segformer_of(run)
    optimizer, rate = optimizer_of(model, config)
    scorer, iterator, scores, began = Scorer(run), run.train_iterator(), {}, time.monotonic()
    for step in range(1, last + 1):
        batch = next(iterator)
        model.train()
        optimizer.zero_grad(set_to_none=True)
        labels = torch.from_numpy(np.asarray(batch["mask"], np.int64))
        loss = model(pixel_values=pixels_of(batch["image"], config.model), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = float(rate(step - 1))
        optimizer.step()
        if step % options.eval_every == 0 or step == last:
            scores[step] = validated(model, run, scorer)["mean_iou"]
            said = f"step {step}/{last}  loss {float(loss.detach()):.4g}  mean_iou {scores[step]:.4f}"
            print(said, file=sys.stderr, flush=True)
    lines = [json.loads(line) for line in (Path(FLAGS.run) / "metrics.jsonl").read_text().splitlines()]
    ours = {line["step"]: line["mean_iou"] for line in lines if line["split"] == "validation"}
    return {"ours": ours, "transformers": scores, "seconds": round(time.monotonic() - began)}


def segformer_of(run):
    """The run's model as it was before the first step, in PyTorch."""
    import jax
    import optax
    import transformers

    from transformers_jax.interchange import huggingface
    from transformers_jax.runs.train import first_state

    jax.config.update("jax_default_prng_impl", run.config.prng)
    state = jax.device_get(first_state(run, optax.identity()))
    fields = dict(run.config.model) | run.task.model_fields() | {"vocab_size": 0}
    with tempfile.TemporaryDirectory() as folder:
        huggingface.save(Path(folder), fields, state.model_params, model_state=state.model_state)
        return transformers.SegformerForSemanticSegmentation.from_pretrained(folder)


def pixels_of(images: np.ndarray, model):
    """uint8 [B, H, W, C] → normalised float32 [B, C, H, W]."""
    import torch

    normed = (np.asarray(images, np.float32) / 255 - np.array(model.mean, np.float32)) / np.array(model.std, np.float32)
    return torch.from_numpy(normed.transpose(0, 3, 1, 2).copy())


def validated(model, run, scorer) -> dict:
    """The task's scores on the validation split, of the model as `transformers` saves it."""
    import optax

    from transformers_jax.runs import initialise

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found = initialise.initial(folder, run.model, complete=True)
        variables = initialise.placed(found, run.abstract_state(optax.identity()).variables)
    return run.task.validate(scorer, {"params": variables.pop("params"), "model_state": variables})


# -- coco --------------------------------------------------------------------------------------------------------------


def coco() -> dict:
    """Both sides' numbers."""
    from ml_collections import ConfigDict

    from transformers_jax.data import sources
    from transformers_jax.tasks.parts import average_precision

    file, photos = Path(FLAGS.data) / "annotations/instances_train2017.json", Path(FLAGS.data) / "train2017"
    source = sources.open_source(ConfigDict({"source": "coco", "train": f"{file},{photos}"}), "train")
    examples = [source[i] for i in range(len(source))]
    lines = [json.dumps({"image": example["image"], "objects": made_up(example, i, source.classes)})
             for i, example in enumerate(examples)]  # fmt: skip
    found = [json.loads(line)["objects"] for line in lines]
    truth = [(example["size"], example["objects"]) for example in examples]
    ours = average_precision.scores(average_precision.measured(truth, found, source.classes))
    theirs = of_pycocotools(file, {Path(e["image"]).name: things for e, things in zip(examples, found, strict=True)})
    counts = {"images": len(examples), "without_objects": sum(not e["objects"] for e in examples)}
    counts |= {"crowds": sum(thing["crowd"] for e in examples for thing in e["objects"]), "detections": sum(map(len, found))}
    if any(abs(ours[name] - theirs[name]) > 1e-9 for name in average_precision.NAMES):
        print(json.dumps({"ours": ours, "pycocotools": theirs}))
        sys.exit(1)
    return counts | {"ours": ours, "pycocotools": theirs}


def made_up(example: dict, number: int, classes) -> list[dict]:
    """Detections by chance around an example's objects: of a crowd three, of others one or two or none, and two of nothing."""
    random, found = np.random.default_rng(number), []
    height, width = example["size"]

    def add(label, box, least):
        box = [round(float(x), 2) for x in box]
        found.append({"label": label, "box": box, "score": float(random.uniform(least, 1))})

    for thing in example["objects"]:
        left, top, right, bottom = thing["box"]
        sides = np.array([right - left, bottom - top] * 2)
        for _ in range(3 if thing["crowd"] else random.choice([0, 1, 1, 1, 2])):
            label = thing["label"] if random.random() < 0.9 else str(random.choice(classes))
            add(label, np.array(thing["box"]) + sides * random.normal(0, 0.06, 4), 0.3)
    for _ in range(2):
        corner = random.uniform(0, 0.5, 2) * [width, height]
        add(str(random.choice(classes)), [*corner, *(corner + [width / 3, height / 3])], 0.0)
    return found


def of_pycocotools(file: Path, found: dict[str, list[dict]]) -> dict[str, float]:
    """What the package says of detections by an image's name, with the file of annotations as it is."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from transformers_jax.tasks.parts.average_precision import NAMES

    with contextlib.redirect_stdout(io.StringIO()):
        there = COCO(str(file))
        numbers = {image["file_name"]: image["id"] for image in there.dataset["images"]}
        categories = {category["name"]: category["id"] for category in there.dataset["categories"]}
        results = [
            {"image_id": numbers[name], "category_id": categories[thing["label"]], "score": thing["score"],
             "bbox": [*thing["box"][:2], thing["box"][2] - thing["box"][0], thing["box"][3] - thing["box"][1]]}
            for name, things in found.items() for thing in things
        ]  # fmt: skip
        measured = COCOeval(there, there.loadRes(results), "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return dict(zip(NAMES, map(float, measured.stats), strict=False))


# -- heads -------------------------------------------------------------------------------------------------------------

MODELS = {
    "swin": dict(width=32, depths=(2, 2, 2), num_heads=(1, 2, 4), window=5),
    "convnext": dict(widths=(32, 64, 96, 128), depths=(1, 1, 2, 1), layer_scale=0.0),
    "segformer": dict(widths=(24, 48, 96, 160), num_heads=(1, 2, 3, 5)),
}
HEADS = ("classification", "segmentation", "detection")
SMALL = dict(image_size=320, drop_path=0.0, decoder_width=64, decoder_layers=2)


def heads() -> dict:
    """Seconds of a step by model and head, medians of all turns, and each head's ratio to classification."""
    found = {}
    for name in MODELS:
        steps = {head: stepper(name, head) for head in HEADS if (name, head) != ("segformer", "detection")}
        seconds = {head: [] for head in steps}
        for turn in range(FLAGS.rounds + 1):  # the first is not counted
            for head, step in steps.items():
                began = time.perf_counter()
                step()
                seconds[head] += [time.perf_counter() - began] if turn else []
        medians = {head: statistics.median(times) for head, times in seconds.items()}
        ratios = {head: round(median / medians["classification"], 2) for head, median in medians.items()}
        found[name] = {"seconds": {head: round(median, 3) for head, median in medians.items()}, "ratio": ratios}
        print(name, json.dumps(found[name]), flush=True)
    return found


def stepper(name: str, head: str):
    """A function that makes one training step of a model with a head."""
    import jax
    from ml_collections import ConfigDict

    from transformers_jax import models, tasks
    from transformers_jax.mesh import global_batch, make_mesh
    from transformers_jax.training.optimizers import make_optimizer
    from transformers_jax.training.state import create_state
    from transformers_jax.training.step import compile_step, make_train_step

    kind = {"classification": "image_classification"}.get(head, head)
    size = 320 if head == "classification" else (240, 320)
    task = tasks.build({"name": kind, "labels": ("a", "b", "c")}, None, ConfigDict({"size": size}))
    small = {key: value for key, value in SMALL.items() if name != "segformer" or key != "decoder_layers"}
    model = models.build({"name": name, "head": head, "labels": 3} | small | MODELS[name], 0)
    batch, mesh = drawn(head), make_mesh({})
    tx, _ = make_optimizer({"name": "adamw", "schedule": "constant", "learning_rate": 1e-4, "weight_decay": 0.01}, 1000)
    state, shardings = create_state(model, tx, batch, mesh, seed=0)
    update, batch = compile_step(make_train_step(model, task, tx, seed=0), mesh, shardings), global_batch(batch, mesh)
    held = [state]

    def step():
        held[0], _ = jax.block_until_ready(update(held[0], batch))

    return step


def drawn(head: str) -> dict[str, np.ndarray]:
    """A batch of 8 images of 240 × 320 pixels with what a head learns: a label, a mask, or 15 boxes each."""
    random, rows = np.random.default_rng(0), 8
    batch = {"image": random.integers(0, 256, (rows, 240, 320, 3), np.uint8), "row_weights": np.ones(rows, np.int32)}
    if head == "classification":
        return batch | {"label": random.integers(0, 3, rows, np.int32)}
    if head == "segmentation":
        return batch | {"mask": random.integers(0, 3, (rows, 240, 320), np.uint8)}
    corners, labels = np.zeros((rows, 100, 4), np.float32), np.full((rows, 100), -1, np.int32)
    corners[:, :15, :2] = random.uniform(0, (260, 180), (rows, 15, 2))
    corners[:, :15, 2:] = corners[:, :15, :2] + random.uniform(20, 60, (rows, 15, 2))
    labels[:, :15] = random.integers(0, 3, (rows, 15))
    return batch | {"boxes": corners, "box_labels": labels}


if __name__ == "__main__":
    app.run(main)
