"""Texts that a tiny GPT writes: prompts, conversations, stop strings, what is shown while it comes."""

import dataclasses
import functools

import numpy as np
import pytest
import tiny_decoder
from tiny_decoder import there, tokenizer

from transformers_jax.data.text.chat import ChatTemplate
from transformers_jax.errors import UserError
from transformers_jax.inference import predictor
from transformers_jax.inference.generate import Generator, Options

PROMPTS = ["the king of the", "so it goes", "", "the capital of the land is far away, and"]
ASKED = [{"prompt": prompt} for prompt in PROMPTS]


@functools.cache
def generator(**options):
    return Generator(there(), Options(**{"max_tokens": 10, **options}))


def texts(found):
    return [[output["text"] for output in one["outputs"]] for one in found]


def test_every_prompt_gets_its_text_in_order():
    found = generator()(ASKED)
    assert [one["prompt"] for one in found] == PROMPTS
    for asked, one in zip(ASKED, found, strict=True):
        [alone] = generator()([asked])
        assert texts([alone]) == texts([one])
        [output] = one["outputs"]
        assert output["finish"] in ("end", "length") and output["logprob"] < 0 and set(output) == {"text", "finish", "logprob"}
    assert len({text for [text] in texts(found)}) > 2


def test_a_text_is_what_the_tokens_of_prompt_and_output_spell():
    ids = generator().prompt_ids(ASKED[0])
    assert ids == tokenizer().begun(tokenizer().encode(PROMPTS[0]))
    [[one]] = generator().tokens([ids])
    assert tokenizer().decode(ids) + texts(generator()(ASKED[:1]))[0][0] == tokenizer().decode([*ids, *one.ids])


def test_what_is_shown_while_it_is_written_is_the_text():
    shown = {}

    def show(number, text):
        shown[number] = shown.get(number, "") + text

    found = generator()(ASKED, first=5, show=show)
    assert [[shown[5 + i]] for i in range(len(ASKED))] == texts(found) == texts(generator()(ASKED))


def test_a_stop_string_ends_the_text_and_is_no_part_of_it():
    whole = texts(generator(max_tokens=20)(ASKED))
    [text] = whole[0]
    stop = text[5:8]
    found = generator(max_tokens=20, stop=(stop, "never"))(ASKED)
    assert texts(found)[0][0] == text[: text.index(stop)] and found[0]["outputs"][0]["finish"] == "stop"
    shown = []
    generator(max_tokens=20, stop=(stop, "never"))(ASKED[:1], show=lambda number, text: shown.append(text))
    assert "".join(shown) == text[: text.index(stop)]


def test_log_probabilities_are_those_of_the_tokens():
    [one] = generator(logprobs=True)(ASKED[:1])
    [output] = one["outputs"]
    assert len(output["tokens"]) == len(output["logprobs"]) > 0 and all(value <= 0 for value in output["logprobs"])
    if output["finish"] == "length":
        assert output["logprob"] == pytest.approx(sum(output["logprobs"]), abs=1e-3)


def test_samples_differ_and_depend_on_the_seed():
    options = {"num_samples": 4, "temperature": 1.5, "top_p": 0.95}
    first = generator(**options, seed=1)(ASKED)
    assert [len(one["outputs"]) for one in first] == [4] * 4 and len({text for row in texts(first) for text in row}) > 8
    assert texts(first) == texts(Generator(there(), generator(**options, seed=1).options)(ASKED))
    assert texts(first) != texts(generator(**options, seed=2)(ASKED))
    assert texts(first)[2:] == texts(generator(**options, seed=1)(ASKED[2:], first=2))


def test_beams_give_the_best_ones_first():
    found = generator(method="beam", num_samples=3)(ASKED)
    for one in found:
        assert len(one["outputs"]) == 3 and len({output["text"] for output in one["outputs"]}) > 1


def test_which_method_is_chosen():
    assert Options().chosen == "greedy" and Options(top_k=4).chosen == "sample" and Options(num_samples=2).chosen == "sample"
    assert Options(temperature=0.0, top_k=4).chosen == "greedy" and Options(method="beam", num_samples=2).chosen == "beam"


def test_a_conversation_is_asked_by_the_template_and_ends_with_its_turn():
    t = tokenizer()
    template = ChatTemplate(t, tiny_decoder.CHAT)
    assert template.ends() == (t.eos_id,)
    task = type("Chat", (), {"template": template})()
    messages = [{"role": "user", "content": "the king?"}]
    ours = Generator(there()._replace(task=task), Options(max_tokens=6))
    assert ours.prompt_ids({"messages": messages}) == template.prompt(messages)
    [found] = ours([{"messages": messages}])
    [[one]] = ours.tokens([template.prompt(messages)])
    assert found["outputs"][0]["text"].strip() == t.decode(one.ids).strip() and found["messages"] == messages


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "greedy", "num_samples": 2}, "--num_samples: greedy has one output"),
        ({"method": "beam", "num_samples": 5}, "--num_samples=5: a beam of 4"),
        ({"method": "beam", "logprobs": True}, "--logprobs: a beam"),
        ({"max_tokens": 0}, "--max_tokens=0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": -1.0}, "min_p is -1.0"),
    ],
)
def test_impossible_options_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        Generator(there(), Options(**wrong))


@pytest.mark.parametrize("wrong", [{}, {"prompt": 3}, {"messages": []}, {"messages": [{"role": "user"}]}, {"messages": "hi"}])
def test_what_is_no_prompt_is_refused_with_its_place(wrong):
    with pytest.raises(UserError, match="^prompt 1: "):
        generator()([ASKED[0], wrong])


def test_a_model_that_continues_nothing_is_refused():
    bert = type("Bert", (), {"protocol": lambda self: dataclasses.replace(there().model.protocol(), does=("encodes",))})()
    with pytest.raises(UserError, match="tiny holds no model that continues texts: it encodes"):
        Generator(there()._replace(model=bert), Options())


def test_prompts_of_a_run_begin_as_its_documents_did():
    ours = Generator(there()._replace(begins=True), Options())
    t = tokenizer()
    assert ours.prompt_ids({"prompt": "the"}) == [t.bos_id, *t.encode("the")]
    assert ours.prompt_ids({"prompt": ""}) == [t.bos_id]
    assert np.array_equal(generator().prompt_ids({"prompt": ""}), [t.bos_id])


def test_from_a_notebook(tmp_path):
    import transformers_jax as tj

    folder = tiny_decoder.write(tmp_path / "hf")
    model, there = tj.load(folder), predictor.loaded(str(folder))
    asked = Generator(there, Options(max_tokens=10))(ASKED[:2])
    assert model.generate(PROMPTS[:2], max_tokens=10) == [text for [text] in texts(asked)]
    several = model.generate(PROMPTS[:1], max_tokens=5, num_samples=2)
    assert [len(row) for row in several] == [2]
    with pytest.raises(UserError, match="spells '<s>'"):
        model.generate([[{"role": "user", "content": "<s>"}]])
