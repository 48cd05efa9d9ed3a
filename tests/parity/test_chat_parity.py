"""Chat templates beside `transformers`' `apply_chat_template`: the same text, the same tokens, the same tokens of answers."""

import pytest

from transformers_jax.data.text.chat import ChatTemplate
from transformers_jax.data.text.train_tokenizer import learn

pytestmark = pytest.mark.slow

CHATML = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '</s>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '</s>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
SPOKEN = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
    {{- 'System: ' + system + '\n\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
[ASK] {{ message['content'] | trim }} [/ASK]
    {%- else %}
        {%- generation %} {{ message['content'] | trim }}{{ eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""
JSON = (
    "{% for m in messages %}{% if m.role != 'assistant' %}{{ m | tojson }}{% continue %}{% endif %}"
    "{% generation %}{{ m.content | tojson(indent=2) }}{{ eos_token }}{% endgeneration %}{% endfor %}{{ strftime_now('%Y') }}"
)
TALKS = [
    [{"role": "user", "content": " how are you "}, {"role": "assistant", "content": " fine, thank you  "}],
    [
        {"role": "system", "content": "  be <kind> & “brief”\n"},
        {"role": "user", "content": "naïve 日本?"},
        {"role": "assistant", "content": "yes\n\nno"},
        {"role": "user", "content": "and 'you'"},
        {"role": "assistant", "content": "🙂"},
    ],
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(our tokenizer, the same in transformers)."""
    transformers = pytest.importorskip("transformers")
    tokenizer = learn("byte_bpe", ["how are you fine, thank you yes no", "assistant user system\n[ASK] [/ASK]"] * 9, 360)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    options = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return tokenizer, transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **options)


@pytest.mark.parametrize("source", [CHATML, SPOKEN, JSON])
@pytest.mark.parametrize("talk", TALKS)
def test_same_text_tokens_and_answers(both, source, talk):
    ours, theirs = both
    template = ChatTemplate(ours, source)
    for messages in talk[:-1], talk:
        for prompt in False, True:
            wanted = theirs.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=prompt)
            assert template.render(messages, add_generation_prompt=prompt) == wanted
    options = dict(chat_template=source, return_dict=True, return_assistant_tokens_mask=True)
    wanted = theirs.apply_chat_template(talk, **options)
    found = template.encode(talk)
    assert found.ids == wanted["input_ids"]
    assert [int(answer) for answer in found.answers] == wanted["assistant_masks"] and sum(found.answers) > 2


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("source", [CHATML, SPOKEN])
def test_answers_are_found_without_marks(both, source, talk):
    """What `{% generation %}` says, found by rendering the beginnings of the conversation."""
    ours, theirs = both
    options = dict(chat_template=source, return_dict=True, return_assistant_tokens_mask=True)
    wanted = theirs.apply_chat_template(talk, **options)["assistant_masks"]
    plain = source.replace("{% generation %}", "").replace("{% endgeneration %}", "").replace("{%- generation %}", "{{- '' }}")
    found = ChatTemplate(ours, plain)
    assert not found.marks_answers
    assert [int(answer) for answer in found.encode(talk).answers] == wanted
