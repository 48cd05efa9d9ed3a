"""The recurrent baseline: LSTM encoder and decoder with global attention (Luong, Pham, Manning 2015, "Effective
Approaches to Attention-based Neural Machine Translation").

Axes: B batch rows, S source length, T target length, D model width, F hidden width of the LSTMs, V vocabulary.

At each target position the top decoder state h looks for source states s to attend to, and decides with what it found
(sections 3 and 3.1):

    a = softmax over s of score(h, s)     score: dot h·s, general h·(W s), concat v·tanh(W_q h + W_k s)
    c = sum of a s
    h~ = tanh(W_c [c; h])                 the attentional vector, from which the next token is predicted

With input feeding (section 3.3) the next position reads h~ beside its token, so that it knows what was attended to
before; attention then waits for the recurrence, position by position. Without it, attention is one product over all
positions.

Packed rows: the encoder forgets where a segment begins, a decoder segment starts from the encoder's states at the end
of the same source segment, and attends to that segment alone.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.errors import UserError
from transformers_jax.layers import scores
from transformers_jax.layers.dropout import Dropout, keep_mask
from transformers_jax.layers.embeddings import embed, embedding_table
from transformers_jax.layers.masks import same_segment
from transformers_jax.layers.recurrent import (
    LSTM,
    State,
    cell,
    gate_kernel,
    product,
    recurrence,
    restart,
    time_first,
    zero_state,
)
from transformers_jax.models.protocol import Protocol, translator
from transformers_jax.outputs import LanguageModelOutput

SCORES = ("dot", "general", "concat")


@dataclasses.dataclass(frozen=True)
class Config:
    """Fields of `config.model`; the defaults are the model of Luong et al., section 4.1: four layers of 1,000 cells.

    hidden: F; 0 stands for `width`.
    bidirectional: the encoder's first layer reads both ways, F/2 cells each (Wu et al. 2016, section 3.2).
    decoder_layers: they start from the encoder's topmost layers; where there are more of them, the lower ones share the
      encoder's first.
    dropout: on each layer's input and on the attentional vector, never between times (Zaremba et al. 2014).
    score: "dot", "general" or "concat".
    share_embeddings: one matrix for source, target and softmax; otherwise the source has its own.
    """

    vocab_size: int
    width: int = 1000
    lstm_width: int = 0
    encoder_layers: int = 4
    decoder_layers: int = 4
    bidirectional: bool = False
    dropout: float = 0.2
    score: str = "general"
    input_feeding: bool = True
    share_embeddings: bool = True
    dtype: str = "float32"
    param_dtype: str = "float32"


class Model(nn.Module):
    """The encoder–decoder. `__call__` trains; `start` and `step` decode one position at a time with a cache."""

    config: Config

    def setup(self):
        c, hidden = self.config, self.hidden()
        self.target_embedding = embedding_table(self, "embedding", c.vocab_size, c.width, c.param_dtype)
        self.source_embedding = self.target_embedding
        if not c.share_embeddings:
            self.source_embedding = embedding_table(self, "source_embedding", c.vocab_size, c.width, c.param_dtype)

        def layer(inputs, cells=hidden):
            return LSTM(inputs, cells, c.dtype, c.param_dtype)

        first = layer(c.width, hidden // 2) if c.bidirectional else layer(c.width)
        self.encoder = [first] + [layer(hidden) for _ in range(1, c.encoder_layers)]
        if c.bidirectional:
            self.encoder_backward = layer(c.width, hidden // 2)
        self.decoder = [layer(c.width)] + [layer(hidden) for _ in range(1, c.decoder_layers)]
        if c.input_feeding:
            self.feed = gate_kernel(self, "feed", c.width, hidden, c.param_dtype)  # [D, 4, F]
        if c.score != "dot":
            self.score_keys = self.matrix("score_keys", (hidden, hidden), ("embed", "kv"))
        if c.score == "concat":
            self.score_query = self.matrix("score_query", (hidden, hidden), ("embed", "kv"))
            self.score_vector = self.matrix("score_vector", (hidden, 1), ("kv", None))
        self.combine = self.matrix("combine", (2 * hidden, c.width), ("mlp", "embed"))
        self.drop = Dropout(c.dropout)

    def hidden(self) -> int:
        """F, once the fields are found to fit together.

        Raises:
          UserError: an unknown score, no layers, or an odd hidden width to be read both ways.
        """
        c, hidden = self.config, self.config.lstm_width or self.config.width
        if c.score not in SCORES:
            raise UserError(f"config.model.score is {c.score!r}; it is one of {', '.join(SCORES)}")
        if min(c.encoder_layers, c.decoder_layers) < 1:
            raise UserError("config.model.encoder_layers and config.model.decoder_layers must be 1 or more")
        if c.bidirectional and hidden % 2:
            raise UserError(f"config.model.bidirectional wants an even hidden width, not {hidden}")
        return hidden

    @nn.nowrap
    def protocol(self) -> Protocol:
        """What this model tells about itself."""
        return translator()

    def matrix(self, name: str, shape: tuple[int, int], axes: tuple) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.xavier_uniform(), axes)
        return self.param(name, init, shape, self.config.param_dtype).astype(self.config.dtype)

    def __call__(self, batch: dict, *, deterministic: bool = True) -> LanguageModelOutput:
        """Attentional vectors of every target position, given the source and the target so far."""
        source = batch["source"]  # [B, S]
        source_positions = batch["source_positions"]  # [B, S]
        source_segments = batch["source_segments"]  # [B, S]
        target_inputs = batch["target_inputs"]  # [B, T]
        target_positions = batch["target_positions"]  # [B, T]
        target_segments = batch["target_segments"]  # [B, T]

        memory, initial = self.encode(
            source, source_positions, source_segments, target_segments, deterministic=deterministic
        )  # [B, S, F], states [B, T, F]
        x = self.drop(embed(self.target_embedding, target_inputs, self.config.dtype), deterministic=deterministic)
        reset = target_positions == 0  # [B, T]
        seen = same_segment(target_segments, source_segments)  # [B, T, S]
        decode = self.decode_fed if self.config.input_feeding else self.decode_at_once
        hidden, weights = decode(x, reset, initial, memory, seen, deterministic)  # [B, T, D], [B, T, S]
        if self.is_mutable_collection("intermediates") and not self.is_initializing():
            self.sow("intermediates", "weights", weights[:, None])  # [B, 1, T, S]
        return LanguageModelOutput(hidden, self.output_table())

    def encode(
        self, source, positions, segments, queries, *, deterministic: bool = True
    ) -> tuple[jax.Array, list[State]]:
        """Reads the source.

        Args:
          source, positions, segments: [B, S].
          queries: [B, T], segments whose final states are wanted.

        Returns:
          (the top layer's h [B, S, F], for each decoder layer its first state (h, c) [B, T, F]: what the encoder's
          layer held when it had read all of that segment; zeros where there is no such segment).
        """
        first = positions == 0  # [B, S]
        last = segments != jnp.pad(segments[:, 1:], ((0, 0), (0, 1)), constant_values=-1)  # [B, S]
        own = same_segment(queries, segments)  # [B, T, S]

        def pick(at, states):
            chosen = (own & at[:, None]).astype(jnp.float32)  # [B, T, S], one position a query
            return [jnp.einsum("bts,bsf->btf", chosen, s, precision="highest").astype(s.dtype) for s in states]

        x = self.drop(embed(self.source_embedding, source, self.config.dtype), deterministic=deterministic)  # [B, S, D]
        finals = []
        for number, layer in enumerate(self.encoder):
            state = layer(self.drop(x, deterministic=deterministic) if number else x, first)  # (h, c) [B, S, F]
            finals.append(pick(last, state))
            if number == 0 and self.config.bidirectional:
                backward = self.encoder_backward(x, last, reverse=True)
                state, finals = join(state, backward), [join(finals[0], pick(first, backward))]
            x = state[0]
        offset = self.config.encoder_layers - self.config.decoder_layers
        return x, [tuple(finals[max(0, offset + n)]) for n in range(self.config.decoder_layers)]

    def decode_at_once(self, x, reset, initial, memory, seen, deterministic) -> tuple[jax.Array, jax.Array]:
        """Layer by layer, then attention of all positions at once: x [B, T, D] → [B, T, D], [B, T, S]."""
        for number, layer in enumerate(self.decoder):
            x = self.drop(x, deterministic=deterministic) if number else x
            x, _ = layer(x, reset, initial[number])  # [B, T, F]
        keys = self.keys(memory)
        if self.config.score == "concat":
            energies = additive(x @ self.score_query, keys, self.score_vector)
        else:
            energies = jnp.einsum("btf,bfs->bts", x, keys, preferred_element_type=jnp.float32)
        weights = scores.softmax(energies, seen)  # [B, T, S] float32
        context = weights.astype(x.dtype) @ memory  # [B, T, F]
        x = jnp.tanh(jnp.concatenate([context, x], axis=-1) @ self.combine)  # [B, T, D]
        return self.drop(x, deterministic=deterministic), weights

    def decode_fed(self, x, reset, initial, memory, seen, deterministic) -> tuple[jax.Array, jax.Array]:
        """With input feeding, position by position: x [B, T, D] → [B, T, D], [B, T, S]."""
        rate = 0.0 if deterministic else self.config.dropout
        widths = [self.hidden()] * (self.config.decoder_layers - 1) + [self.config.width]
        keep = [keep_mask(self.make_rng("dropout"), rate, (*x.shape[:2], w)) for w in widths] if rate else None
        states = [zero_state(x.shape[0], self.hidden(), x.dtype)] * self.config.decoder_layers
        carry = states, jnp.zeros((x.shape[0], self.config.width), x.dtype)
        xs = (self.gates(time_first(x)), *time_first((reset, initial, seen, keep)))
        step = functools.partial(advance_fed, rate)
        _, ys = recurrence(step, False, self.weights(memory), self.shared(memory), carry, xs)
        return time_first(ys)

    def start(self, batch: dict, length: int) -> jax.Array:
        """Encodes the source, one example a row, and puts what decoding needs into the cache, for any length.

        Args:
          batch: source, source_positions and source_segments [B, S]; first [B] int32, what targets begin with.

        Returns:
          first, the token that the first step reads.
        """
        del length  # the state does not grow
        source = batch["source"]  # [B, S]
        source_positions = batch["source_positions"]  # [B, S]
        segments = (batch["source_segments"] > 0).astype(jnp.int32)  # [B, S]

        one = jnp.ones((source.shape[0], 1), jnp.int32)
        memory, initial = self.encode(source, source_positions, segments, one)
        for number, (h, c) in enumerate(initial):
            self.put_variable("cache", f"h_{number}", h[:, 0])  # [B, F]
            self.put_variable("cache", f"c_{number}", c[:, 0])  # [B, F]
        if self.config.input_feeding:
            self.put_variable("cache", "fed", jnp.zeros((source.shape[0], self.config.width), memory.dtype))  # [B, D]
        self.put_variable("cache", "memory", memory)  # [B, S, F]
        self.put_variable("cache", "keys", self.keys(memory))
        self.put_variable("cache", "seen", segments > 0)  # [B, S]
        return batch["first"]

    def step(self, tokens: jax.Array) -> jax.Array:
        """Reads the next target token of each row, [B], and returns the logits of the one after it, [B, V] float32."""
        memory, keys, seen = (self.get_variable("cache", name) for name in ("memory", "keys", "seen"))
        if memory is None:
            raise ValueError("step() without a cache: call start() first")
        layers = range(self.config.decoder_layers)
        states = [(self.get_variable("cache", f"h_{n}"), self.get_variable("cache", f"c_{n}")) for n in layers]
        gates = self.gates(embed(self.target_embedding, tokens, self.config.dtype))  # [B, 4F]
        multiply = functools.partial(product, self.weights(memory, keys))
        fed = self.get_variable("cache", "fed") if self.config.input_feeding else None
        states, hidden, _ = advance(multiply, self.shared(memory, keys), states, fed, gates, seen, None, 0.0)
        for number, (h, c) in enumerate(states):
            self.put_variable("cache", f"h_{number}", h)
            self.put_variable("cache", f"c_{number}", c)
        if self.config.input_feeding:
            self.put_variable("cache", "fed", hidden)
        return jnp.einsum("bd,vd->bv", hidden, self.output_table(), preferred_element_type=jnp.float32)

    def gates(self, x: jax.Array) -> jax.Array:
        """What tokens x [..., D] add to the first decoder layer's gates, [..., 4F] float32."""
        kernel, _, bias = self.decoder[0].matrices()
        return jnp.einsum("...d,df->...f", x, kernel, preferred_element_type=jnp.float32) + bias

    def keys(self, memory: jax.Array) -> jax.Array:
        """What queries are compared with: [B, F, S], which they are multiplied with, or for concat [B, S, F]."""
        keys = memory if self.config.score == "dot" else memory @ self.score_keys
        return keys if self.config.score == "concat" else jnp.swapaxes(keys, 1, 2)

    def weights(self, memory: jax.Array, keys: jax.Array | None = None) -> dict[str, jax.Array]:
        """The matrices of `advance`, by name."""
        weights = {"memory": memory, "combine": self.combine}
        for number, layer in enumerate(self.decoder):
            below, weights[f"recurrent_{number}"], _ = layer.matrices()
            if number:
                weights[f"below_{number}"] = below
        if self.config.input_feeding:
            weights["below_0"] = self.feed.reshape(self.config.width, -1).astype(self.config.dtype)
        if self.config.score == "concat":
            return weights | {"query": self.score_query}
        return weights | {"keys": self.keys(memory) if keys is None else keys}

    def shared(self, memory: jax.Array, keys: jax.Array | None = None) -> dict:
        """What `advance` uses besides: biases, and for the concat score its keys and vector."""
        shared = {"biases": [layer.matrices()[2] for layer in self.decoder]}
        if self.config.score == "concat":
            shared |= {"keys": self.keys(memory) if keys is None else keys, "vector": self.score_vector}
        return shared

    def output_table(self):
        return self.target_embedding.astype(self.config.dtype)  # [V, D]


