"""A trained model on new examples: rows of like length together, answers in the order of the examples.

Axes: B batch rows, T length, D model width.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformers_jax import config as configuration
from transformers_jax import models, parameters
from transformers_jax.data import collate as collating
from transformers_jax.data.text.tokenizer import Tokenizer
from transformers_jax.errors import Unreadable, UserError
from transformers_jax.inference import held
from transformers_jax.interchange import gguf_model, huggingface, mapping, stacking
from transformers_jax.mesh import global_batch, make_mesh
from transformers_jax.models.protocol import CONTINUES, ENCODES, TEXT
from transformers_jax.outputs import EncoderOutput
from transformers_jax.runs import initialise
from transformers_jax.runs.experiment import Experiment
from transformers_jax.training.state import abstract_state
from transformers_jax.training.step import compile_eval_step, make_predict_step

WIDTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Lengths that rows are filled up to: each is one program."""

POSITIONS = {"cpu": 1024}
"""Positions of a batch, rows times length, by backend; 4,096 on others. A processor's caches hold what a layer makes of few."""


IMAGES_AT_ONCE = 64
"""Rows of a batch of examples without tokens."""

SCANNED = 40
"""A foreign decoder of more layers has them scanned: it is compiled sooner, and decodes slower. A step of SmolLM2's 30 layers
takes 5 to 6 seconds of a processor and not 1.5 to compile, and 47 ms and not 70 to run. Layers in blocks are always scanned:
blocks are read where they lie, in a stack as well, and the program of each product is long."""


class Loaded(NamedTuple):
    """A model with its numbers.

    variables: {"params": …, "model_state": …}.
    tokenizer: None where the task reads images.
    task: which it was trained for; None where the weights come from elsewhere.
    folder: where it was read.
    ends: the tokens that end what a decoder writes.
    begins: whether all texts that a decoder learned from began with the begin token, as in a run of ours; otherwise the
      tokenizer's file says whether a prompt does.
    """

    model: Any
    variables: dict
    tokenizer: Tokenizer | None
    mesh: Mesh
    task: Any
    folder: Path
    ends: tuple[int, ...] = ()
    begins: bool = False

    def with_adapter(self, path: str) -> "Loaded":
        """The model of a run or an adapter beside the same base, whose arrays are this one's; see `adapters.beside`."""
        from transformers_jax.inference.adapters import beside

        return beside(self, path)

    def predictor(self, task: Any) -> "Predictor":
        """For what the model itself gives."""
        return Predictor(self.model, task, self.variables, self.mesh, longest=self.model.protocol().longest)

    def states(self, task: Any) -> "Predictor":
        """For the last hidden states, an `EncoderOutput`, whatever head there is."""
        return Predictor(Body(self.model), task, self.variables, self.mesh, longest=self.longest())

    def longest(self) -> int:
        """Tokens that an encoder of texts reads at most; 0 for no limit.

        Raises:
          UserError: the model is none.
        """
        about = self.model.protocol()
        if ENCODES not in about.does or TEXT not in about.reads:
            raise UserError(f"{self.folder} holds no encoder of texts: its model {' and '.join(about.does)}")
        return about.longest


class Body:
    """An encoder without its head; `mutable` is Flax's."""

    def __init__(self, model):
        self.model = model

    def apply(self, variables: dict, batch: dict, *, deterministic: bool, mutable: Any = False):
        found = self.model.apply(variables, batch, deterministic, method="encode", mutable=mutable)
        return (EncoderOutput(found[0]), found[1]) if mutable else EncoderOutput(found)


