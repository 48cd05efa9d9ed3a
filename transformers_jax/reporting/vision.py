"""What a model of images has learned, for pictures: where it looks, how far, and what its filters and positions are like.

Axes: B images, H height, W width, C channels, L layers, N heads, T positions, h rows and w columns of patches, P side of a
patch, D width.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax import parameters
from transformers_jax.data.placed import Placed
from transformers_jax.reporting.attention import attention_weights
from transformers_jax.runs.experiment import Experiment, answered

MOST_FILTERS = 28
FILTERS = ("patches/kernel", "patches_0/kernel", "stem/kernel")


class Shown(NamedTuple):
    """An image, uint8 [H, W, C], and what is written above it."""

    image: np.ndarray
    title: str


def read(run: Experiment, example: dict) -> np.ndarray:
    """An example's image as the model gets it in evaluation."""
    return run.task.unaugmented(run.task.encode({"image": example["image"]}))["image"]


def some(run: Experiment, count: int = 6) -> list[Shown]:
    """Images of the test split, or else of the validation split, at equal steps; none where there is neither."""
    split = next((name for name in ("test", "validation") if run.has(name)), None)
    if split is None:
        return []
    source = run.source(split)
    chosen = [source[i] for i in range(0, len(source), max(1, len(source) // count))][:count]
    return [Shown(read(run, example), str(example.get("label", ""))) for example in chosen]


def worst(run: Experiment, most: int = 24) -> list[Shown]:
    """The first mistakes of samples.jsonl, which has the worst in front; images that are no longer there are left out."""
    wrong = [s for s in run.samples() if isinstance(s.get("label"), str) and s["label"] != s.get("prediction")][:most]
    _, split = answered(run)
    source = run.source(split) if wrong and split else ()
    places = {source.where(i): i for i in range(len(source))} if isinstance(source, Placed) else {}
    found = []
    for sample in wrong:
        surely = next(iter(sample.get("probabilities", {}).values()), None)
        said = sample["prediction"] + (f" ({surely:.0%})" if surely is not None else "")
        title = f"{Path(str(sample['image'])).name}\n{sample['label']}, taken for {said}"
        if sample["image"] in places:
            found.append(Shown(read(run, source[places[sample["image"]]]), title))
        elif Path(str(sample["image"])).is_file():
            found.append(Shown(read(run, sample), title))
    return found


def patch_attention(run: Experiment, variables: dict, images: np.ndarray) -> np.ndarray | None:
    """[L, B, N, T, T] of a model whose layers all attend from each position to each; None for another."""
    sizes = grid(run, images)
    if sizes is None:
        return None
    every = attention_weights(run.model, variables["params"], {"image": images}, variables["model_state"])
    shapes = {weights.shape for weights in every.values()}
    own = sizes[0] * sizes[1] + (run.model.config.pooling == "class")
    return np.stack(list(every.values())) if len(shapes) == 1 and shapes.pop()[-2:] == (own, own) else None


def grid(run: Experiment, images: np.ndarray) -> tuple[int, int] | None:
    """(h, w) of the patches of a ViT's images; None for models whose positions are not all of one size."""
    config = run.model.config
    if not hasattr(config, "stride"):
        return None
    return images.shape[1] // config.stride(), images.shape[2] // config.stride()


def rollout(weights: np.ndarray) -> np.ndarray:
    """[B, T, T] how much of each input position is in each output position (Abnar and Zuidema 2020, "Quantifying Attention
    Flow", section 3): the layers' mean attention over heads, half of it the residual's identity, multiplied.

    Args:
      weights: [L, B, N, T, T].
    """
    mean = weights.mean(axis=2)  # [L, B, T, T]
    mixed = 0.5 * mean + 0.5 * np.eye(mean.shape[-1], dtype=mean.dtype)
    found = mixed[0]
    for layer in mixed[1:]:
        found = layer @ found
    return found


def looked_at(weights: np.ndarray, sizes: tuple[int, int]) -> np.ndarray:
    """[B, h, w] the patches' shares in what is read for the label: in the class token, or in the mean of all patches."""
    flow, patches = rollout(weights), sizes[0] * sizes[1]
    has_class = flow.shape[-1] > patches
    shares = flow[:, 0, 1:] if has_class else flow.mean(axis=1)  # [B, h · w]
    return (shares / shares.sum(axis=-1, keepdims=True)).reshape(-1, *sizes)


def distances(weights: np.ndarray, sizes: tuple[int, int], side: int) -> np.ndarray:
    """[L, N] pixels from a patch to those that it attends to, mean over patches and images (Dosovitskiy et al. 2021, figure 7,
    right, and appendix D.7); a class token is left out.

    Args:
      side: pixels from a patch to the next.
    """
    patches = sizes[0] * sizes[1]
    among = weights[..., -patches:, -patches:]  # [L, B, N, h · w, h · w]
    among = among / among.sum(axis=-1, keepdims=True)
    places = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij"), axis=-1).reshape(patches, 2) * side
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)  # [h · w, h · w]
    return (among * apart).sum(axis=-1).mean(axis=(1, 3))


def window_distances(run: Experiment, variables: dict, images: np.ndarray) -> np.ndarray | None:
    """[L, N] as `distances`, of a Swin, whose positions attend within windows; NaN for heads that a stage has not. None for
    another model.
    """
    config = run.model.config
    if not hasattr(config, "window"):
        return None
    every = attention_weights(run.model, variables["params"], {"image": images}, variables["model_state"])
    found = np.full((len(every), max(config.num_heads)), np.nan)
    for layer, (name, weights) in enumerate(every.items()):  # "stage_0/layer_1/block/attention": [n, N, side², side²]
        stage, side = int(re.match(r"stage_(\d+)", name)[1]), math.isqrt(weights.shape[-1])
        found[layer, : weights.shape[1]] = distances(weights[None], (side, side), config.patch_size * 2**stage)[0]
    return found


def position_similarity(params: Mapping[str, Any]) -> np.ndarray | None:
    """[h, w, h, w] cosine of each learned position with each other (figure 7, middle); None where none are learned."""
    table = np.asarray(params["positions"], np.float32) if "positions" in params else np.zeros((0, 1))
    side = int(np.sqrt(len(table)))
    if side < 2:
        return None
    table = table[len(table) - side**2 :]  # behind a class token's
    table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    return (table @ table.T).reshape(side, side, side, side)


def filters(params: Mapping[str, Any]) -> np.ndarray | None:
    """[n, P, P, C] the first principal components of the filters that the image's pixels go through first (figure 7, left),
    each from 0 to 1 with 0.5 for nothing; None where these are no patches.
    """
    leaves = parameters.flat(params)
    kernel = next((np.asarray(leaves[name], np.float32) for name in FILTERS if name in leaves), None)
    if kernel is None or kernel.shape[0] < 2 or kernel.shape[2] not in (1, 3):  # [P, P, C, D]
        return None
    flat = kernel.reshape(-1, kernel.shape[-1])  # [P · P · C, D]
    components, _, _ = np.linalg.svd(flat - flat.mean(axis=1, keepdims=True), full_matrices=False)
    chosen = components.T[:MOST_FILTERS].reshape(-1, *kernel.shape[:3])
    largest = np.abs(chosen).max(axis=(1, 2, 3), keepdims=True)
    return 0.5 + 0.5 * chosen / np.maximum(largest, 1e-12)


def receptive_fields(run: Experiment, variables: dict, images: np.ndarray) -> list[np.ndarray]:
    """For each stage of a pyramid [H, W]: the size of the gradient of its middle position with respect to the pixels, mean over
    images and channels, the largest being 1 (Luo et al. 2016, "Understanding the Effective Receptive Field"); [] without one.
    """
    if not hasattr(run.model, "pyramid"):
        return []
    given = {"params": variables["params"], **variables["model_state"]}

    def middles(images):
        maps = run.model.apply(given, {"image": images}, method="pyramid")
        return [x[:, x.shape[1] // 2, x.shape[2] // 2].astype(jnp.float32).sum() for x in maps]

    @jax.jit
    def fields(images):
        _, back = jax.vjp(middles, images)
        stages = len(jax.eval_shape(middles, images))
        units = [[jnp.float32(i == j) for j in range(stages)] for i in range(stages)]
        return [jnp.abs(back(unit)[0]).mean(axis=(0, 3)) for unit in units]

    found = [np.asarray(field) for field in fields(images.astype(np.float32))]
    return [field / max(float(field.max()), 1e-30) for field in found]


def stacked(shown: Sequence[Shown]) -> np.ndarray:
    """The images as one array [B, H, W, C]."""
    return np.stack([one.image for one in shown])