def join(one, other) -> State:
    """(h, c) of both directions side by side."""
    return tuple(jnp.concatenate(pair, axis=-1) for pair in zip(one, other, strict=True))


def additive(query: jax.Array, keys: jax.Array, vector: jax.Array) -> jax.Array:
    """v·tanh(q + k) in float32: query [B, T, F], keys [B, S, F], vector [F, 1] → [B, T, S]."""
    return (jnp.tanh(query[:, :, None] + keys[:, None]) @ vector)[..., 0].astype(jnp.float32)


def advance(multiply, shared: dict, states: list[State], fed, gates, seen, keep, rate: float):
    """One target position of the decoder.

    Args:
      multiply: (name, x [B, I]) → x @ that matrix [B, O] float32; see `Model.weights`.
      shared: see `Model.shared`.
      states: (h, c) [B, F] of each layer.
      fed: h~ of the position before, [B, D]; None without input feeding.
      gates: what the token adds to the first layer's gates, [B, 4F].
      seen: bool [B, S], source positions that may be attended to.
      keep: for each layer which elements of its output survive dropout; None for all.
      rate: probability of being dropped.

    Returns:
      (states, h~ [B, D], attention weights [B, S]).
    """

    def drop(x, number):
        return x if keep is None else jnp.where(keep[number], x / (1.0 - rate), jnp.zeros((), x.dtype))

    below, after = fed, []
    for number, (h, c) in enumerate(states):
        sums = gates if number == 0 else shared["biases"][number]
        sums += multiply(f"recurrent_{number}", h)
        if below is not None:
            sums += multiply(f"below_{number}", below)
        h, c = cell(sums, c, h.dtype)  # [B, F]
        after.append((h, c))
        below = drop(h, number) if number + 1 < len(states) else h
    if "vector" in shared:
        query = multiply("query", h).astype(h.dtype)
        energies = additive(query[:, None], shared["keys"], shared["vector"])[:, 0]  # [B, S]
    else:
        energies = multiply("keys", h)  # [B, S]
    weights = scores.softmax(energies, seen)  # [B, S] float32
    context = multiply("memory", weights.astype(h.dtype)).astype(h.dtype)  # [B, F]
    attentional = jnp.tanh(multiply("combine", jnp.concatenate([context, h], axis=-1))).astype(h.dtype)  # [B, D]
    return after, drop(attentional, -1), weights


def advance_fed(rate: float, multiply, shared, carry, x):
    """`advance` as a step of `recurrence`, starting anew where x says so."""
    (states, fed), (gates, reset, initial, seen, keep) = carry, x
    states, fed = restart(reset, initial, states), restart(reset, None, fed)
    states, fed, weights = advance(multiply, shared, states, fed, gates, seen, keep, rate)
    return (states, fed), (fed, weights)