def trained(run: Experiment, *, average: int | None = None, step: int | str | None = None, quantization: str = "") -> Loaded:
    """The model of a run.

    Args:
      average, step: see `Experiment.trained`.
      quantization: see `loaded`.
    """
    held.check(quantization)
    variables = run.trained(average=average, step=step)
    if quantization not in ("", "none"):
        params = parameters.flat(variables["params"])
        blocks = held.held(run.model, params, quantization, NamedSharding(run.mesh, PartitionSpec()))
        rest = {name: leaf for name, leaf in params.items() if name not in blocks.names}
        variables = variables | {"params": parameters.nest(rest | blocks.leaves)}
    ends = (run.tokenizer.eos_id,) if run.tokenizer else ()
    begins = not initialise.was_converted(run.workdir)
    return Loaded(run.model, variables, run.tokenizer, run.mesh, run.task, run.workdir, ends, begins)


def loaded(
    path: str, *, average: int | None = None, step: int | str | None = None, adapter: str | None = None, quantization: str = ""
) -> Loaded:
    """The model of a folder of Hugging Face's, of a workdir, of a GGUF file, or of a name on the hub.

    Args:
      average, step: of a workdir, see `Experiment.trained`.
      adapter: what was trained beside this model, see `with_adapter`.
      quantization: how weights are held, one of `held.KINDS`; by default in the blocks that the file has.

    Raises:
      UserError: there is none, or it has no tokenizer.
    """
    held.check(quantization)
    if adapter is not None:
        return loaded(path, average=average, step=step, quantization=quantization).with_adapter(adapter)
    if gguf_model.is_file(path):
        return _assembled(*gguf_model.opened(path), path, quantization)
    folder = initialise.folder_of(path)
    if not huggingface.is_folder(folder):
        return trained(Experiment(configuration.read(folder), folder), average=average, step=step, quantization=quantization)
    opened = huggingface.opened(folder)
    return _assembled(*opened, huggingface.end_ids(folder, opened.tokenizer), path, quantization)._replace(folder=folder)


def _assembled(fields, leaves, tokenizer, ends, path: str, quantization: str) -> Loaded:
    """The model of a foreign file, its numbers on the devices."""
    model, mesh = models.build(fields, 0), make_mesh({})
    if CONTINUES in model.protocol().does and (fields["layers"] > SCANNED or held.in_blocks(leaves, quantization)):
        model = models.build(fields | {"scan_layers": True}, 0)
    if tokenizer is None and TEXT in model.protocol().reads:
        raise UserError(f"--init_from={path} has no tokenizer that can be read: put a tokenizer.json beside its weights")
    state = abstract_state(model, optax.identity(), model.protocol().example(), mesh)
    wanted = mapping.named(state.variables)
    leaves = stacking.arranged(leaves, wanted)
    blocks = held.held(model, leaves, quantization, NamedSharding(mesh, PartitionSpec()))
    rest = ((name, mapping.on_devices(leaves[name], like)) for name, like in wanted.items() if name not in blocks.names)
    found = mapping.variables(dict(rest) | blocks.leaves)
    params = found.pop("params")
    return Loaded(model, {"params": params, "model_state": found}, tokenizer, mesh, None, Path(path), ends)


