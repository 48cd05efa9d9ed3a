"""A page about a model that was not trained here: a folder of `transformers`, or any weights without a run beside them."""

import functools
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from absl import logging

from transformers_jax.errors import UserError
from transformers_jax.files import write_whole
from transformers_jax.inference.answers import answerer
from transformers_jax.inference.predictor import Loaded
from transformers_jax.models.protocol import IMAGES
from transformers_jax.planning import counts
from transformers_jax.reporting import vision, vision_pictures, word_vectors
from transformers_jax.reporting.page import document, masthead, picture, samples_table
from transformers_jax.reporting.pictures import draw_attention

SENTENCES = ("Let's stick to improvisation in this skit, said the man at the piano.",)
"""Of which attention is drawn where no sentences are given."""


def make_page(there: Loaded, folder: Path, *, word: str = "", texts: Sequence[str] | None = None) -> Path:
    """Writes index.html and its pictures into a folder.

    An encoder's page has the attention within a sentence, a word in different sentences, and what its head answers to the
    lines; that of a model of images its positions and filters.

    Args:
      word: whose vectors are drawn; without one, a telling word of the texts, if there is one.
      texts: lines, sentences of the word and what the head reads (see `experiments.predict`).

    Returns:
      The path of the page.

    Raises:
      UserError: the word is asked for and cannot be drawn, or matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about, pictures, samples = there.model.protocol(), {}, []
    if IMAGES in about.reads:
        if word or texts:
            raise UserError(f"--word and --sentences are for encoders of texts; {there.folder} reads images")
        draws = _of_images(there)
    else:
        samples = _answers(there, texts or ())
        draws = _of_texts(there, word, texts)
    for title, draw in draws.items():
        pictures[title] = folder / f"{title.lower().replace(' ', '_')}.png"
        draw(pictures[title])
    facts = [(f"{counts.count(there.variables['params']):,}", "parameters")]
    facts += [(str(about.longest), "tokens at most")] * bool(about.longest)
    facts += [(str(about.labels), "labels")] * bool(about.labels)
    name = type(there.model).__module__.rpartition(".")[2]
    parts = [masthead(there.folder.resolve().name, " · ".join(filter(None, (name, about.head))), facts)]
    if samples:
        parts += ["<h2>Answers</h2>", samples_table(samples)]
    for title, path in pictures.items():
        parts += [f"<h2>{escape(title)}</h2>", picture(title, path, wide=True)]
    write_whole(folder / "index.html", document(there.folder.resolve().name, parts))
    return folder / "index.html"


def _of_images(there: Loaded) -> dict[str, Callable[[Path], None]]:
    """Title → what draws the picture, of what the parameters alone show."""
    found, params = {}, there.variables["params"]
    if (near := vision.position_similarity(params)) is not None:
        found["Similarity of positions"] = functools.partial(vision_pictures.draw_similarity, near)
    if (kernels := vision.filters(params)) is not None:
        found["Filters of patches"] = functools.partial(vision_pictures.draw_filters, kernels)
    return found


def _of_texts(there: Loaded, word: str, texts: Sequence[str] | None) -> dict[str, Callable[[Path], None]]:
    """Title → what draws the picture; only what is possible, unless a word is asked for."""
    if not word_vectors.is_encoder(there.model):
        raise UserError(f"{there.folder} holds no encoder: its model {' and '.join(there.model.protocol().does)}")
    found = {}
    try:
        attention = word_vectors.attention_example(there, texts or SENTENCES)
        found["Attention"] = functools.partial(draw_attention, attention)
    except UserError as error:
        logging.warning("the page is without attention: %s", error)
    if word or texts:
        try:
            example = word_vectors.word_example(there, texts or (), word)
            found["A word in different sentences"] = functools.partial(word_vectors.draw_word, example)
        except UserError as error:
            if word:
                raise
            logging.warning("the page is without a word's vectors: %s", error)
    return found


def _answers(there: Loaded, texts: Sequence[str]) -> list[dict]:
    """What the head answers to the lines, without what is not the best; none where they are not what it reads."""
    lines = [text for text in texts if text.strip()]
    try:
        answer = answerer(there)
        places = [f"--sentences, line {i}" for i, text in enumerate(texts, 1) if text.strip()]
        examples = [answer.example(text, "auto", place) for text, place in zip(lines, places, strict=True)]
        found = answer(examples, places.__getitem__) if examples else []
    except UserError as error:
        if lines:
            logging.warning("the page is without answers: %s", error)
        return []
    return [{key: value for key, value in row.items() if key != "best"} for row in found]
