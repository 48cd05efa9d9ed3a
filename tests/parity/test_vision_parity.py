"""Models of images of `transformers`, of random numbers, read here and written back: the same outputs on either side.

Axes: B rows, H height, W width, C channels, T positions, D width.
"""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from transformers_jax import models
from transformers_jax.interchange import huggingface, mapping
from transformers_jax.layers.resnet import ResNetStem

pytestmark = pytest.mark.slow

LABELS = 3
SIZES = {
    "vit": dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, image_size=16, patch_size=4),
    "convnext": dict(hidden_sizes=[6, 8, 10], depths=[2, 1, 2], num_stages=3, layer_scale_init_value=0.5),
    "swin": dict(embed_dim=8, depths=[2, 3], num_heads=[2, 4], window_size=3, image_size=24, patch_size=2),
    "segformer": dict(
        hidden_sizes=[6, 8, 12], depths=[2, 1, 2], num_encoder_blocks=3, num_attention_heads=[1, 2, 3], sr_ratios=[4, 2, 1],
        decoder_hidden_size=10,
    ),
}  # fmt: skip
CASES = [
    ("vit", "none", {}, (16, 16)),
    ("vit", "classification", {}, (16, 16)),
    ("vit", "classification", dict(hidden_act="relu", layer_norm_eps=1e-3), (24, 12)),
    ("swin", "none", {}, (24, 24)),
    ("swin", "classification", dict(use_absolute_embeddings=True), (30, 22)),
    ("swin", "classification", dict(mlp_ratio=2.0), (27, 12)),
    ("segformer", "none", {}, (64, 48)),
    ("segformer", "classification", dict(mlp_ratios=[2, 3, 4], hidden_act="relu"), (50, 39)),
    ("segformer", "segmentation", {}, (50, 39)),
    ("segformer", "segmentation", dict(
        num_encoder_blocks=4, hidden_sizes=[4, 6, 8, 12], depths=[1, 2, 1, 1], num_attention_heads=[1, 2, 1, 3],
        sr_ratios=[2, 2, 2, 1], mlp_ratios=[4, 2, 3, 1], patch_sizes=[7, 3, 3, 3], strides=[4, 2, 2, 2], decoder_hidden_size=6,
    ), (64, 96)),
    ("convnext", "none", {}, (32, 48)),
    ("convnext", "classification", dict(patch_size=2, layer_norm_eps=1e-3, layer_scale_init_value=0.0), (32, 32)),
]


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch", reason="needs PyTorch: run `make parity`")
    pytest.importorskip("transformers", reason="needs transformers: run `make parity`")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def make(torch, kind: str, head: str, changes: dict):
    """A model of `transformers` in which no parameter and no statistic is 0 or 1."""
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, huggingface.maps()[kind][1].heads[head].architecture)
    labels = dict(num_labels=LABELS) if head != "none" else {}
    model = made(made.config_class(**SIZES[kind] | labels | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.add_(0.3 * torch.rand_like(buffer))
    return model


def theirs(torch, model, head: str, image: np.ndarray, mean, std) -> dict[str, np.ndarray]:
    pixels = (image.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    more = dict(interpolate_pos_encoding=True) if model.config.model_type in ("vit", "swin") else {}
    with torch.no_grad():
        out = model(pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)), **more)
    if head == "segmentation":
        return {"logits": out.logits.numpy().transpose(0, 2, 3, 1)}
    if head != "none":
        return {"logits": out.logits.numpy()}
    hidden = out.last_hidden_state.numpy()
    found = {"hidden": hidden.transpose(0, 2, 3, 1) if hidden.ndim == 4 else hidden}
    pooled = out.get("pooler_output", None)
    return found if pooled is None else found | {"pooled": pooled.numpy()}


def ours(model, variables: dict, image: np.ndarray) -> dict[str, np.ndarray]:
    out = jax.jit(lambda v, b: model.apply(v, b))(variables, {"image": image})
    return {name: np.asarray(value) for name, value in out._asdict().items() if value is not None}


def compare(got: dict, wanted: dict) -> None:
    for name, array in wanted.items():
        assert got[name].shape == array.shape
        np.testing.assert_allclose(got[name], array, atol=1e-4, rtol=1e-4, err_msg=name)
        assert np.abs(array).max() > 1e-2


@pytest.mark.parametrize("kind, head, changes, size", CASES)
def test_same_outputs_both_ways(torch, tmp_path: Path, kind, head, changes, size):
    theirs_first = make(torch, kind, head, changes)
    theirs_first.save_pretrained(tmp_path / "theirs")
    image = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)

    fields, leaves, tokenizer = huggingface.opened(tmp_path / "theirs")
    assert tokenizer is None and fields["head"] == head
    model = models.build(fields, fields["vocab_size"])
    variables = mapping.variables(mapping.streamed(leaves))
    wanted = theirs(torch, theirs_first, head, image, model.config.mean, model.config.std)
    compare(ours(model, variables, image), wanted)

    state = {name: tree for name, tree in variables.items() if name != "params"}
    huggingface.save(tmp_path / "ours", fields, variables["params"], model_state=state)
    assert models.build(huggingface.opened(tmp_path / "ours").fields, 0).config == model.config
    again, info = type(theirs_first).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    compare(theirs(torch, again.eval(), head, image, model.config.mean, model.config.std), wanted)
    counts = [sum(p.numel() for p in m.parameters()) for m in (theirs_first, again)]
    assert counts[0] == counts[1] == sum(x.size for x in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("kind", SIZES)
def test_a_folder_says_how_images_are_prepared(torch, tmp_path: Path, kind):
    """The processor that `transformers` reads from our folder gives what our model makes of pixels, and is read back."""
    import transformers

    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    make(torch, kind, "none", {}).save_pretrained(tmp_path / "theirs")
    fields, params, _ = huggingface.load(tmp_path / "theirs")
    fields |= dict(mean=mean, std=std)
    huggingface.save(tmp_path / "ours", fields, params)
    again = huggingface.opened(tmp_path / "ours").fields
    np.testing.assert_allclose([again["mean"], again["std"]], [mean, std], rtol=1e-6)
    model = models.build(fields, 0)
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours", backend="pil")
    processor.do_resize = False
    wanted = processor(image, return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
    got = model.apply({"params": params}, {"image": image[None]}, method="pixels")
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def sizes() -> list[tuple[str, str, str]]:
    """(name of the model file, head, size) of all that `transformers` has too."""
    heads = {"vit": ["classification"], "convnext": ["classification"], "swin": ["classification"]}
    heads["segformer"] = ["classification", "segmentation"]
    of = {name: importlib.import_module(f"transformers_jax.models.{name}").SIZES for name in heads}
    return [(name, head, size) for name in heads for head in heads[name] for size in of[name] if "hybrid" not in size]


@pytest.mark.parametrize("name, head, size", sizes())
def test_parameters_are_as_many_as_theirs(torch, name, head, size):
    import transformers

    module = importlib.import_module(f"transformers_jax.models.{name}")
    model = models.build({"name": name, "head": head} | module.SIZES[size], 0)
    made = getattr(transformers, module.NAMES[0].heads[head].architecture)
    with torch.device("meta"):
        theirs = made(made.config_class(**module.to_hf(model.config), num_labels=1000))
    wanted = sum(p.numel() for p in theirs.parameters())
    shapes = {key: shape for key, shape in mapping.shapes(model).items() if ":" not in key}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == wanted, wanted


def test_the_resnet_stem_is_that_of_bit(torch):
    """`transformers` has no hybrid any more, but BiT's ResNet as the hybrid has it, with its activations at the end."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BitConfig(
        embedding_size=64, hidden_sizes=[256, 512], depths=[1, 2], layer_type="bottleneck", global_padding="SAME",
        embedding_dynamic_padding=True,
    )  # fmt: skip
    model = transformers.BitModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    theirs_by_name = {name: value.detach().numpy() for name, value in model.named_parameters()}

    def conv(name):
        return {"kernel": theirs_by_name.pop(f"{name}.weight").transpose(2, 3, 1, 0)}

    def norm(name):
        return {"scale": theirs_by_name.pop(f"{name}.weight"), "bias": theirs_by_name.pop(f"{name}.bias")}

    params = {"conv": conv("embedder.convolution"), "norm": norm("embedder.norm")}
    for stage, depth in enumerate(config.depths):
        for i in range(depth):
            name = f"encoder.stages.{stage}.layers.{i}"
            block = {f"conv_{j}": conv(f"{name}.conv{j}") for j in (1, 2, 3)}
            block |= {f"norm_{j}": norm(f"{name}.norm{j}") for j in (1, 2, 3)}
            if i == 0:
                block |= {"project": conv(f"{name}.downsample.conv"), "project_norm": norm(f"{name}.downsample.norm")}
            params[f"stage_{stage}_block_{i}"] = block
    assert not theirs_by_name
    pixels = np.random.default_rng(0).standard_normal((2, 45, 34, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = model(torch.tensor(pixels.transpose(0, 3, 1, 2))).last_hidden_state.numpy().transpose(0, 2, 3, 1)
    got = jax.jit(ResNetStem((1, 2), 64).apply)({"params": params}, pixels)
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-4)
