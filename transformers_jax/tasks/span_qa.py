"""Answers that stand in a passage, SQuAD (Rajpurkar et al. 2016, 2018), as BERT finds them (Devlin et al. 2019, sections 4.2
and 4.3): a score for each token to be the first of the answer, and one to be the last.

Long passages become windows. An answer may begin only in the window where its first token stands deepest; the best answers
of all windows compete by the sum of their two scores. For questions without an answer both are at the row's first position.
Answers are parts of the passage, character by character.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from transformers_jax.batch import Streams
from transformers_jax.errors import UserError
from transformers_jax.layers.losses import label_sums
from transformers_jax.outputs import LabelOutput
from transformers_jax.tasks.parts import squad
from transformers_jax.tasks.parts.windows import Remembered, windows
from transformers_jax.tasks.task import Task as Base


class Task(Base):
    """Examples {"id", "question", "context": str, "answers": [{"text", "start"}]}; without answers key, predicted only.

    Args:
      tokenizer: turns text into tokens.
      max_length: tokens of question, window and what surrounds them.
      stride: tokens from the start of a window to the start of the next.
      max_question: tokens of a question; longer ones are cut.
      max_answer: tokens of an answer.
      best: how many answers are kept of a window, and of a question.
      no_answers: whether there are questions without one (SQuAD 2.0).
      threshold: no_answers: how much better "no answer" must score than the best one to be given.
    """

    learned = "answers"
    row_fields = ("starts", "ends")
    streams: Streams = {"": ("tokens", "token_types")}
    scored_by, main_metric, bigger_is_better = "predictions", "f1", True
    line_means, line_keys = "question TAB passage", ("question", "context")

    def __init__(
        self, tokenizer, *, max_length: int = 384, stride: int = 128, max_question: int = 64, max_answer: int = 30,
        best: int = 20, no_answers: bool = False, threshold: float = 0.0,
    ):  # fmt: skip
        if stride < 1:
            raise UserError(f"config.task.stride={stride}: windows must move on")
        self.tokenizer, self.max_length, self.stride = tokenizer, max_length, stride
        self.max_question, self.max_answer, self.best = max_question, max_answer, best
        self.no_answers, self.threshold = no_answers, threshold
        self._remembered = Remembered(self._windows)

    def model_fields(self) -> dict:
        """What the model must have."""
        return {"head": "span"}

    def examples(self, source: Sequence[dict]) -> Sequence[dict]:
        """The windows of all passages, made once for a source."""
        return self._remembered(source)

    def _windows(self, source: Sequence[dict]) -> list[dict]:
        """Each question as one or several {"example", "question", "tokens", "places", "window", "known", "answer"}.

        places: [tokens, 2] characters of the passage. known: whether the question says its answers. answer: first and last
        token of it in the window, or None.
        """
        found, text = [], None
        for i in range(len(source)):
            example = source[i]
            if example["context"] != text:  # the questions of a passage follow each other
                text = example["context"]
                tokens, places = self.tokenizer.encode_with_offsets(text)
                places = np.asarray(places, np.int32).reshape(-1, 2)
            question = self.tokenizer.encode(example["question"])[: self.max_question]
            room = self.max_length - len(question) - self.tokenizer.surrounding(pair=True)
            answer = _tokens_of(example["answers"][0], places) if example.get("answers") else None
            for w in windows([1] * len(tokens), room, max(0, room - self.stride)):
                inside = answer is not None and w.start <= answer[0] and answer[1] < w.end
                found.append({
                    "example": i, "question": question, "tokens": tokens[w.start : w.end], "places": places[w.start : w.end],
                    "window": w, "known": "answers" in example,
                    "answer": (answer[0] - w.start, answer[1] - w.start) if inside else None,
                })  # fmt: skip
        return found

    def encode(self, example: dict) -> dict[str, np.ndarray]:
        """A window → `tokens`, `token_types`, `starts`, `ends`: 0 where the answer is not all in the window, -1 if unknown."""
        joined = self.tokenizer.joined(example["question"], example["tokens"])
        places = [joined.starts[1] + token for token in example["answer"]] if example["answer"] else [0, 0]
        return joined.fields() | dict(zip(("starts", "ends"), places if example["known"] else [-1, -1], strict=True))

    def loss(self, output: LabelOutput, batch: dict, *, train: bool):
        """The mean of the cross entropies of first and last token, summed over rows; how many rows have both right."""
        logits = _of_tokens(output, batch)  # [B, T, 2]
        weights = batch["row_weights"].astype(jnp.float32)
        starts = label_sums(logits[..., 0], batch["starts"], weights)
        ends = label_sums(logits[..., 1], batch["ends"], weights)
        found = jnp.argmax(logits, axis=1) == jnp.stack([batch["starts"], batch["ends"]], axis=1)  # [B, 2]
        return (starts.loss + ends.loss) / 2, starts.weight, {"correct": jnp.sum(jnp.all(found, axis=1) * weights)}

    def predict(self, output: LabelOutput, batch: dict) -> dict[str, jax.Array]:
        """`starts`, `ends` [B, T]: the scores of each position."""
        logits = _of_tokens(output, batch)
        return {"starts": logits[..., 0], "ends": logits[..., 1]}

    def score(self, source: Sequence[dict], predictions: dict) -> dict:
        """exact_match and f1 of SQuAD's own script, as fractions; with no_answers also apart, and at the best threshold."""
        known = [i for i in range(len(source)) if "answers" in source[i]]
        if not known:
            return {}
        answers = self.answers(source, predictions)
        truth = [[answer["text"] for answer in source[i]["answers"]] for i in known]
        scores = squad.score(truth, [answers[i]["answer"] for i in known])
        if self.no_answers:
            best = [answers[i]["best"][0]["text"] if answers[i]["best"] else "" for i in known]
            scores |= squad.at_best_threshold(truth, best, [answers[i]["no_answer_score"] for i in known])
        return scores

    def answers(self, source: Sequence[dict], predictions: dict) -> list[dict]:
        """{"answer": text, "start", "end": characters, "probability", "best": the best ones} of each example.

        With no_answers also "no_answer_score", its score less that of the best answer; over `threshold`, "answer" is ""
        and has no place. Probabilities are among the answers in "best".
        """
        candidates: list[list[tuple[float, int, int]]] = [[] for _ in range(len(source))]
        nothing = np.full(len(source), np.inf)
        for window, starts, ends in zip(self.examples(source), predictions["starts"], predictions["ends"], strict=True):
            i = window["example"]
            nothing[i] = min(nothing[i], starts[0] + ends[0])
            candidates[i] += self._best_of(window, starts, ends)
        return [self._answer(source[i]["context"], found, nothing[i]) for i, found in enumerate(candidates)]

    def of_line(self, cells: Sequence[str]) -> dict:
        """{"question", "context"}: the question is what stands before the first TAB."""
        question, *context = cells
        if not context:
            raise ValueError("no passage")
        return {"question": question, "context": "\t".join(context)}

    def _best_of(self, window: dict, starts: np.ndarray, ends: np.ndarray) -> list[tuple[float, int, int]]:
        """(score, first character, behind the last) of the best answers of a window."""
        w, count = window["window"], len(window["tokens"])
        first = self.tokenizer.joined(window["question"], ()).starts[1]
        starts, ends = starts[first : first + count], ends[first : first + count]
        full = window["places"][:, 0] < window["places"][:, 1]  # white space begins and ends nothing
        mine = np.arange(w.start, w.end)
        begin = np.flatnonzero(full & (mine >= w.own_start) & (mine < w.own_end))
        begin = begin[np.argsort(-starts[begin], kind="stable")[: self.best]]
        end = np.flatnonzero(full)
        end = end[np.argsort(-ends[end], kind="stable")[: self.best]]
        scores = starts[begin][:, None] + ends[end]  # [begin, end]
        sizes = end - begin[:, None] + 1
        a, b = np.nonzero((sizes > 0) & (sizes <= self.max_answer))
        order = np.argsort(-scores[a, b], kind="stable")[: self.best]
        begins, ends = window["places"][begin, 0], window["places"][end, 1]
        return [(float(scores[x, y]), int(begins[x]), int(ends[y])) for x, y in zip(a[order], b[order], strict=True)]

    def _answer(self, context: str, candidates: list[tuple[float, int, int]], nothing: float) -> dict:
        by_text: dict[str, tuple[float, int, int]] = {}
        for candidate in sorted(candidates, key=lambda c: (-c[0], c[1], c[2])):
            by_text.setdefault(context[candidate[1] : candidate[2]], candidate)
        kept = list(by_text.items())[: self.best]
        chances = _softmax([score for _, (score, _, _) in kept])
        best = [
            {"text": text, "start": start, "end": end, "score": round(score, 4), "probability": round(chance, 4)}
            for (text, (score, start, end)), chance in zip(kept, chances, strict=True)
        ]
        found = {"answer": "", "start": None, "end": None, "probability": 0.0}
        if best:
            found = {"answer": best[0]["text"], **{k: best[0][k] for k in ("start", "end", "probability")}}
        if self.no_answers:
            less = float(nothing - _highest(candidates))
            if not best or less > self.threshold:
                found |= {"answer": "", "start": None, "end": None}
            found["no_answer_score"] = round(less, 4)
        return found | {"best": best}


def _highest(candidates: list[tuple[float, int, int]]) -> float:
    """The best score; of no candidates, one that nothing is worse than."""
    return max((score for score, _, _ in candidates), default=-1e9)


def _tokens_of(answer: dict, places: np.ndarray) -> tuple[int, int] | None:
    """The first and last token of an answer; None if it is all white space.

    Args:
      places: [tokens, 2] characters of the passage's tokens.
    """
    start, end = answer["start"], answer["start"] + len(answer["text"])
    inside = np.flatnonzero((places[:, 1] > start) & (places[:, 0] < end) & (places[:, 0] < places[:, 1]))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


def _of_tokens(output: LabelOutput, batch: dict) -> jax.Array:
    """The scores [B, T, 2] in float32, those of padding out of reach."""
    return jnp.where((batch["segments"] > 0)[..., None], output.logits.astype(jnp.float32), -1e9)


def _softmax(scores: list[float]) -> list[float]:
    powers = np.exp(np.asarray(scores) - max(scores, default=0.0))
    return (powers / powers.sum()).tolist() if len(powers) else []
