"""LoRA adapters of PEFT on models of images, both ways, by the names of `transformers` 5, and read by those of version 4."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from transformers_jax import models, parameters
from transformers_jax.finetuning.method import Finetuning, places_of
from transformers_jax.finetuning.trainable import Options, patterns
from transformers_jax.interchange import huggingface, mapping, peft

pytestmark = pytest.mark.slow

SIZES = {
    "vit": dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, image_size=16, patch_size=4),
    "swin": dict(embed_dim=8, depths=[2, 1], num_heads=[2, 4], window_size=3, image_size=24, patch_size=2),
    "segformer": dict(
        hidden_sizes=[6, 8], depths=[2, 1], num_encoder_blocks=2, num_attention_heads=[1, 2], sr_ratios=[2, 1],
        mlp_ratios=[2, 2], strides=[4, 2], patch_sizes=[7, 3], decoder_hidden_size=10,
    ),
    "convnext": dict(hidden_sizes=[6, 8], depths=[2, 1], num_stages=2, layer_scale_init_value=0.5),
}  # fmt: skip


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch", reason="needs PyTorch: run `make parity`")
    pytest.importorskip("peft", reason="needs peft: run `make parity`")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def made(torch, kind: str, head: str = "classification"):
    import transformers

    torch.manual_seed(0)
    cls = getattr(transformers, huggingface.maps()[kind][1].heads[head].architecture)
    return shaken(torch, cls(cls.config_class(**SIZES[kind], num_labels=3)).eval())


def shaken(torch, model, size: float = 0.3, only: str = ""):
    """The model with other numbers in all parameters, or in those whose names have a part."""
    with torch.no_grad():
        for name, leaf in model.named_parameters():
            if only in name:
                leaf.add_(size * torch.randn(leaf.shape))
    return model


def opened(folder):
    """(model, its parameters, plan) of a folder."""
    fields, leaves, _ = huggingface.opened(folder)
    model = models.build(fields, 0)
    params = mapping.variables(mapping.streamed(leaves))["params"]
    return model, params, mapping.plan(huggingface.names_of(fields), model.protocol().head, mapping.shapes(model))


def image_of() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), np.uint8)


def theirs_of(torch, model, config) -> np.ndarray:
    pixels = (image_of().astype(np.float32) / 255 - np.float32(config.mean)) / np.float32(config.std)
    more = {"interpolate_pos_encoding": True} if model.config.model_type in ("vit", "swin") else {}
    with torch.no_grad():
        return model(pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)), **more).logits.numpy()


def ours_of(model, params) -> np.ndarray:
    return np.asarray(jax.jit(lambda image: model.apply({"params": params}, {"image": image}).logits)(image_of()))


@pytest.mark.parametrize("kind, head", [(k, h) for k in SIZES for h in huggingface.maps()[k][1].heads])
def test_modules_have_the_names_of_transformers_in_memory(torch, tmp_path, kind, head):
    theirs = made(torch, kind, head)
    theirs.save_pretrained(tmp_path)
    fields, leaves, _ = huggingface.opened(tmp_path)
    model = models.build(fields, 0)
    plan = mapping.plan(huggingface.names_of(fields), head, mapping.shapes(model))
    names = {name for name, _ in theirs.named_parameters()} | {name for name, _ in theirs.named_buffers()}
    names = {name for name in names if not name.endswith(("relative_position_index", "num_batches_tracked"))}
    assert {planned.module for planned in plan} == names


HERE = {
    "vit": dict(rank=3),
    "vit, all": dict(rank=2, targets=("query|key|value|out|expand|contract",), rslora=True),
    "vit, dora": dict(rank=2, dora=True, targets=("query|expand",)),
    "swin": dict(rank=2, targets=("query|value|out|contract|reduction",)),
    "swin, dora": dict(rank=2, dora=True, rank_pattern=(("value", 4),)),
    "segformer": dict(rank=2, targets=("query|value|expand",)),
    "convnext": dict(rank=2, targets=("expand|contract",)),
}


@pytest.mark.parametrize("case", HERE)
def test_made_here_and_loaded_by_peft(torch, tmp_path, case):
    import peft as theirs

    kind, options = case.partition(",")[0], {"method": "lora"} | HERE[case]
    made(torch, kind).save_pretrained(tmp_path / "base")
    model, params, plan = opened(tmp_path / "base")
    own = patterns({"finetuning": options})
    before = parameters.nest({name: jnp.asarray(x) for name, x in parameters.flat(params).items()})
    adapted = Finetuning(Options(**options), places_of(model), own)(jax.random.key(0), before)
    leaves = {name: x.value if parameters.is_boxed(x) else x for name, x in parameters.flat(adapted).items()}
    random, learned = np.random.default_rng(0), parameters.matching(leaves, own)
    for name in sorted(learned):
        leaves[name] = leaves[name] + 0.2 * random.standard_normal(leaves[name].shape).astype(np.float32)
    wanted = ours_of(model, parameters.nest(leaves))
    saved = {name: np.asarray(x) for name, x in leaves.items() if name in learned or "lora_scale" in name}
    peft.write(tmp_path / "adapter", plan, saved, base="base", rslora=options.get("rslora", False))
    loaded = theirs.PeftModel.from_pretrained(made(torch, kind), tmp_path / "adapter").eval()
    np.testing.assert_allclose(theirs_of(torch, loaded, model.config), wanted, atol=1e-4, rtol=1e-4)
    assert np.abs(ours_of(model, before) - wanted).max() > 1e-2

    older(tmp_path / "adapter", plan)
    for again in (peft.read(tmp_path / "adapter", plan), peft.read(tmp_path / "older", plan)):
        both = parameters.nest(parameters.flat(params) | again.leaves)
        np.testing.assert_allclose(ours_of(model, both), wanted, atol=1e-5, rtol=1e-5)
        assert {n for n in again.leaves if "lora" not in n} == {"classifier/kernel", "classifier/bias"}


def older(folder, plan) -> None:
    """The adapter beside it that PEFT wrote for version 4: modules have the names of files."""
    names = {p.module.removesuffix(".weight").removesuffix(".bias"): p.theirs.removesuffix(".weight").removesuffix(".bias")
             for p in plan}  # fmt: skip
    longest = sorted(names, key=len, reverse=True)
    found = {}
    for key, array in load_file(folder / peft.WEIGHTS).items():
        module = next(name for name in longest if key.startswith(peft.PREFIX + name + "."))
        found[key.replace(module, names[module], 1)] = array
    config = json.loads((folder / peft.CONFIG).read_text())
    config["target_modules"] = [names[module] for module in config["target_modules"]]
    for key in "rank_pattern", "alpha_pattern":
        config[key] = {re.escape(names[re.sub(r"\\(.)", r"\1", name)]): x for name, x in config[key].items()}
    other = folder.parent / "older"
    other.mkdir()
    save_file(found, other / peft.WEIGHTS)
    (other / peft.CONFIG).write_text(json.dumps(config))


THERE = {
    "vit": dict(r=3, lora_alpha=7, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]),
    "vit, patterns": dict(r=2, target_modules=r".*(o_proj|fc1)", rank_pattern={"fc1": 4}, use_rslora=True),
    "vit, dora": dict(r=2, use_dora=True, target_modules=["k_proj", "fc2"], modules_to_save=["layernorm"]),
    "swin": dict(r=2, target_modules=["q_proj", "reduction", "fc2"], modules_to_save=["classifier"]),
    "segformer": dict(r=2, target_modules=["v_proj", "o_proj"], alpha_pattern={"stages.1.*.v_proj": 5}),
    "convnext": dict(r=2, target_modules=["pwconv1", "pwconv2"]),
}


@pytest.mark.parametrize("case", THERE)
def test_made_by_peft_and_read_here(torch, tmp_path, case):
    import peft as theirs

    base = made(torch, case.partition(",")[0])
    base.save_pretrained(tmp_path / "base")
    model, params, plan = opened(tmp_path / "base")
    adapted = theirs.get_peft_model(base, theirs.LoraConfig(**THERE[case])).eval()
    for part in ("lora_A", "lora_B", "lora_magnitude", "modules_to_save"):
        shaken(torch, adapted, 0.1 if "magnitude" in part else 0.2, part)
    wanted = theirs_of(torch, adapted, model.config)
    adapted.save_pretrained(tmp_path / "adapter")
    found = peft.read(tmp_path / "adapter", plan)
    both = parameters.nest(parameters.flat(params) | found.leaves)
    np.testing.assert_allclose(ours_of(model, both), wanted, atol=1e-4, rtol=1e-4)
    tree = Finetuning(Options(**found.options), places_of(model), patterns({"finetuning": found.options}))(
        jax.random.key(0), parameters.nest({name: jnp.asarray(x) for name, x in parameters.flat(params).items()})
    )
    assert {name for name in parameters.flat(tree) if "lora_" in name} == {name for name in found.leaves if "lora_" in name}
