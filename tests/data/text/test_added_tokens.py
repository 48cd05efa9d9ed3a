"""Tokens added to a pretrained vocabulary are one each, in every form of files; roles are never found in texts."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import tokenizers
from test_tokenizer_files import UNCASED, write_byte_level, write_wordpiece

from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError

GOLDEN = Path(__file__).parent.parent.parent / "golden"
TEXT = "a [E1] woman [/E1] plays covid-19 [MASK]"


def added(folder, form: str, names=("[E1]", "[/E1]", "covid-19"), **options) -> Tokenizer:
    """BERT's vocabulary with three added tokens, the last of them not special, in a form that files have."""
    write_wordpiece(folder, UNCASED)
    ids = {name: len(UNCASED) + k for k, name in enumerate(names)}
    special = {name: name.startswith("[") for name in names}
    tokens = {name: {"content": name, "special": special[name], "normalized": False} | options for name in names}
    if form == "tokenizer.json":
        library = tokenizers.Tokenizer.from_str(Tokenizer.load(folder)._library.to_str())
        library.add_tokens([tokenizers.AddedToken(**token) for token in tokens.values()])
        library.save(str(folder / form))
    elif form == "added_tokens.json":
        (folder / form).write_text(json.dumps(ids))
        (folder / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["[E1]", "[/E1]"]}))
    else:
        decoder = {str(ids[name]): token for name, token in tokens.items()}
        (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("form", ["tokenizer.json", "added_tokens.json", "added_tokens_decoder"])
def test_beside_wordpiece(tmp_path, form):
    tokenizer = added(tmp_path, form)
    wanted = "a [E1] wo ##man [/E1] plays covid-19 [UNK] [UNK] [UNK]".split()
    assert tokenizer.tokens(TEXT) == wanted and tokenizer.vocab_size == len(UNCASED) + 3
    assert tokenizer.encode_batch([TEXT]) == [tokenizer.encode(TEXT)]
    ids, places = tokenizer.encode_with_offsets(TEXT)
    assert [TEXT[slice(*place)] for place in places][1] == "[E1]" and ids[1] == len(UNCASED)
    assert tokenizer.decode(tokenizer.encode("a [E1] woman")) == "a woman"  # as of all special tokens
    assert "covid-19" in tokenizer.decode(tokenizer.encode("a covid-19"))
    assert {"[E1]", "[/E1]"} < set(tokenizer.special_names) and "covid-19" not in tokenizer.special_names
    for again in saved(tokenizer, tmp_path), pickle.loads(pickle.dumps(tokenizer)):
        assert again.tokens(TEXT) == wanted and again.fingerprint() == tokenizer.fingerprint()
        assert again.special_names == tokenizer.special_names
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert theirs.encode(TEXT, add_special_tokens=False).tokens[:7] == wanted[:7]
    assert {t.content for t in theirs.get_added_tokens_decoder().values() if not t.special} == {"covid-19"}


def saved(tokenizer, folder):
    tokenizer.save(folder / "saved" / "tokenizer.json")
    return Tokenizer.load(folder / "saved")


def test_beside_byte_level(tmp_path):
    tokens = write_byte_level(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<ent>": len(tokens), "covid-19": len(tokens) + 1}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.tokens("the <ent> the covid-19<|endoftext|>")[:5] == ["the", "Ġ", "<ent>", "Ġthe", "Ġ"]
    ids = tokenizer.encode("the <ent> the covid-19<|endoftext|>")
    assert len(tokens) + 1 in ids and tokenizer.eos_id not in ids
    assert saved(tokenizer, tmp_path).encode("<ent>the") == [len(tokens), tokenizer.id_of("the")]


@pytest.mark.parametrize("form", ["added_tokens.json", "added_tokens_decoder"])
def test_beside_sentencepiece(tmp_path, form):
    shutil.copy(GOLDEN / "sentencepiece_unigram.model", tmp_path)
    plain = Tokenizer.load(tmp_path)
    if form == "added_tokens.json":
        (tmp_path / form).write_text('{"[E1]": 700}')
    else:
        config = {"added_tokens_decoder": {"700": {"content": "[E1]", "special": True}}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("In the [E1] beginning <s>") == [
        *plain.encode("In the"), 700, *plain.encode(" beginning <s>"),
    ]  # fmt: skip
    assert saved(tokenizer, tmp_path).encode("[E1] God") == [700, *plain.encode("God")]


@pytest.mark.parametrize(
    "options, text, wanted",
    [
        ({"lstrip": True}, "a  [E1]", (1, 7)),
        ({"rstrip": True}, "a [E1]  ", (2, 8)),
        ({}, "a [E1] ", (2, 6)),
    ],
)
def test_white_space_that_a_token_takes(tmp_path, options, text, wanted):
    tokenizer = added(tmp_path, "added_tokens_decoder", **options)
    ids, places = tokenizer.encode_marked(text)
    assert ids[-1] == len(UNCASED) and places[-1] == wanted


def test_whole_words_and_normalised_texts(tmp_path):
    (tmp_path / "single").mkdir()
    single = added(tmp_path / "single", "added_tokens_decoder", single_word=True)
    assert "covid-19" in single.tokens("a covid-19.") and "covid-19" not in single.tokens("acovid-19")
    (tmp_path / "plain").mkdir()
    plain = added(tmp_path / "plain", "added_tokens_decoder")
    assert "covid-19" in plain.tokens("acovid-19") and "covid-19" not in plain.tokens("a COVID-19")
    normalized = added(tmp_path, "added_tokens_decoder", normalized=True)
    assert "covid-19" in normalized.tokens("a COVID-19")


def test_a_token_that_the_vocabulary_has_keeps_its_id(tmp_path):
    write_wordpiece(tmp_path, [*UNCASED, "[E1]"], additional_special_tokens=["[E1]"])
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("a [E1]") == [5, len(UNCASED)] and tokenizer.vocab_size == len(UNCASED) + 1


def test_roles_stay_text_in_all_forms(tmp_path):
    roles = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    decoder = {str(i): {"content": name, "special": True} for i, name in enumerate(roles)}
    config = {"added_tokens_decoder": decoder, "additional_special_tokens": list(roles)}
    tokenizer = Tokenizer.load(write_wordpiece(tmp_path, UNCASED, **config))
    assert set(tokenizer.encode(" ".join(roles))) == {1} == {tokenizer.unk_id}  # for `[`, `pad`, `]` …
    assert len(tokenizer.encode(" ".join(roles))) == 15


def test_ids_that_no_vocabulary_gives_are_refused(tmp_path):
    write_wordpiece(tmp_path, UNCASED)
    (tmp_path / "added_tokens.json").write_text('{"[E1]": 900}')
    with pytest.raises(UserError, match=r"the added token '\[E1\]' has the id 900, but 21 is the one"):
        Tokenizer.load(tmp_path)
    for content, says in {"[]": "a JSON object was expected", "{": "is not JSON", '{"[E1]": "x"}': "'x', no whole num"}.items():
        (tmp_path / "added_tokens.json").write_text(content)
        with pytest.raises(UserError, match=f"added_tokens.json.*{says}"):
            Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"20": "[E1]"}}')
    with pytest.raises(UserError, match=r"tokenizer_config.json: added_tokens_decoder has '\[E1\]'"):
        Tokenizer.load(tmp_path)
