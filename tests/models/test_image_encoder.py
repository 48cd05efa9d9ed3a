"""What is the same of all models of images: heads, scanned layers, training, what they tell about themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.images import LABELS, TINY, apply, build, image, variables

from transformers_jax import batch as batches
from transformers_jax import parameters
from transformers_jax.errors import UserError
from transformers_jax.interchange import mapping, stacking
from transformers_jax.models.protocol import ENCODES, IMAGES
from transformers_jax.outputs import DetectionOutput, EncoderOutput, LabelOutput
from transformers_jax.training.sharding import RULES, logical_axes

KINDS = sorted(TINY)
SHAPES = {"vit": ((2, 17, 12), (2, 12)), "convnext": ((2, 4, 4, 6), (2, 6)), "swin": ((2, 64, 8), (2, 8))}
SHAPES["segformer"] = ((2, 4, 4, 6), (2, 6))


@pytest.mark.parametrize("kind", KINDS)
def test_heads_give_what_they_say(kind):
    size = TINY[kind]["image_size"]
    for head in build(kind).heads:
        model = build(kind, head=head)
        out = jax.eval_shape(lambda model=model: model.init_with_output(jax.random.key(0), {"image": image(size, size)})[0])
        if head == "none":
            assert isinstance(out, EncoderOutput) and (out.hidden.shape, out.pooled.shape) == SHAPES[kind]
        else:
            assert isinstance(out, DetectionOutput if head == "detection" else LabelOutput)
            places = {"classification": (), "detection": out.logits.shape[1:2], "segmentation": out.logits.shape[1:3]}[head]
            assert out.logits.shape == (2, *places, LABELS) and all(0 < n <= size**2 for n in places)
    with pytest.raises(UserError, match="config.model.head is 'tagging'"):
        build(kind, head="tagging").init(jax.random.key(0), {"image": image(size, size)})


@pytest.mark.parametrize("kind", KINDS)
def test_it_tells_about_itself(kind):
    model = build(kind)
    about = model.protocol()
    example = batches.check(about.example(B=3))
    assert (about.reads, about.does, about.labels, about.tied) == ((IMAGES,), (ENCODES,), LABELS, False)
    size = TINY[kind]["image_size"]
    assert {name: x.shape for name, x in example.items()} == {"image": (3, size, size, 3)}
    given = variables(model)
    assert jax.eval_shape(lambda: model.apply(given, example, method="encode")).shape[0] == 3
    axes = logical_axes(jax.eval_shape(lambda: model.init(jax.random.key(0), example))["params"])
    assert all(names is not None and set(names) - {None} <= set(RULES) for names in axes.values())


@pytest.mark.parametrize("kind", KINDS)
def test_scanned_layers_are_the_same_layers(kind):
    size = TINY[kind]["image_size"]
    scanned, apart = (build(kind, scan_layers=scan, remat=scan) for scan in (True, False))
    stacked = variables(scanned)
    separate = mapping.variables(stacking.separate({k: np.asarray(v) for k, v in mapping.named(stacked).items()}))
    batch = image(size, size)
    np.testing.assert_allclose(apply(scanned, stacked, batch).logits, apply(apart, separate, batch).logits, atol=1e-5)


@pytest.mark.parametrize("kind, scan", [("vit", True), ("convnext", False), ("swin", True), ("segformer", False)])
def test_it_trains(kind, scan):
    """With everything dropped that can be, two keys give two losses; every parameter has a gradient."""
    size, rates = TINY[kind]["image_size"], dict(dropout=0.2, attention_dropout=0.2, classifier_dropout=0.2, drop_path=0.5)
    model = build(kind, scan_layers=scan, remat=scan, **rates)
    given = variables(model)

    @jax.jit
    @jax.value_and_grad
    def loss(params, key):
        out = model.apply({"params": params}, {"image": image(size, size, rows=8)}, deterministic=False, rngs={"dropout": key})
        return jnp.mean(out.logits**2)

    (one, gradients), (two, _) = (loss(given["params"], jax.random.key(i)) for i in range(2))
    assert np.isfinite(one) and one != two
    for name, gradient in parameters.flat(gradients).items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0 or name.endswith("key/bias"), name  # a bias of keys changes no softmax


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_normalised_inside(kind):
    model = build(kind, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    size = TINY[kind]["image_size"]
    white = np.full((1, size, size, 3), 255, np.uint8)
    given = variables(model)
    pixels = model.apply(given, {"image": white}, method="pixels")
    np.testing.assert_allclose(pixels[0, 0, 0], [1, 3, 1], rtol=1e-6)
    np.testing.assert_array_equal(pixels, model.apply(given, {"image": white.astype(np.float32)}, method="pixels"))
    grey = build(kind, channels=1, mean=[0.5], std=[0.5])
    assert variables(grey) and grey.config.mean == (0.5,)


def test_wrong_fields_and_images_are_named():
    for fields, says in (
        (dict(mean=(0.5, 0.5)), "config.model.mean is .*give 3 numbers"),
        (dict(activation="gleu"), "config.model.activation.*gelu_tanh"),
        (dict(name="convnext", depths=(1, 1)), "as many numbers of each as there are stages, not depths"),
    ):
        with pytest.raises(UserError, match=says):
            build(fields.pop("name", "vit"), **({"widths": (4, 4, 4)} if "depths" in fields else {}), **fields)
    for kind, size, says in (
        ("vit", 3, "images of 3×3 pixels are too small: a side has 4"),
        ("convnext", 7, "8 or more"),
        ("segformer", 4, "5 or more"),
    ):
        with pytest.raises(UserError, match=says):
            build(kind).init(jax.random.key(0), {"image": image(size, size)})
    with pytest.raises(UserError, match="images have 1 channels, config.model.channels is 3"):
        build("vit").init(jax.random.key(0), {"image": image(16, 16, channels=1)})


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind):
    size = TINY[kind]["image_size"]
    single, half = (build(kind, dtype=dtype) for dtype in ("float32", "bfloat16"))
    given = variables(single)
    one, other = (apply(model, given, image(size, size)).logits for model in (single, half))
    assert other.dtype == jnp.bfloat16
    np.testing.assert_allclose(other.astype(np.float32), one, atol=0.1 * float(np.abs(one).max()))
