"""Chat templates, which tokens of a conversation are answers, and files of conversations."""

import json
import pickle

import pytest
from ml_collections import ConfigDict
from real_data import shared_data

from transformers_jax.data.sources import open_source
from transformers_jax.data.text import chat
from transformers_jax.data.text.chat import ChatTemplate
from transformers_jax.data.text.conversations import messages_of
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.data.text.train_tokenizer import learn
from transformers_jax.errors import UserError

CHATML = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] + '</s>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
THINKING = (  # writes the last answer otherwise than those before, as Qwen3's template does
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ '(thought)\n' }}{% endif %}"
    "{{ message['content'] + '</s>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
HINTED = THINKING.replace("'<s>assistant\n'", "'<s>assistant\n(thought)\n'")  # and asks for it with what is taken out later
MARKED = (
    "{% for message in messages %}{{ message['role'] + ':' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}</s>{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}|{% endfor %}"
)
TALK = [
    {"role": "user", "content": "how are you"},
    {"role": "assistant", "content": " fine, thank you "},
    {"role": "user", "content": "fine"},
    {"role": "assistant", "content": "naïve 日本"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn("byte_bpe", ["how are you", "fine, thank you", "assistant user system\n"] * 9, 330)


def answers(template: ChatTemplate, messages=TALK) -> list[str]:
    """The runs of tokens that are answers, as they are written."""
    ids, mask = template.encode(messages)
    assert len(ids) == len(mask)
    found, before = [], False
    for i, answer in zip(ids, mask, strict=True):
        if answer:
            found = found if before else [*found, []]
            found[-1].append(i)
        before = answer
    eos = template.tokenizer.eos_id
    return [template.tokenizer.decode(run) + "</s>" * (run[-1] == eos) for run in found]


@pytest.mark.parametrize(
    "source, wanted",
    [
        (CHATML, [" fine, thank you </s>", "naïve 日本</s>"]),
        (THINKING, [" fine, thank you </s>", "(thought)\nnaïve 日本</s>"]),
        (HINTED, [" fine, thank you </s>", "naïve 日本</s>"]),
        (MARKED, [" fine, thank you </s>", "naïve 日本</s>"]),
        (None, [" fine, thank you </s>", "naïve 日本</s>"]),
    ],
)
def test_loss_is_on_the_answers(tokenizer, source, wanted):
    template = ChatTemplate(tokenizer, source)
    assert answers(template) == wanted
    ids, mask = template.encode(TALK)
    assert ids == tokenizer.encode_marked(template.render(TALK))[0]
    spoken = template.prompt(TALK[:-1])
    assert source in (HINTED, MARKED) or ids[: len(spoken)] == spoken and mask[len(spoken)]


def test_answers_that_cannot_be_told(tokenizer):
    counting = "{{ messages | length }}{% for message in messages %}"
    counting += "{{ message.content | upper | replace('F', messages | length) }}"
    with pytest.raises(UserError, match="does not tell where its answers stand: mark them with {% generation %}"):
        ChatTemplate(tokenizer, "{{ messages | length }}").encode(TALK)
    assert len(answers(ChatTemplate(tokenizer, counting + "{% endfor %}"))) == 2


def test_a_template_says_what_transformers_gives_it(tokenizer):
    source = (
        "{{- bos_token }}{%- for m in messages %}\n{%- if loop.index0 == 1 %}{% continue %}{% endif %}\n"
        "  {{- m | tojson }}{{ m.get('x', '-') }}\n    {%- endfor %}"
        "{{ strftime_now('%Y')[:2] }}{{ tools is none }}{{ eos_token }}"
    )
    found = ChatTemplate(tokenizer, source).render([{"role": "a", "content": "<é>"}, {}, {"x": 1}])
    assert found == '<s>{"role": "a", "content": "<é>"}-{"x": 1}120True</s>'


@pytest.mark.parametrize(
    "source, says",
    [
        ("{% for m in messages %}\n{{ m ", "^mine, line 2, is no Jinja template: "),
        ("{{ raise_exception('roles must alternate') }}", "^mine: roles must alternate$"),
        ("{{ messages.nothing.here }}", "^mine: .*has no attribute"),
        ("{{ messages[0]['content'] + 3 }}", "^mine cannot be rendered: TypeError: "),
        ("{{ messages.append(3) }}", "^mine: .*not safely callable|^mine: .*unsafe"),
        ("{{ ''.__class__.__mro__ }}{{ messages.__class__.x }}", "^mine: "),
        ("{% generation %}{{ 1 }}", "^mine, line 1, is no Jinja template: "),
    ],
)
def test_templates_that_cannot_be_used(tokenizer, source, says):
    with pytest.raises(UserError, match=says) as error:
        ChatTemplate(tokenizer, source, "mine").render(TALK)
    assert "\n" not in str(error.value)


def test_a_message_that_spells_a_special_token(tokenizer):
    messages = [TALK[0], {"role": "assistant", "content": "a</s><s>user"}]
    for encode in ChatTemplate(tokenizer, CHATML).encode, ChatTemplate(tokenizer, CHATML).prompt:
        with pytest.raises(UserError, match="message 2 spells '<s>', a special token"):
            encode(messages)


def test_the_template_goes_where_the_vocabulary_goes(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).chat_template is None
    templates = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "chat_template": templates}))
    loaded = Tokenizer.load(tmp_path)
    (tmp_path / "other").mkdir()
    loaded.save(tmp_path / "other")
    for found in (loaded, pickle.loads(pickle.dumps(loaded)), Tokenizer.load(tmp_path / "other")):
        assert found.chat_template == CHATML and ChatTemplate(found).render(TALK[:1]) == "<s>user\nhow are you</s>\n"
    (tmp_path / "chat_template.jinja").write_text(MARKED)
    assert Tokenizer.load(tmp_path).chat_template == MARKED


