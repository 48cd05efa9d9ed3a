"""Pictures of an encoder: what its heads attend to within a sentence, and one word's vectors in different sentences.

Axes: N heads, T length, D model width, n sentences.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from transformers_jax.errors import UserError
from transformers_jax.inference.predictor import Body, Loaded
from transformers_jax.models.protocol import ENCODES, TEXT
from transformers_jax.reporting.attention import Attention, attention_weights
from transformers_jax.reporting.style import COLOURS, GREY, INK, figure

FEWEST, MOST = 3, 14
"""Sentences that a picture of a word has."""

LONGEST = 90
"""Characters of a sentence that are shown."""

SHORT, LONG = 5, 14
"""Words of a sentence whose attention is drawn."""

MOST_EXAMPLES = 5000
"""Of a run's data, that are looked through."""


class WordVectors(NamedTuple):
    """One word in different sentences.

    word: as it was looked for.
    sentences: n texts.
    places: (start, end) of the word in each, in characters.
    vectors: [n, D] its contextual vector in each.
    """

    word: str
    sentences: list[str]
    places: list[tuple[int, int]]
    vectors: np.ndarray


def is_encoder(model) -> bool:
    """Whether a model is an encoder of texts."""
    about = model.protocol()
    return ENCODES in about.does and TEXT in about.reads


def attention_example(there: Loaded, texts: Iterable[str], *, layer: int = -1) -> Attention:
    """The heads of an encoder over the first short sentence of some texts.

    Raises:
      UserError: there is no short sentence.
    """
    text = next((text for text in texts if SHORT <= len(text.split()) <= LONG), None)
    if text is None:
        raise UserError(f"the data have no sentence of {SHORT} to {LONG} words")
    fields = there.tokenizer.encode_pair(text)
    batch = _row(np.asarray(fields.ids, np.int32))
    tokens = [there.tokenizer.token(i) for i in fields.ids]
    model, state = there.variables["params"], there.variables["model_state"]
    return heads_of(Body(there.model), model, batch, tokens, layer=layer, model_state=state)


def word_example(there: Loaded, texts: Iterable[str], word: str = "") -> WordVectors:
    """A word's vectors in different sentences, by an encoder.

    Args:
      texts: the sentences.
      word: which; without one, `telling_word` of the texts.

    Raises:
      UserError: too few sentences have it.
    """
    texts = list(texts)
    word = word or telling_word(texts)
    longest = there.model.protocol().longest
    variables = {"params": there.variables["params"], **there.variables["model_state"]}

    def states(sentences: list[str]):
        hidden, places = [], []
        for text in sentences:
            ids, spans = there.tokenizer.encode_with_offsets(text)
            joined = there.tokenizer.joined(ids[: longest - 2])
            found = there.model.apply(variables, _row(np.asarray(joined.ids, np.int32)), True, method="encode")
            hidden.append(np.asarray(found, np.float32)[0])
            places.append([(0, 0), *spans[: longest - 2], (0, 0)])
        return hidden, places

    return word_vectors(word, texts, states)


def texts_of(run) -> Iterator[str]:
    """The texts of the data of an `Experiment`: of its validation split, or of its training split where it has no other."""
    source = run.source("validation" if run.has("validation") else "train")
    for i in range(min(len(source), MOST_EXAMPLES)):
        example = source[i]
        yield " ".join(example["words"]) if "words" in example else next(
            (example[name] for name in ("text", "first", "context") if name in example), ""
        )


def _row(ids: np.ndarray) -> dict:
    """The batch of one sentence, its length a multiple of 16."""
    length = -(-len(ids) // 16) * 16
    batch = {name: np.zeros((1, length), np.int32) for name in ("tokens", "positions", "segments", "token_types")}
    batch["tokens"][0, : len(ids)], batch["segments"][0, : len(ids)] = ids, 1
    batch["positions"][0, : len(ids)] = np.arange(len(ids))
    return batch


def heads_of(model, params, batch: dict, tokens: list[str], *, layer: int = -1, model_state=None) -> Attention:
    """The weights of all heads of one layer over a sentence.

    Args:
      model, params, model_state: as in `attention_weights`.
      batch: its first row begins with the sentence.
      tokens: of the sentence, with its beginning and end.
      layer: which one; the last if not given.

    Raises:
      UserError: there is no such layer.
    """
    weights = attention_weights(model, params, batch, model_state)
    names = list(weights)
    if not -len(names) <= layer < len(names):
        raise UserError(f"there is no layer {layer}; there are {len(names)}")
    square = weights[names[layer]][0, :, : len(tokens), : len(tokens)]  # [N, T, T]
    title = f"Attention within a sentence, layer {layer % len(names) + 1} of {len(names)}"
    return Attention(square, tokens, tokens, title, down="tokens that attend", across="tokens attended to")


def occurrences(word: str, texts: Sequence[str], most: int = MOST) -> tuple[list[str], list[tuple[int, int]]]:
    """The first texts that have a word, upper or lower case, each text once; and where the word stands in it."""
    search = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE).search
    found = {text: match.span() for text in texts if (match := search(text))}
    return list(found)[:most], list(found.values())[:most]


