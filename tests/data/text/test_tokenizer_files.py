"""Pretrained tokenizers through the same class, from small files of each kind; and what is said of broken ones."""

import json
import logging

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError

UNCASED = "[PAD] [UNK] [CLS] [SEP] [MASK] a wo ##man plays the gui ##tar nais ##e naïve . , ! ' s 日".split()
CASED = "[PAD] [UNK] [CLS] [SEP] [MASK] A woman plays The gui ##tar .".split()
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "a")]


def write_wordpiece(folder, tokens, **config):
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_byte_level(folder, special=("<|endoftext|>",), first=(), **config):
    tokens = [*first, *BYTES, *map("".join, MERGES), *special]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES), encoding="utf-8")
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokens


def special(tokenizer):
    return tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.mask_id


def test_wordpiece(tmp_path):
    tokenizer = Tokenizer.load(write_wordpiece(tmp_path, UNCASED))
    assert special(tokenizer) == (0, 2, 3, 1, 4) and tokenizer.vocab_size == len(UNCASED)
    text = "A Woman plays the guitar, Zorro!"
    assert tokenizer.tokens(text) == "a wo ##man plays the gui ##tar , [UNK] !".split()
    assert tokenizer.decode([2, *tokenizer.encode("A woman plays the guitar."), 3, 0]) == "a woman plays the guitar."
    assert tokenizer.tokens("日naïSE") == ["日", "nais", "##e"]  # ideographs stand alone, accents are stripped
    assert tokenizer.tokens("[MASK]") == ["[UNK]"] * 3  # of a text: `[`, `mask` and `]`
    assert Tokenizer.load(tmp_path / "vocab.txt").fingerprint() == tokenizer.fingerprint()


def test_wordpiece_case(tmp_path):
    tokenizer = Tokenizer.load(write_wordpiece(tmp_path, CASED))  # capitals in the vocabulary
    assert tokenizer.tokens("A woman plays The guitar.") == "A woman plays The gui ##tar .".split()
    assert Tokenizer.load(write_wordpiece(tmp_path, CASED, do_lower_case=True)).tokens("A Woman") == ["[UNK]", "woman"]
    config = {"do_lower_case": False, "tokenize_chinese_chars": False, "strip_accents": False}
    tokenizer = Tokenizer.load(write_wordpiece(tmp_path, UNCASED, **config))
    assert tokenizer.tokens("A naïve 日a") == ["[UNK]", "naïve", "[UNK]"]


def test_wordpiece_equals_the_library_bert(tmp_path):
    write_wordpiece(tmp_path, UNCASED)
    reference = tokenizers.BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=True)
    tokenizer = Tokenizer.load(tmp_path)
    for text in ["A woman's guitar\tplays. Naïve!!", "", "  the\u00a0the ", "日a日", "x" * 300]:
        assert tokenizer.encode(text) == reference.encode(text, add_special_tokens=False).ids


