"""How a line becomes words and comes back whole, written as components that the `tokenizers` library runs.

A word is a run of letters, marks, digits and `_`, or a run of anything else but the space. Every word ends with END,
the symbol `</w>`, and that stands for the space after it. Where no space was, between a letter and a comma say, JOIN
sits on the side of the comma, so that words read the same wherever they stand:

    "Hello, world!"   →   Hello</w>  ￭,</w>  world</w>  ￭!</w>

Of two spaces the second ends an empty word, so `"a  b"` is `a</w> </w> b</w>`; the END of the line's last word stands
for no space. Tabs and other white space are characters like any other. An END, JOIN or ESCAPE in the text itself is
written as ESCAPE and a sign. So the way back is exact for every text.

The library's own `end_of_word_suffix` glues `</w>` to the last letter; here it is a character, so it merges like one.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

END, JOIN, ESCAPE = "␗", "￭", "␛"
MARKS = (END, JOIN, ESCAPE)
_ESCAPED = {ESCAPE: ESCAPE + "=", END: ESCAPE + ".", JOIN: ESCAPE + "-"}
_LETTER = r"\p{L}\p{M}\p{N}_"

NORMALIZER = normalizers.Sequence(
    [normalizers.Replace(mark, escaped) for mark, escaped in _ESCAPED.items()]  # ESCAPE itself comes first
    + [
        normalizers.Replace(Regex(f"(?<=[{_LETTER}])(?=[^{_LETTER} ])"), END + JOIN),
        normalizers.Replace(Regex(f"(?<=[^{_LETTER} ])(?=[{_LETTER}])"), JOIN + END),
        normalizers.Replace(" ", END),
        normalizers.Replace(Regex(r"(?m:(?<=.)\z)"), END),  # (?m) lets the dot match every character, as in Ruby
    ]
)
PRE_TOKENIZER = pre_tokenizers.Split(END, "merged_with_previous")
DECODER = decoders.Sequence(
    [decoders.ByteFallback(), decoders.Fuse()]
    + [decoders.Replace(joint, "") for joint in (END + JOIN, JOIN + END, JOIN, Regex(rf"{END}\z"))]
    + [decoders.Replace(END, " ")]
    + [decoders.Replace(escaped, mark) for mark, escaped in reversed(_ESCAPED.items())]  # and ESCAPE itself last
)


def words(line: str) -> Iterator[str]:
    """The words of a line, each with END as its last character; none for an empty line."""
    for word in NORMALIZER.normalize_str(line).split(END)[:-1]:
        yield word + END


def names_apart(names: Iterable[str]) -> pre_tokenizers.PreTokenizer:
    """Splits a text inside each of the names that it spells, so that no model takes them for the token of that name."""
    rests = defaultdict(list)
    for name in names:
        if len(name) > 1:
            rests[re.escape(name[0])].append(re.escape(name[1:]))
    places = (f"(?<={start})(?={'|'.join(ends)})" for start, ends in rests.items())
    return pre_tokenizers.Split(Regex("|".join(places) or "(?!)"), "isolated")
