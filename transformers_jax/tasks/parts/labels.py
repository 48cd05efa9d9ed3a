"""The labels that a head knows: their numbers, and one line for a label that is not among them."""

from collections.abc import Sequence

import numpy as np

from transformers_jax.data.placed import Placed
from transformers_jax.errors import UserError


class Labels:
    """The labels of config.task.labels, numbered from 0.

    Raises:
      UserError: none, or one twice.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(map(str, names))
        self.numbers = {name: i for i, name in enumerate(self.names)}
        if not self.names or len(self.numbers) < len(self.names):
            raise UserError(f"config.task.labels={self.names}: give each label of the data once, as in ('0', '1')")

    def __len__(self) -> int:
        return len(self.names)

    def number(self, name: str, where: str = "") -> int:
        """The number of a label.

        Raises:
          UserError: it is unknown; says where it stands.
        """
        if (number := self.numbers.get(name)) is None:
            at = f"{where}: " if where else ""
            raise UserError(f"{at}the label {name!r} is not one of config.task.labels: {', '.join(self.names)}")
        return number

    def of(self, example: dict) -> int:
        """The number of an example's "label"; -1 where it has none.

        Raises:
          UserError: it is unknown, or no text.
        """
        if "label" not in example:
            return -1
        if not isinstance(example["label"], str):
            raise UserError(f"the label {example['label']!r} is not text: config.data.columns names the label's column")
        return self.number(example["label"])

    def judged(self, source: Sequence[dict], probabilities: np.ndarray) -> tuple[list[int], np.ndarray]:
        """The true and the likeliest label of the examples that have one, as numbers; probabilities [examples, L]."""
        known = [i for i in range(len(source)) if "label" in source[i]]
        return [self.of(source[i]) for i in known], probabilities.argmax(axis=-1)[known]

    def checked(self, source: Sequence[dict]) -> Sequence[dict]:
        """The same examples, whose "label", where they have one, is known. Raises as `check`."""
        self.check(source, lambda example: [example["label"]] if "label" in example else [])
        return source

    def answer(self, probabilities: Sequence[float]) -> dict:
        """{"prediction": the likeliest label, "probabilities": {label: probability}}."""
        shown = {name: round(float(p), 4) for name, p in zip(self.names, probabilities, strict=True)}
        return {"prediction": self.names[int(np.argmax(probabilities))], "probabilities": shown}

    def check(self, source: Sequence[dict], labels_of) -> None:
        """Looks at every label of a source that can say where its examples stand.

        Args:
          labels_of: an example → its labels.

        Raises:
          UserError: as `number`.
        """
        if isinstance(source, Placed):
            for i in range(len(source)):
                for name in labels_of(source[i]):
                    if name not in self.numbers:
                        self.number(name, source.where(i))
