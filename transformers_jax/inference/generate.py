"""Text that a trained decoder writes: continuations of prompts, answers in conversations.

    there = predictor.loaded("folder of transformers, workdir, or X.gguf")
    generate = Generator(there, Options(max_tokens=40, temperature=0.7, seed=1))
    generate([{"prompt": "The capital of France is"}])   # [{"prompt": …, "outputs": [{"text": …, "finish": "end", …}]}]
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from transformers_jax.data.text.chat import ChatTemplate
from transformers_jax.decoding.prompts import METHODS, STEPS, PromptDecoder
from transformers_jax.decoding.requests import Continuation, OutputText
from transformers_jax.decoding.sampling import Sampling
from transformers_jax.errors import UserError
from transformers_jax.inference.predictor import Loaded
from transformers_jax.models.protocol import CONTINUES, TEXT

STREAMED = 4
"""Steps between two looks at a text that is shown while it is written."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How texts are continued.

    method: "greedy", "beam" or "sample"; "" samples where a field of sampling is given, and is greedy otherwise.
    temperature, top_k, top_p, min_p: of "sample", see `decoding.sampling.Sampling`. A temperature of 0 is greedy.
    repetition_penalty: above 1, tokens that came before are less likely; see `decoding.sampling.penalised`.
    num_samples: outputs for each prompt; of "beam" the best ones.
    beam_size, alpha: of "beam", see `decoding.beam.beam_search`.
    seed: of "sample".
    stop: strings that end an output and are no part of it.
    max_tokens: most tokens of an output.
    logprobs: whether tokens and their log-probabilities are given.
    slide: whether an output goes on beyond the model's longest input, with the last half of the text before it.
    batch_size: outputs that are written together.
    """

    method: str = ""
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    num_samples: int = 1
    beam_size: int = 4
    alpha: float = 0.6
    seed: int = 0
    stop: tuple[str, ...] = ()
    max_tokens: int = 256
    logprobs: bool = False
    slide: bool = False
    batch_size: int = 32

    @property
    def chosen(self) -> str:
        """The method, where "" is not one."""
        if self.temperature == 0:
            return "greedy"
        if self.method:
            return self.method
        drawn = (self.temperature, self.top_k, self.top_p, self.min_p, self.num_samples) != (1.0, 0, 1.0, 0.0, 1)
        return "sample" if drawn else "greedy"

    def check(self) -> None:
        """Raises UserError for what cannot be."""
        for possible, what in (
            (self.method in ("", *METHODS), f"method={self.method} is not one of {', '.join(METHODS)}"),
            (self.max_tokens >= 1, f"max_tokens={self.max_tokens}: give 1 or more"),
            (self.num_samples >= 1, f"num_samples={self.num_samples}: give 1 or more"),
            (self.chosen != "greedy" or self.num_samples == 1, "num_samples: greedy has one output; give --method=sample"),
            (self.chosen != "beam" or not self.logprobs, "logprobs: a beam keeps those of whole outputs; give another method"),
            (
                self.chosen != "beam" or self.num_samples <= self.beam_size,
                f"num_samples={self.num_samples}: a beam of {self.beam_size} has so many",
            ),
        ):
            if not possible:
                raise UserError(f"--{what}")


class Generator:
    """Continues texts with a model; compiled once for each width of prompts, number of rows and room for outputs.

    Args:
      there: a decoder of texts.
      options: how.

    Raises:
      UserError: the model continues no texts, or an option is not possible.
    """

    def __init__(self, there: Loaded, options: Options):
        about = there.model.protocol()
        if CONTINUES not in about.does or TEXT not in about.reads or not about.predicts_tokens:
            raise UserError(f"{there.folder} holds no model that continues texts: it {' and '.join(about.does)}")
        options.check()
        self.there, self.options, self.tokenizer = there, options, there.tokenizer
        self._template: ChatTemplate | None = None
        sampling = Sampling(options.temperature or 1.0, options.top_k, options.top_p, options.min_p)
        self._shared = {
            "pad_id": self.tokenizer.pad_id,
            "longest": about.longest,
            "slide": options.slide,
            "vocab_size": self.tokenizer.vocab_size,
            "method": options.chosen,
            "options": sampling,
            "repetition_penalty": options.repetition_penalty,
            "beam_size": max(options.beam_size, 1),
            "alpha": options.alpha,
            "n_best": options.num_samples if options.chosen == "beam" else 1,
            "batch_size": max(options.batch_size, options.beam_size if options.chosen == "beam" else 1),
            "mesh": there.mesh,
        }
        self._made: PromptDecoder | None = None

    @property
    def template(self) -> ChatTemplate:
        """How conversations are written: as the model's task has it, or its vocabulary."""
        if self._template is None:
            self._template = self.there.task and self.there.task.template or ChatTemplate(self.tokenizer)
        return self._template

    def prompt_ids(self, example: dict) -> list[int]:
        """The tokens of {"prompt": str} or {"messages": […]}, one or more.

        Raises:
          UserError: the example has neither, or the chat template refuses it.
        """
        if "messages" in example:
            return self.template.prompt(messages_of(example["messages"]))
        if not isinstance(example.get("prompt"), str):
            raise UserError('a prompt is {"prompt": text} or {"messages": [{"role": …, "content": …}, …]}')
        ids = self.tokenizer.encode(example["prompt"])
        return [self.tokenizer.bos_id, *ids] if self.there.begins or not ids else self.tokenizer.begun(ids)

    def __call__(
        self,
        examples: Sequence[dict],
        *,
        first: int = 0,
        where: Callable[[int], str] = "prompt {}".format,
        show: Callable[[int, str], None] | None = None,
    ) -> list[dict]:
        """Each example with its "outputs": {"text", "finish", "logprob"}, and with `logprobs` "tokens" and their "logprobs".

        Args:
          first: number of the first example, where these are a part of more: draws depend on it.
          where: names the place of example i in messages.
          show: called with (number of the example, new text) while the first output of each is written.

        Raises:
          UserError: an example is no prompt; names its place.
        """
        prompts = []
        for i, example in enumerate(examples):
            try:
                prompts.append(self.prompt_ids(example))
            except UserError as error:
                raise UserError(f"{where(i)}: {error}") from error
        if not prompts:
            return []
        watcher = _Watcher(self.tokenizer.decode, self.options.stop, show)
        found = self._decoder.decode(
            prompts,
            limits=self.options.max_tokens,
            samples=self.options.num_samples,
            seed=self.options.seed,
            first=first,
            watch=watcher if show or self.options.stop else None,
            every=STREAMED if show else STEPS,
        )
        return [
            {**example, "outputs": [self._answer(one, watcher) for one in outputs]}
            for example, outputs in zip(examples, found, strict=True)
        ]

    def tokens(self, prompts: Sequence[Sequence[int]], **changes: Any) -> list[list[Continuation]]:
        """Continuations of prompts that are tokens already; `changes` are arguments of `PromptDecoder.decode`."""
        given = {"limits": self.options.max_tokens, "samples": self.options.num_samples, "seed": self.options.seed}
        return self._decoder.decode(prompts, **given | changes)

    def _answer(self, one: Continuation, watcher: "_Watcher") -> dict:
        found = {"text": watcher.text(one), "finish": one.finish, "logprob": round(one.score, 4)}
        if self.options.logprobs:
            found["tokens"] = [self.tokenizer.token(i) for i in one.ids]
            found["logprobs"] = [round(x, 4) for x in one.logprobs]
        return found

    @property
    def _decoder(self) -> PromptDecoder:
        if self._made is None:
            template = self.there.task and self.there.task.template or self.tokenizer.chat_template
            ends = sorted({*self.there.ends, *(self.template.ends() if template else ())})
            self._made = PromptDecoder(self.there.model, self.there.variables["params"], ends=ends, **self._shared)
        return self._made