class Predictor:
    """A model's answers to examples that are given to it; compiled once a shape of batch.

    Args:
      model: of this codebase.
      task: its `encode` and streams are those of training (see `data.collate`), and `predict` says what is wanted of a row. It
        has `one_a_row`.
      variables: {"params": …, "model_state": …}, as `Experiment.trained` gives them.
      mesh: of this process's devices.
      longest: tokens that the model reads; longer examples are cut, with a warning. 0 for no limit.
    """

    def __init__(self, model, task: Any, variables: dict, mesh: Mesh, *, longest: int):
        self.task, self.variables, self.mesh, self.longest = task, variables, mesh, longest
        self.layout = collating.layout_of(task)
        self._step = compile_eval_step(make_predict_step(model, task), mesh)
        self._ways = mesh.shape["data"] * mesh.shape["fsdp"]

    def __call__(
        self, examples: Sequence[dict], where: Callable[[int], str] = "example {}".format
    ) -> dict[str, np.ndarray]:
        """What `task.predict` gives by name, one entry an example, in their order; shorter ones are filled with zeros.

        Args:
          where: names the place of example i where it cannot be encoded.

        Raises:
          Unreadable: an example that cannot be encoded.
        """
        encoded = [self._encoded(example, i, where) for i, example in enumerate(examples)]
        found: list[dict] = [{}] * len(encoded)
        waiting: list[tuple[list[int], dict]] = []
        for numbers, batch in self._batches(encoded):
            waiting.append((numbers, self._step(*self._model(), global_batch(batch, self.mesh))))
            if len(waiting) > 1:  # the next batch is made while the device is at this one
                self._take(found, *waiting.pop(0))
        for numbers, answers in waiting:
            self._take(found, numbers, answers)
        return {name: _stacked([entry[name] for entry in found]) for name in (found[0] if found else ())}

    def _model(self) -> tuple:
        return self.variables["params"], self.variables["model_state"]

    def _encoded(self, example: dict, i: int, where) -> collating.Single:
        try:
            single = collating.EncodedExamples([example], self.task, cache=False)[0]
        except UserError as error:
            raise Unreadable(f"{where(i)}: {error}", i) from error
        if self.longest and (size := max(collating.lengths(single), default=0)) > self.longest:
            logging.warning("%s has %d tokens and is cut to %d", where(i), size, self.longest)
            single = collating.cut(single, [self.longest] * len(self.layout.streams))
        return single

    def _batches(self, encoded: list[collating.Single]) -> Iterator[tuple[list[int], dict]]:
        """(numbers of its examples, the batch) from the longest on: what does not fit into memory shows at once."""
        if not self.layout.streams:
            yield from self._equal_batches(encoded)
            return
        sizes = [max(1, *collating.lengths(single)) for single in encoded]
        order = sorted(range(len(encoded)), key=lambda i: -sizes[i])
        most = self.longest or max(_power(sizes[order[0]]), WIDTHS[-1])
        widths = sorted({*(w for w in WIDTHS if w < most), most})
        positions = POSITIONS.get(jax.default_backend(), 4096) // max(1, self.layout.groups)
        while order:
            width = next(w for w in widths if w >= sizes[order[0]])
            rows = min(_power(len(order)), max(1, _power(positions // width + 1) // 2))
            rows = -(-rows // self._ways) * self._ways
            numbers, order = order[:rows], order[rows:]
            shape = collating.BatchShape(rows, (width,) * len(self.layout.streams))
            yield numbers, collating.collate([[encoded[i]] for i in numbers], layout=self.layout, shape=shape)

    def _equal_batches(self, encoded: list[collating.Single]) -> Iterator[tuple[list[int], dict]]:
        """(numbers of its examples, the batch), of examples without tokens, which are all of one size."""
        rows = min(_power(len(encoded)), IMAGES_AT_ONCE)
        shape = collating.BatchShape(-(-rows // self._ways) * self._ways, ())
        for first in range(0, len(encoded), shape.rows):
            numbers = list(range(first, min(first + shape.rows, len(encoded))))
            yield numbers, collating.collate([[encoded[i]] for i in numbers], layout=self.layout, shape=shape)

    @staticmethod
    def _take(found: list[dict], numbers: list[int], answers: dict) -> None:
        answers = jax.device_get(answers)
        for row, i in enumerate(numbers):
            found[i] = {name: values[row] for name, values in answers.items() if name != "row_weights"}


def _power(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def _stacked(entries: list[np.ndarray]) -> np.ndarray:
    """One array of entries of different sizes, filled with zeros behind."""
    sizes = np.array([entry.shape for entry in entries])  # [entries, axes]
    if (sizes == sizes[:1]).all():
        return np.stack(entries)
    out = np.zeros((len(entries), *sizes.max(axis=0)), entries[0].dtype)
    for i, entry in enumerate(entries):
        out[(i, *map(slice, entry.shape))] = entry
    return out
