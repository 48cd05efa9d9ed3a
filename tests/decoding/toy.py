"""A small model of the decoding protocol whose outputs can be enumerated, and the plain computation it must agree with."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

PAD, BOS, EOS = 0, 1, 2


class Toy(nn.Module):
    """Logits depend on the source and on all tokens so far, in their order.

    The cache has leaves with the rows first (running, code), second (written), and none (index); one never changes.
    """

    vocab_size: int = 5
    width: int = 6

    def setup(self):
        normal = nn.initializers.normal(1.0)
        self.embedding = self.param("embedding", normal, (self.vocab_size, self.width))
        self.table = self.param("table", normal, (self.vocab_size, self.width))

    def code(self, source, positions, segments):
        """What the decoder knows of the source [B, S]: [B, D]; padding does not count."""
        weights = (segments > 0) / (1.0 + positions)
        return jnp.einsum("bs,bsd->bd", weights, self.embedding[source])

    def start(self, batch, length):
        rows = batch["source"].shape[0]
        self.put_variable("cache", "code", self.code(batch["source"], batch["source_positions"], batch["source_segments"]))
        self.put_variable("cache", "running", jnp.zeros((rows, self.width)))
        self.put_variable("cache", "written", jnp.zeros((1, rows, length, self.width)))
        self.put_variable("cache", "index", jnp.zeros((), jnp.int32))
        return batch["first"]

    def step(self, tokens):
        index = self.get_variable("cache", "index")
        x = self.embedding[tokens]  # [B, D]
        running = self.get_variable("cache", "running") * 0.5 + x
        written = self.get_variable("cache", "written")
        written = jax.lax.dynamic_update_slice_in_dim(written, (x * (index + 1))[None, :, None], index, axis=2)
        self.put_variable("cache", "running", running)
        self.put_variable("cache", "written", written)
        self.put_variable("cache", "index", index + 1)
        mean = written[0].sum(axis=1) / (index + 1) ** 2
        return jnp.tanh(self.get_variable("cache", "code") + running + mean) @ self.table.T


def make(seed: int = 0, vocab_size: int = 5):
    """(model, params)."""
    model = Toy(vocab_size)
    return model, model.init(jax.random.key(seed), batch_of(jnp.ones((1, 1), jnp.int32)), 1, method="start")["params"]


def batch_of(source, positions=None) -> dict:
    """What `start` reads, of sources [B, S] without padding; positions count from 0 where not given."""
    one = jnp.ones_like(source)
    positions = jnp.broadcast_to(jnp.arange(source.shape[1]), source.shape) if positions is None else positions
    first = jnp.full(source.shape[:1], BOS, jnp.int32)
    return {"source": source, "source_positions": positions, "source_segments": one, "first": first}


def log_probabilities(params, source, inputs) -> np.ndarray:
    """Of every next token, [B, T, V], for one source and decoder inputs [B, T], without any cache: in plain numpy."""
    embedding, table = np.asarray(params["embedding"], np.float64), np.asarray(params["table"], np.float64)
    code = (embedding[source] / (1.0 + np.arange(len(source)))[:, None]).sum(axis=0)  # [D]
    x = embedding[inputs]  # [B, T, D]
    time = np.arange(x.shape[1])
    running = np.einsum("ts,bsd->btd", np.tril(0.5 ** np.clip(time[:, None] - time, 0, None)), x)
    count = time[:, None] + 1
    logits = np.tanh(code + running + np.cumsum(x * count, axis=1) / count**2) @ table.T
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def sentences(count: int, longest: int, vocab_size: int = 5, seed: int = 0) -> list[list[int]]:
    """Sources of 1 … longest tokens, all lengths mixed."""
    random = np.random.default_rng(seed)
    return [random.integers(3, vocab_size, 1 + random.integers(longest)).tolist() for _ in range(count)]


def log_probability(params, source, output) -> float:
    """Of output, with its end token if it has one, given source."""
    table = log_probabilities(params, source, np.array([[BOS, *output[:-1]]]))[0]
    return table[np.arange(len(output)), output].sum()


def enumerate_ended(params, source, limit: int, vocab_size: int = 5) -> list[tuple[list[int], float]]:
    """Every output that ends within `limit` tokens, without its end token, and its log-probability; by brute force."""
    others = [token for token in range(vocab_size) if token != EOS]
    found = []
    for length in range(1, limit + 1):
        outputs = np.array([[*body, EOS] for body in itertools.product(others, repeat=length - 1)])
        inputs = np.concatenate([np.full((len(outputs), 1), BOS), outputs[:, :-1]], axis=1)
        table = log_probabilities(params, source, inputs)
        scores = np.take_along_axis(table, outputs[:, :, None], axis=2).sum(axis=(1, 2))
        found += [(output[:-1].tolist(), float(score)) for output, score in zip(outputs, scores, strict=True)]
    return found


def options(**changes) -> dict:
    """Arguments of a Decoder over a toy."""
    return {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD, "max_ratio": 0.0, "extra_length": 4, "lengths": (4, 8), **changes}
