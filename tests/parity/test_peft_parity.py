"""LoRA adapters of PEFT, both ways: made here and loaded by PEFT on the model of `transformers`, made by PEFT and read here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformers_jax import models, parameters
from transformers_jax.finetuning.method import Finetuning, places_of
from transformers_jax.finetuning.trainable import NEW_HEAD, Options, patterns
from transformers_jax.interchange import huggingface, mapping, peft, stacking

pytestmark = pytest.mark.slow

VOCABULARY, LENGTHS = 31, (9, 4)
BERT = dict(
    vocab_size=VOCABULARY, max_position_embeddings=16, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=20, pad_token_id=1, num_labels=3,
)  # fmt: skip
GPT = dict(vocab_size=VOCABULARY, n_embd=16, n_head=4, n_layer=2, n_positions=24)
LLAMA = dict(
    vocab_size=VOCABULARY, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
    num_hidden_layers=2, max_position_embeddings=64,
)  # fmt: skip
MODELS = {
    "bert": ("BertForSequenceClassification", BERT),
    "bert, body": ("BertModel", BERT),
    "roberta": ("RobertaForSequenceClassification", BERT | dict(type_vocab_size=1)),
    "gpt2": ("GPT2LMHeadModel", GPT),
    "llama": ("LlamaForCausalLM", LLAMA),
}


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch", reason="needs PyTorch: run `make parity`")
    pytest.importorskip("peft", reason="needs peft: run `make parity`")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(threads)


def make(torch, name: str):
    import transformers

    torch.manual_seed(0)
    made, changes = getattr(transformers, MODELS[name][0]), MODELS[name][1]
    return shaken(torch, made(made.config_class(**changes, attn_implementation="eager")).eval())


def shaken(torch, model, size: float = 0.3, only: str = ""):
    """The model with other numbers in all parameters, or in those whose names have a part."""
    with torch.no_grad():
        for name, leaf in model.named_parameters():
            if only in name:
                leaf.add_(size * torch.randn(leaf.shape))
    return model


def batch_of() -> dict:
    positions = np.tile(np.arange(max(LENGTHS), dtype=np.int32), (len(LENGTHS), 1))
    segments = (positions < np.array(LENGTHS)[:, None]).astype(np.int32)
    tokens = np.random.default_rng(1).integers(3, VOCABULARY, segments.shape).astype(np.int32)
    tokens = np.where(segments > 0, tokens, 1)
    return {"tokens": tokens, "positions": positions * segments, "segments": segments, "token_types": segments * 0}


def theirs_of(torch, model, batch) -> np.ndarray:
    inputs = dict(input_ids=torch.tensor(batch["tokens"], dtype=torch.long), attention_mask=torch.tensor(batch["segments"]))
    with torch.no_grad():
        output = model(**inputs)
    return (output.logits if "logits" in output else output.last_hidden_state).numpy()


def ours_of(model, params, batch) -> np.ndarray:
    output = jax.jit(lambda batch: model.apply({"params": params}, batch))(batch)
    if hasattr(output, "logits"):
        return np.asarray(output.logits)
    return np.asarray(output.hidden @ output.table.T if hasattr(output, "table") else output.hidden)


def compare(got, wanted, batch) -> None:
    real = batch["segments"] > 0 if wanted.ndim == 3 else slice(None)
    np.testing.assert_allclose(got[real], wanted[real], atol=1e-4, rtol=1e-4)


def plan_of(fields):
    model = models.build(fields, fields["vocab_size"])
    return model, mapping.plan(huggingface.names_of(fields), model.protocol().head, mapping.shapes(model))


HERE = {
    "bert": ("bert", dict(rank=3)),
    "bert, all, scanned": ("bert", dict(rank=2, targets=(".",), rslora=True)),
    "bert, ranks": ("bert", dict(rank=2, rank_pattern=(("query", 4),), alpha_pattern=(("value", 3.0),))),
    "bert, dora": ("bert", dict(rank=2, dora=True, targets=("query", "contract", "out"))),
    "bert, body": ("bert, body", dict(rank=2, targets=("expand",))),
    "roberta": ("roberta", dict(rank=2)),
    "gpt2, query and value of three": ("gpt2", dict(rank=2)),
    "gpt2, all": ("gpt2", dict(rank=2, targets=(".",), rslora=True)),
    "gpt2, dora": ("gpt2", dict(rank=2, targets=("query|key|value",), dora=True)),
    "llama": ("llama", dict(rank=2, targets=(".",))),
}


@pytest.mark.parametrize("case", HERE)
def test_made_here_and_loaded_by_peft(torch, tmp_path, case):
    import peft as theirs

    (name, options), batch = HERE[case], batch_of()
    make(torch, name).save_pretrained(tmp_path / "base")
    fields, params, _ = huggingface.load(tmp_path / "base")
    if "scanned" in case:
        fields |= {"scan_layers": True}
    model, plan = plan_of(fields)
    options = {"method": "lora"} | options
    own = patterns({"finetuning": options})
    before = stacking.arranged(parameters.flat(params), mapping.shapes(model))
    adapted = Finetuning(Options(**options), places_of(model), own)(
        jax.random.key(0), parameters.nest({n: jnp.asarray(x) for n, x in before.items()})
    )
    leaves = {n: x.value if parameters.is_boxed(x) else x for n, x in parameters.flat(adapted).items()}
    random = np.random.default_rng(0)
    learned = parameters.matching(leaves, own) if name != "bert, body" else parameters.matching(leaves, "lora_[ab]$")
    for leaf in sorted(learned):
        leaves[leaf] = leaves[leaf] + 0.2 * random.standard_normal(leaves[leaf].shape).astype(np.float32)
    wanted = ours_of(model, parameters.nest(leaves), batch)
    apart = stacking.separate({n: np.asarray(x) for n, x in leaves.items() if n in learned or "lora_scale" in n})
    peft.write(tmp_path / "adapter", plan, apart, base="base", head=fields.get("head", ""), rslora=options.get("rslora", False))
    loaded = theirs.PeftModel.from_pretrained(make(torch, name), tmp_path / "adapter").eval()
    compare(theirs_of(torch, loaded, batch), wanted, batch)
    before = parameters.nest({n: jnp.asarray(x) for n, x in before.items()})
    assert np.abs(ours_of(model, before, batch) - wanted).max() > 1e-2
    again = peft.read(tmp_path / "adapter", plan)
    together = stacking.arranged(parameters.flat(params) | again.leaves, parameters.flat(adapted))
    compare(ours_of(model, parameters.nest(together), batch), wanted, batch)
    if name != "bert, body":
        assert {n for n in again.leaves if "lora" not in n} == {n for n in apart if "lora" not in n} == parameters.matching(
            parameters.flat(params), NEW_HEAD
        )


THERE = {
    "bert": ("bert", dict(r=3, lora_alpha=7, target_modules=["query", "value"], task_type="SEQ_CLS")),
    "bert, patterns": (
        "bert",
        dict(r=2, target_modules="all-linear", rank_pattern={"query": 4}, alpha_pattern={"layer.1.*.value": 5}),
    ),
    "bert, dora": ("bert", dict(r=2, use_dora=True, target_modules=["key", "dense"], modules_to_save=["classifier"])),
    "bert, norms": ("bert", dict(r=2, use_rslora=True, target_modules=["query"], modules_to_save=["LayerNorm", "pooler"])),
    "bert, body": ("bert, body", dict(r=2, target_modules=["query"], layers_to_transform=[1])),
    "roberta": ("roberta", dict(r=2, target_modules=["query", "value"], task_type="SEQ_CLS")),
    "gpt2": ("gpt2", dict(r=2, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, use_rslora=True)),
    "gpt2, dora": ("gpt2", dict(r=2, target_modules=["c_attn"], fan_in_fan_out=True, use_dora=True)),
    "llama": ("llama", dict(r=2, target_modules=["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"])),
}


@pytest.mark.parametrize("case", THERE)
def test_made_by_peft_and_read_here(torch, tmp_path, case):
    import peft as theirs

    (name, options), batch = THERE[case], batch_of()
    base = make(torch, name)
    base.save_pretrained(tmp_path / "base")
    adapted = theirs.get_peft_model(base, theirs.LoraConfig(**options)).eval()
    for part in ("lora_A", "lora_B", "lora_magnitude", "modules_to_save"):
        shaken(torch, adapted, 0.1 if "magnitude" in part else 0.2, part)
    wanted = theirs_of(torch, adapted, batch)
    adapted.save_pretrained(tmp_path / "adapter")
    fields, params, _ = huggingface.load(tmp_path / "base")
    model, plan = plan_of(fields)
    found = peft.read(tmp_path / "adapter", plan)
    leaves = stacking.arranged(parameters.flat(params), mapping.shapes(model)) | _as_stacked(found.leaves, model)
    compare(ours_of(model, parameters.nest(leaves), batch), wanted, batch)
    assert found.options["method"] == "lora" and found.options["rank"] == options["r"]
    assert found.options["rslora"] == options.get("use_rslora", False)
    # the options alone make a tree of the same leaves
    chosen = Options(**found.options)
    own = Finetuning(chosen, places_of(model), patterns({"finetuning": found.options}))
    tree = parameters.flat(own(jax.random.key(0), params_of(model, params)))
    shapes = {n: (x.value if parameters.is_boxed(x) else x).shape for n, x in tree.items()}
    assert {n: x.shape for n, x in _as_stacked(found.leaves, model).items()}.items() <= shapes.items()
    assert {n for n in shapes if "lora_" in n} == {n for n in _as_stacked(found.leaves, model) if "lora_" in n}


def params_of(model, params):
    arranged = stacking.arranged(parameters.flat(params), mapping.shapes(model))
    return parameters.nest({name: jnp.asarray(x) for name, x in arranged.items()})


def _as_stacked(leaves, model):
    """Of models whose layers are one stack, the leaves of all layers in one."""
    if not any("/layer/" in name for name in mapping.shapes(model)):
        return leaves
    return stacking.arranged(leaves, {stacking._SEPARATE.sub(r"\1layer/", name, count=1) for name in leaves})