def test_alpacas_words_are_the_default(tokenizer, caplog):
    template = ChatTemplate(tokenizer)
    assert template.is_default
    example = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    assert template.render(messages_of(example, alpaca=True)) == (
        f"{chat.PREFACE_WITH_INPUT}\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n3</s>"
    )
    assert template.render(messages_of(example | {"input": ""}, alpaca=True)[:1]) == (
        f"{chat.PREFACE}\n\n### Instruction:\nAdd.\n\n### Response:\n"
    )
    assert messages_of(example)[0]["content"] == "Add.\n\n1, 2"
    with pytest.raises(UserError, match="roles are .* not tool"):
        template.render([{"role": "tool", "content": ""}])


def conversations(tmp_path, *lines, **keys):
    (tmp_path / "a.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return open_source(ConfigDict({"source": "conversations", "train": str(tmp_path / "a.jsonl"), **keys}), "train")


def test_forms_of_conversations(tmp_path):
    source = conversations(
        tmp_path, '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "id": 3}', "",
        '{"prompt": "a", "response": "b"}', '{"instruction": "a", "output": "b", "input": null}',
    )  # fmt: skip
    wanted = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert [messages_of(source[i]) for i in range(3)] == [wanted] * 3
    assert source.where(1).endswith("a.jsonl, line 3")
    source = conversations(tmp_path, '{"q": "a", "a": "b"}', columns=("prompt=q", "response=a"))
    assert messages_of(source[0]) == wanted
    array = conversations(tmp_path, '[{"prompt": "a", "response": "b"},', '{"prompt": "a", "response": "b"}]')
    assert len(array) == 2 and messages_of(array[1]) == wanted


@pytest.mark.parametrize(
    "line, says",
    [
        ('{"prompt": "a"}', "line 2 lacks an answer: give response"),
        ('{"prompt": "a", "response": ""}', "line 2 lacks an answer: give response"),
        ('{"prompt": "", "response": "b"}', "line 2 has no text as prompt"),
        ('{"instruction": "a", "input": 3, "output": "b"}', "line 2 has no text as input"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 2 lacks an answer: its last message"),
        ('{"messages": [{"role": "assistant", "content": " "}]}', "line 2 lacks an answer"),
        ('{"messages": [{"role": "assistant", "content": [1]}]}', "line 2: the content of message 1 is no text"),
        ('{"messages": [{"content": "b"}]}', "line 2: message 1 has no role"),
        ('{"messages": []}', "line 2: messages is no list"),
        ('{"text": "a"}', "line 2 has none of messages, prompt, instruction"),
        ("[1]", "line 2 is not a JSON object"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_mistakes_in_conversations(tmp_path, line, says):
    with pytest.raises(UserError, match=f"a.jsonl, {says}"):
        conversations(tmp_path, '{"prompt": "a", "response": "b"}', line)


def test_real_instructions(tokenizer):
    path = shared_data("instruct/alpaca_en_demo.json")
    source = open_source(ConfigDict({"source": "conversations", "train": str(path)}), "train")
    template = ChatTemplate(tokenizer)
    for i in range(0, len(source), 50):
        messages = messages_of(source[i], alpaca=True)
        (found,) = answers(template, messages)
        assert found.removesuffix("</s>") == messages[-1]["content"] and len(source) == 999
