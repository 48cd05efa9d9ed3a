"""Chat templates: how a conversation is written as one text, in Jinja, and which of its tokens are answers.

Templates are what `tokenizer_config.json`, `chat_template.jinja` and GGUF files hold, rendered as `transformers` does it: in a
sandbox that cannot change what it is given, with `raise_exception`, `strftime_now` and `tojson`. What they are given:
`messages`, `add_generation_prompt`, and the names of the tokens that begin and end texts, `bos_token` and `eos_token`.
"""

import datetime
import itertools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
from absl import logging

from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import UserError

PREFACE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PREFACE_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
"""Alpaca's wording (Taori et al. 2023, "Stanford Alpaca")."""

DEFAULT = (
    "{%- if messages and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set rest = messages[1:] %}"
    "{%- else %}{{ '" + PREFACE + "' }}{% set rest = messages %}{% endif %}"
    "{%- for message in rest %}"
    "{%- if message['role'] == 'user' %}{{ '\n\n### Instruction:\n' + message['content'] + '\n\n### Response:\n' }}"
    "{%- elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{%- else %}{{ raise_exception('roles are system (first), user and assistant, not ' + message['role']) }}{% endif %}"
    "{%- endfor %}"
)
"""The template of a vocabulary that has none: Alpaca's."""

_BEGIN, _END = "\ufdd0", "\ufdd1"
"""What stands around the answers, while their places are looked for: no characters of any text."""


class Conversation(NamedTuple):
    """The tokens of a conversation, and for each whether it belongs to an answer."""

    ids: list[int]
    answers: list[bool]