def test_byte_level(tmp_path):
    tokens = write_byte_level(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    last = len(tokens) - 1
    assert special(tokenizer) == (last, last, last, None, None) and tokenizer.vocab_size == len(tokens)
    assert tokenizer.tokens("the the a") == ["the", "Ġthe", "Ġa"]
    for text in ["the  the ", "", " ä🙂 <|endoftext|>\t</w>\n", "it's 1998!"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and last not in ids
    assert tokenizer.decode([last, *tokenizer.encode("the"), last]) == "the"
    for name in ("vocab.json", "merges.txt"):
        assert Tokenizer.load(tmp_path / name).fingerprint() == tokenizer.fingerprint()


def test_byte_level_of_roberta(tmp_path):
    write_byte_level(tmp_path, first=("<s>", "<pad>", "</s>", "<unk>"), special=("<mask>",), add_prefix_space=True)
    tokenizer = Tokenizer.load(tmp_path)
    assert special(tokenizer) == (1, 0, 2, 3, tokenizer.vocab_size - 1)
    assert tokenizer.tokens("the a") == ["Ġthe", "Ġa"]


def library_file(path):
    """A word-level tokenizer.json that cuts, pads and frames what it encodes, as many published ones do."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "guitar", "<turn>", "<end>"]
    library = tokenizers.Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    library.normalizer, library.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    library.decoder = decoders.WordPiece()
    library.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<turn>", "<end>"])
    frame = {"single": "[CLS] $A [SEP]", "special_tokens": [("[CLS]", 2), ("[SEP]", 3)]}
    library.post_processor = processors.TemplateProcessing(**frame)
    library.enable_truncation(3)
    library.enable_padding(length=16)
    path.write_text(library.to_str(), encoding="utf-8")


def test_any_tokenizer_json(tmp_path):
    library_file(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.load(tmp_path)
    assert special(tokenizer) == (0, 2, 3, 1, None) and tokenizer.vocab_size == 9
    assert tokenizer.encode("The guitar a the a guitar") == [4, 6, 5, 4, 5, 6]  # neither cut nor padded nor framed
    assert tokenizer.encode_batch(["the", "", "the a"]) == [[4], [], [4, 5]]
    assert tokenizer.encode("[SEP] <end> <END>") == [1, 8, 8]  # `[SEP]` has a role, so it is text
    assert tokenizer.decode([2, 4, 5, 3, 8, 0]) == "the a"


def test_the_config_beside_names_special_tokens(tmp_path):
    library_file(tmp_path / "tokenizer.json")
    config = {"bos_token": "<turn>", "eos_token": {"content": "<end>"}, "pad_token": None, "cls_token": "[CLS]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert special(tokenizer) == (0, 7, 8, 1, None)
    tokenizer.save(tmp_path / "copy" / "tokenizer.json")  # its names alone would tell [CLS] and [SEP]
    assert special(Tokenizer.load(tmp_path / "copy")) == (0, 7, 8, 1, None)
    assert Tokenizer.load(tmp_path / "copy").fingerprint() == tokenizer.fingerprint()
    tokenizer.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == config  # it told already


def test_a_name_that_is_no_token(tmp_path, caplog):
    library_file(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<stop>"}')
    with caplog.at_level(logging.WARNING):
        assert Tokenizer.load(tmp_path).eos_id == 3
    assert "eos_token '<stop>' is no token" in caplog.text


def test_pretrained_ones_are_saved_and_loaded(tmp_path):
    for kind, write in {"w": lambda f: write_wordpiece(f, UNCASED), "b": write_byte_level}.items():
        (tmp_path / kind).mkdir()
        write(tmp_path / kind)
        tokenizer = Tokenizer.load(tmp_path / kind)
        tokenizer.save(tmp_path / kind / "saved" / "tokenizer.json")
        again = Tokenizer.load(tmp_path / kind / "saved")
        assert special(again) == special(tokenizer) and again.fingerprint() == tokenizer.fingerprint()
        assert again.encode("the guitar") == tokenizer.encode("the guitar") != []


def broken(folder, name, content, *others):
    for other in others:
        write_byte_level(folder) if other == "bytes" else write_wordpiece(folder, UNCASED)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        Tokenizer.load(folder / name)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    return str(error.value).replace(str(folder), "")


def test_broken_files_are_named(tmp_path):
    assert "tokenizer.json: not a tokenizer.json" in broken(tmp_path, "tokenizer.json", "{")
    assert "tokenizer.json: not a tokenizer.json" in broken(tmp_path, "tokenizer.json", '{"model": 3}')
    assert "vocab.txt, line 3: the token 'a' stands" in broken(tmp_path, "vocab.txt", "[UNK]\na\na\n")
    assert "vocab.txt: no token [UNK]" in broken(tmp_path, "vocab.txt", "")
    assert "vocab.txt: not UTF-8" in broken(tmp_path, "vocab.txt", b"[UNK]\n\xff\n")
    assert "vocab.txt: no token begins or ends a text" in broken(tmp_path, "vocab.txt", "[UNK]\na\n")
    assert "merges.txt, line 2: 'a b c' is no merge" in broken(tmp_path, "merges.txt", "#version\na b c", "bytes")
    assert "merges.txt, line 1: 'q x' is no merge" in broken(tmp_path, "merges.txt", "q x\n", "bytes")
    assert "vocab.json, line 1: not JSON" in broken(tmp_path, "vocab.json", "[", "bytes")
    assert "vocab.json: a JSON object was expected" in broken(tmp_path, "vocab.json", "[]", "bytes")
    assert "vocab.json: not a byte-level vocabulary" in broken(tmp_path, "vocab.json", '{"a": 0, "b": 1}', "bytes")
    assert "vocab.json: tokens end in </w>, as FlauBERT's" in broken(tmp_path, "vocab.json", '{"a": 0, "b</w>": 1}', "bytes")
    (tmp_path / "tokenizer_config.json").write_text("{]")
    assert "tokenizer_config.json, line 1: not JSON" in broken(tmp_path, "vocab.txt", "\n".join(UNCASED))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such file or folder"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no tokenizer.json, vocab.txt, vocab.json with merges.txt or Sentence"):
        Tokenizer.load(tmp_path)
    write_byte_level(tmp_path)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(UserError, match=r"vocab.json: missing"):
        Tokenizer.load(tmp_path)


def test_the_order_in_a_folder(tmp_path):
    write_byte_level(tmp_path)
    assert Tokenizer.load(tmp_path).tokens("the") == ["the"]
    write_wordpiece(tmp_path, UNCASED)
    assert Tokenizer.load(tmp_path).tokens("guitar") == ["gui", "##tar"]
    library_file(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).tokens("guitar") == ["guitar"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("a cafe\u0301 plays", ["a", "cafe\u0301", "plays"]),
        ("हिन्दी की", ["हिन्दी", "की"]),
        ("e\u0301\u0323.", ["e\u0301\u0323", "."]),
    ],
)
def test_marks_that_an_uncased_vocabulary_drops_belong_to_their_token(tmp_path, text, words):
    letters = sorted(set("cafeplysहनदकी."))
    tokens = [*UNCASED[:5], *letters, *("##" + letter for letter in letters)]
    tokenizer = Tokenizer.load(write_wordpiece(tmp_path, tokens, do_lower_case=True))
    ids, places = tokenizer.encode_with_offsets(text)
    ends = {end for _, end in places}
    at = 0
    for word in words:
        at = text.index(word, at) + len(word)
        assert at in ends, (word, places)
    assert all(a[1] <= b[0] for a, b in zip(places, places[1:], strict=False))
