"""ConvNeXt: a convolution of convolutions, it moves with its image."""

import numpy as np
from models.images import apply, build, image, variables


def test_it_commutes_with_shifts_by_its_stride():
    """Away from the border, where 7 × 7 taps of three blocks read zeros: stage 1 reads 3 positions around, stage 2 6 more."""
    model = build("convnext", depths=(1, 1))
    given, picture = variables(model), image(128, 128, rows=1)
    still = apply(model, given, picture, "pyramid")
    moved = apply(model, given, np.roll(picture, (8, 16), (1, 2)), "pyramid")
    for one, other, stride in zip(still, moved, (4, 8), strict=True):
        shifted = np.roll(one, (8 // stride, 16 // stride), (1, 2))
        rim = 8  # what the taps read beyond, and what has come around
        middle = np.s_[:, rim:-rim, rim:-rim] if stride == 4 else np.s_[:, 6:-5, 7:-5]
        np.testing.assert_allclose(np.asarray(other)[middle], shifted[middle], atol=1e-4)
        assert np.abs(np.asarray(other) - one)[middle].max() > 1e-2
    half = apply(model, given, np.roll(picture, (4, 4), (1, 2)), "pyramid")[1]
    assert np.abs(np.asarray(half) - still[1])[:, 6:-5, 7:-5].max() > 1e-2


def test_layer_scale_may_be_left_out():
    model = build("convnext", layer_scale=0.0)
    given = variables(model)
    assert "layer_scale" not in given["params"]["stage_0"]["layer_0"]["block"]
    assert np.isfinite(apply(model, given, image(32, 32)).logits).all()


def test_pyramid_halves_from_stage_to_stage():
    model = build("convnext", depths=(1, 1, 1), widths=(4, 4, 4))
    maps = apply(model, variables(model), image(32, 48), "pyramid")
    assert [m.shape for m in maps] == [(2, 8, 12, 4), (2, 4, 6, 4), (2, 2, 3, 4)]