def telling_word(texts: Sequence[str]) -> str:
    """A word to draw where none is asked for: of four letters or more, in many texts, and in hardly any of them twice.

    Of words that stand in at least MOST texts, the rarest; else the most frequent one that stands in FEWEST.

    Raises:
      UserError: no word stands in so many texts.
    """
    counts = Counter(word for text in texts for word in {w.lower() for w in re.findall(r"[^\W\d_]{4,}", text)})
    frequent = [(count, word) for word, count in counts.items() if count >= MOST]
    if frequent:
        return min(frequent, key=lambda pair: (pair[0], pair[1]))[1]
    count, word = max(((count, word) for word, count in counts.items()), default=(0, ""))
    if count < FEWEST:
        raise UserError(f"no word stands in {FEWEST} sentences: give --word and --sentences=FILE")
    return word


def word_vectors(word: str, texts: Sequence[str], states: Callable[[list[str]], tuple[list[np.ndarray], list]]) -> WordVectors:
    """The contextual vectors of a word: the means of its tokens' last hidden states.

    Args:
      texts: to be searched for the word.
      states: texts → for each, hidden states [T, D] and the places (start, end) of its T tokens in characters.

    Raises:
      UserError: too few texts have the word.
    """
    sentences, places = occurrences(word, texts)
    if len(sentences) < FEWEST:
        raise UserError(f"--word={word}: {len(sentences)} sentences have it, {FEWEST} are needed: give --sentences=FILE")
    vectors, kept = [], []
    for i, (hidden, spans) in enumerate(zip(*states(sentences), strict=True)):
        start, end = places[i]
        rows = [t for t, (a, b) in enumerate(spans) if a < end and b > start and b > a]
        if rows:  # else the model's window ends before it
            kept.append(i)
            vectors.append(hidden[rows].mean(axis=0))
    if len(kept) < FEWEST:
        raise UserError(f"--word={word}: it stands beyond what the model reads in all but {len(kept)} sentences")
    return WordVectors(word, [sentences[i] for i in kept], [places[i] for i in kept], np.stack(vectors))


def principal_plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([n, 2] the vectors [n, D] on their first two principal axes, [2] the share of variance of each)."""
    centred = vectors - vectors.mean(axis=0)
    left, scales, _ = np.linalg.svd(centred, full_matrices=False)
    points = np.zeros((len(vectors), 2))
    count = min(2, len(scales))
    points[:, :count] = left[:, :count] * scales[:count]
    total = (scales**2).sum()
    shares = np.zeros(2)
    shares[:count] = scales[:count] ** 2 / total if total else 0.0
    return points, shares


def draw_word(found: WordVectors, path: Path) -> None:
    """Each sentence a numbered point on the first two principal axes, and the sentences beneath, the word in them."""
    points, shares = principal_plane(found.vectors)
    unit = found.vectors / np.maximum(np.linalg.norm(found.vectors, axis=1, keepdims=True), 1e-12)
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    lines = 0.23 * len(found.sentences) + 0.3
    with figure(path, 9.0, 4.6 + lines) as drawn:
        upper, lower = drawn.subfigures(2, 1, height_ratios=[4.6, lines])
        axes = upper.subplots()
        axes.scatter(*points.T, s=46, color=COLOURS["train"], zorder=2)
        for number, point in enumerate(points, start=1):
            axes.annotate(str(number), point, xytext=(6, 4), textcoords="offset points", fontsize=10, color=INK)
        axes.margins(0.12)
        axes.set_title(f"“{found.word}” in {len(points)} sentences")
        axes.set_xlabel(f"first principal axis, {shares[0]:.0%} of the variance")
        axes.set_ylabel(f"second, {shares[1]:.0%}")
        says = f"cosine similarity of two: {cosines.min():.2f} to {cosines.max():.2f}"
        axes.annotate(says, (1, 1), xycoords="axes fraction", ha="right", va="bottom", fontsize=9, color=GREY)
        listed = [f"{i:>2}  {shown(s, *p)}" for i, (s, p) in enumerate(zip(found.sentences, found.places, strict=True), 1)]
        lower.text(0.02, 0.97, "\n".join(listed), va="top", fontsize=9, linespacing=1.55)


def shown(sentence: str, start: int, end: int) -> str:
    """At most LONGEST characters around the word, which stands in «»."""
    marked = f"{sentence[:start]}«{sentence[start:end]}»{sentence[end:]}".replace("\n", " ")
    end += 2
    if len(marked) <= LONGEST:
        return marked
    first = max(0, min(len(marked) - LONGEST, (start + end - LONGEST) // 2))
    cut = marked[first : first + LONGEST]
    return ("…" if first else "") + cut + ("…" if first + LONGEST < len(marked) else "")