class ChatTemplate:
    """A template with the vocabulary that it is written for.

    Args:
      source: the template; None for the vocabulary's own, or, with a word in the log, DEFAULT.
      tokenizer: the vocabulary.
      name: what the template is called in messages.

    Raises:
      UserError: the template is not Jinja.
    """

    def __init__(self, tokenizer: Tokenizer, source: str | None = None, name: str = "the chat template"):
        self.tokenizer, self.name = tokenizer, name
        source = tokenizer.chat_template if source is None else source
        self.is_default = source is None
        if self.is_default:
            logging.info("the vocabulary has no chat template: conversations are written as ### Instruction and ### Response")
        source = DEFAULT if source is None else source
        begins = tokenizer.bos_id != tokenizer.eos_id  # else the vocabulary may have none that begins
        self.tokens = {
            "bos_token": tokenizer.token(tokenizer.bos_id) if begins else "",
            "eos_token": tokenizer.token(tokenizer.eos_id),
        }
        try:
            self._template, self._marked = (_environment(kind).from_string(source) for kind in (_Plain, _Marking))
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{name}, line {error.lineno}, is no Jinja template: {error.message}") from error
        self.marks_answers = _has_generation(source)

    def render(self, messages: Sequence[dict], *, add_generation_prompt: bool = False, **more: Any) -> str:
        """The text of a conversation.

        Args:
          messages: {"role": "system", "user" or "assistant", "content": str}, and what else the template reads.
          add_generation_prompt: whether the beginning of an answer is written behind it.
          more: variables of the template, `tools` say.

        Raises:
          UserError: the template refuses the messages, or cannot be rendered.
        """
        return self._render(self._template, messages, add_generation_prompt=add_generation_prompt, **more)

    def prompt(self, messages: Sequence[dict], **more: Any) -> list[int]:
        """The tokens of a conversation that is to be answered.

        Raises:
          UserError: as `render` does, or a message spells a special token.
        """
        self._check(messages)
        return self.tokenizer.encode_marked(self.render(messages, add_generation_prompt=True, **more))[0]

    def ends(self) -> tuple[int, ...]:
        """The special token that ends an answer, where the template writes one."""
        try:
            ids, answers = self.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        except UserError:
            return ()
        last = [i for i, answer in zip(ids, answers, strict=True) if answer][-1:]
        return tuple(i for i in last if self.tokenizer.token(i) in self.tokenizer.special_names)

    def encode(self, messages: Sequence[dict], **more: Any) -> Conversation:
        """The tokens of a conversation with its answers, as its whole text has them, and which are the answers'.

        An answer is what the template puts between `{% generation %}` and its end; in a template without, what a conversation
        that ends with it has more than one that asks for it, the token that ends it included, white space behind that not. A
        token with characters of an answer belongs to it.

        Raises:
          UserError: as `prompt` does, or the places of the answers cannot be told.
        """
        self._check(messages)
        text = self.render(messages, **more)
        spans = self._generations(messages, text, more) if self.marks_answers else self._answers(messages, text, more)
        ids, places = self.tokenizer.encode_marked(text)
        answers, spans = [], iter([*spans, (len(text), len(text))])
        start, stop = next(spans)
        for begin, end in places:
            while begin >= stop < len(text):
                start, stop = next(spans)
            answers.append(begin < stop and end > start)
        return Conversation(ids, answers)

    def _answers(self, messages: Sequence[dict], text: str, more: dict) -> list[tuple[int, int]]:
        """Where the answers stand, by rendering the beginnings of the conversation."""
        spans = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before = self.render(messages[:i], add_generation_prompt=True, **more)
                whole = self.render(messages[: i + 1], **more)
                if text.startswith(before) and text.startswith(whole):
                    start, stop = len(before), len(whole)
                else:
                    start, stop = self._in_the_middle(messages, i, text, more)
                    start = len(before) if text.startswith(before) else start
                spans.append((start, self._trimmed(text, start, stop)))
        if any(stop <= start for start, stop in spans) or any(a[1] > b[0] for a, b in itertools.pairwise(spans)):
            raise UserError(f"{self.name} does not tell where its answers stand: mark them with {{% generation %}}")
        return spans

    def _in_the_middle(self, messages: Sequence[dict], i: int, text: str, more: dict) -> tuple[int, int]:
        """Where the content of message i begins, and where the message ends, in a template that writes the last message
        otherwise than those before: with it, what stands behind the content in both."""
        changed = [*messages]
        changed[i] = messages[i] | {"content": _BEGIN}
        other = self.render(changed, **more)
        here = _same_end(text, other)
        last = _same_end(self.render(messages[: i + 1], **more), self.render(changed[: i + 1], **more))
        return _same_beginning(text, other), len(text) - len(here) + _same_beginning(here, last)

    def _generations(self, messages: Sequence[dict], text: str, more: dict) -> list[tuple[int, int]]:
        """Where the answers stand, by the template's own marks."""
        marked, spans, at = self._render(self._marked, messages, **more), [], 0
        parts = marked.replace(_END, _BEGIN).split(_BEGIN)
        for k, part in enumerate(parts):
            if k % 2:
                spans.append((at, at + len(part)))
            at += len(part)
        if "".join(parts) != text:
            raise UserError(f"{self.name}: {{% generation %}} stands where what it holds is changed afterwards")
        return spans

    def _trimmed(self, text: str, start: int, stop: int) -> int:
        """Where an answer ends that has white space behind the token that ends it."""
        shorter = text[start:stop].rstrip()
        return start + len(shorter) if shorter.endswith(self.tokenizer.special_names) else stop

    def _check(self, messages: Sequence[dict]) -> None:
        for number, message in enumerate(messages, start=1):
            content = message.get("content")
            for name in (*self.tokenizer.special_names, _BEGIN, _END):
                if isinstance(content, str) and name in content:
                    raise UserError(f"message {number} spells {name!r}, a special token of the vocabulary: change it")

    def _render(self, template: jinja2.Template, messages: Sequence[dict], add_generation_prompt: bool = False, **more) -> str:
        try:
            given = self.tokens | {"add_generation_prompt": add_generation_prompt, "tools": None, "documents": None} | more
            return template.render(messages=list(messages), **given)
        except jinja2.TemplateError as error:
            raise UserError(f"{self.name}: {error.message or type(error).__name__}") from error
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError, RecursionError) as error:
            raise UserError(f"{self.name} cannot be rendered: {type(error).__name__}: {error}") from error


class _Plain(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}`, which is what stands in it."""

    tags = {"generation"}
    marks = ("", "")

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_around"), [], [], body).set_lineno(line)

    def _around(self, caller) -> str:
        begin, end = self.marks
        return begin + caller() + end


class _Marking(_Plain):
    """The same between two marks."""

    marks = (_BEGIN, _END)


def _has_generation(source: str) -> bool:
    """Whether a template has `{% generation %}`."""
    tree = _environment(_Plain).parse(source)
    return any(
        isinstance(block.call.node, jinja2.nodes.ExtensionAttribute) for block in tree.find_all(jinja2.nodes.CallBlock)
    )


def _environment(generation: type[_Plain]) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Jinja as `transformers` has it."""
    extensions = [generation, jinja2.ext.loopcontrols]
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, indent=None, separators=None, sort_keys: bool = False) -> str:
    """JSON as it is: Jinja's own filter escapes what HTML would."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str):
    raise jinja2.TemplateError(message)


def _same_beginning(first: str, second: str) -> int:
    """How many characters both begin with."""
    return next((k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


def _same_end(first: str, second: str) -> str:
    """The longest text that both end with."""
    k = 0
    while k < min(len(first), len(second)) and first[-1 - k] == second[-1 - k]:
        k += 1
    return first[len(first) - k :]