class ByAdapter:
    """Continues each prompt with the model that it names by its key "adapter"; with that of the name "" where it names none.

    Args:
      generators: by name, with the same options; see `adapters.named` for their models.
    """

    def __init__(self, generators: dict[str, Generator]):
        self.generators, self.options = generators, generators[""].options

    def prompt_ids(self, example: dict) -> list[int]:
        """See `Generator.prompt_ids`; raises UserError also for a name that there is not."""
        return self.generators[self._name(example)].prompt_ids(example)

    def __call__(
        self,
        examples: Sequence[dict],
        *,
        first: int = 0,
        where: Callable[[int], str] = "prompt {}".format,
        show: Callable[[int, str], None] | None = None,
    ) -> list[dict]:
        """See `Generator`; neighbours with one model go through it together."""
        found: list[dict] = []
        for name, some in itertools.groupby(examples, self._name):
            before = len(found)
            place = functools.partial(lambda before, i: where(before + i), before)
            found += self.generators[name](list(some), first=first + before, where=place, show=show)
        return found

    def _name(self, example: dict) -> str:
        name = example.get("adapter", "")
        if not isinstance(name, str) or name not in self.generators:
            raise UserError(f"there is no adapter {name!r}; there are {', '.join(filter(None, self.generators)) or 'none'}")
        return name


class _Watcher:
    """Looks at outputs while they are written: ends them at stop strings, and shows their text."""

    def __init__(self, decode: Callable, stops: Sequence[str], show: Callable[[int, str], None] | None):
        self.decode, self.stops, self.show = decode, stops, show
        self.texts: dict[tuple[int, int], OutputText] = {}
        self.looked: dict[tuple[int, int], int] = {}
        self.ended: dict[tuple[int, int], str] = {}
        self.shown: dict[tuple[int, int], int] = {}

    def __call__(self, one: Continuation) -> None:
        key = one.number, one.sample
        text = self._of(one)
        stopped = text.stop(one, self.looked.get(key, 0))
        self.looked[key] = len(one.ids)
        if stopped is not None:
            self.ended[key] = stopped
        if self.show and one.sample == 0:
            now = self.text(one) if one.finish else text.settled(one.ids)
            self.show(one.number, now[self.shown.get(key, 0) :])
            self.shown[key] = len(now)

    def text(self, one: Continuation) -> str:
        """An output's text, up to its stop string."""
        key = one.number, one.sample
        return self.ended[key] if key in self.ended else self._of(one)(one.ids)

    def _of(self, one: Continuation) -> OutputText:
        key = one.number, one.sample
        if key not in self.texts:
            self.texts[key] = OutputText(self.decode, one.prompt, self.stops)
        return self.texts[key]


def messages_of(value: Any) -> list[dict]:
    """A conversation, checked.

    Raises:
      UserError: it is no list of {"role": str, "content": str}.
    """
    good = isinstance(value, list) and value and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )  # fmt: skip
    if not good:
        raise UserError('"messages" is a list of {"role": text, "content": text}, one or more')
    return value
