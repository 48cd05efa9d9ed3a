"""Multi-head attention, and the one place where its kernel is chosen.

Axes: B batch rows, T target (query) length, S source (key) length, P prompt length, L cache length, N heads, K key heads,
H head width, D model width.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import logging

from transformers_jax.errors import UserError
from transformers_jax.layers import kernels
from transformers_jax.layers.masks import Mask, Place
from transformers_jax.layers.norms import RMSNorm
from transformers_jax.layers.places import kernel_of
from transformers_jax.layers.positions import RelativePositions, Rotary
from transformers_jax.layers.projections import FromHeads, Stddev, ToHeads

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")


def choose(
    backend: str,
    q_shape: tuple[int, ...],
    k_shape: tuple[int, ...],
    dtype,
    *,
    dropout: bool = False,
    bias: bool = False,
    weights: bool = False,
    mask: str = "segments",
    shares: tuple[int, int] | None = (1, 1),
    capability: str = "",
    wanted: str = "auto",
) -> tuple[str, str]:
    """Which kernel computes this attention, and why; a pure function.

    Args:
      backend: "cpu", "gpu" or "tpu".
      q_shape: [B, T, N, H].
      k_shape: [B, S, K, H].
      dtype: of q, k and v.
      dropout: weights are dropped.
      bias: a bias is added to the scores.
      weights: the weights are returned.
      mask: "none", "segments" (a `Mask`) or "dense" (a bool array).
      shares: into how many shares several devices split (rows, heads); None if that is not known (`kernels.shares`).
      capability: the GPU's architecture, "9.0" or the like; "" if not known.
      wanted: one of IMPLEMENTATIONS.

    Returns:
      (name of the kernel, reason). If `wanted` names a kernel that cannot do it, ("xla", what stands in its way).

    Raises:
      UserError: no such implementation.
    """
    if wanted not in IMPLEMENTATIONS:
        raise UserError(f"attention implementation {wanted!r} is none of {', '.join(IMPLEMENTATIONS)}")
    if wanted == "xla":
        return "xla", "asked for"
    own = {"gpu": "cudnn", "tpu": "splash"}.get(backend, "xla")
    name = own if wanted == "auto" else wanted
    if name == "xla":
        return "xla", f"there is no other kernel for {backend}"
    if name != own:
        return "xla", f"{name} does not run on {backend}"
    uses = {"dropout on weights": dropout, "a bias on scores": bias, "returning weights": weights}
    obstacle = next((f"does not support {what}" for what, used in uses.items() if used), "")
    if name == "cudnn":
        obstacle = obstacle or _cudnn_obstacle(q_shape, k_shape, jnp.dtype(dtype), mask, capability)
    else:
        obstacle = obstacle or _splash_obstacle(q_shape, k_shape, mask, shares)
    if obstacle:
        return "xla", f"{name} {obstacle}"
    return name, "asked for" if wanted == name else f"it supports this attention on {backend}"


def _cudnn_obstacle(q_shape, k_shape, dtype, mask, capability) -> str:
    """What keeps cuDNN from computing this attention; "" if nothing does."""
    lengths, width = (q_shape[1], k_shape[1]), q_shape[3]
    if capability and (not capability[0].isdigit() or float(capability) < 8):
        return f"needs an NVIDIA GPU of compute capability 8.0 or later, this one says {capability}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"computes in bfloat16 or float16, not {dtype}"
    if width % 8 or width > 128:
        return f"wants a head width that is a multiple of 8 and at most 128, not {width}"
    if lengths[0] == 1:
        return "gains nothing for a single query"
    if mask != "none" and (lengths[0] % 2 or lengths[1] % 2):
        return f"wants even lengths under a mask, not {lengths[0]} and {lengths[1]}"
    return ""


def _splash_obstacle(q_shape, k_shape, mask, shares) -> str:
    """What keeps splash attention from computing this attention; "" if nothing does."""
    lengths, rows, heads = (q_shape[1], k_shape[1]), q_shape[0], k_shape[2]
    if mask == "dense":
        return "takes segments, not a dense mask"
    if lengths[0] % kernels.LANES or lengths[1] % kernels.LANES:
        return f"wants lengths that are multiples of {kernels.LANES}, not {lengths[0]} and {lengths[1]}"
    if shares is None:
        return "runs on several devices only with their mesh in context (jax.set_mesh, automatic axes)"
    if rows % shares[0] or heads % shares[1]:
        kind = "heads" if heads == q_shape[2] else "heads of keys"
        return f"cannot split {rows} rows and {heads} {kind} into {shares[0]} and {shares[1]} shares"
    return ""


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: Mask | jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_rng: jax.Array | None = None,
    implementation: str = "auto",
    return_weights: bool = False,
    backend: str | None = None,
):
    """softmax(q k^T / sqrt(H) + bias) v of every head (Vaswani et al. 2017, section 3.2.1), by the best kernel for it.

    Args:
      q: [B, T, N, H].
      k, v: [B, S, K, H]; query heads n of a group n // (N / K) share a head of keys and values.
      mask: which query sees which key: a `Mask`, a bool array broadcastable to [B, N, T, S], or None for all.
      bias: added to the scaled scores, broadcastable to [B, N, T, S].
      dropout_rate: share of weights set to zero, the rest scaled up; needs `dropout_rng`.
      implementation: one of IMPLEMENTATIONS; one that cannot compute this falls back to "xla" with a warning.
      return_weights: also return the weights [B, N, T, S] as applied.
      backend: the platform the program is made for, if not `jax.default_backend()`.

    Returns:
      [B, T, N, H], zeros where a query sees no key; with `return_weights`, (that, weights).

    Raises:
      UserError: no such implementation.
    """
    kind = "none" if mask is None else "segments" if isinstance(mask, Mask) else "dense"
    backend = backend or jax.default_backend()
    name, reason = choose(
        backend, q.shape, k.shape, q.dtype, dropout=dropout_rate > 0, bias=bias is not None, weights=return_weights,
        mask=kind, shares=kernels.shares(), capability=_capability(backend), wanted=implementation,
    )  # fmt: skip
    _say(name, reason, implementation, backend)
    if name == "xla":
        out, weights = kernels.xla(q, k, v, mask, bias=bias, dropout_rate=dropout_rate, dropout_rng=dropout_rng)
        return (out, weights) if return_weights else out
    return (kernels.cudnn if name == "cudnn" else kernels.splash)(q, k, v, mask)


def _capability(backend: str) -> str:
    """What the first device calls its architecture ("9.0" on an H100, "gfx90a" on AMD's), "" where it is not known."""
    local = jax.local_devices()[0]
    return str(getattr(local, "compute_capability", "")) if backend == "gpu" == local.platform else ""


@functools.cache
def _say(name: str, reason: str, wanted: str, backend: str) -> None:
    """Logs a choice the first time it is made; a kernel that was asked for and cannot serve is a warning."""
    if wanted in ("auto", name):
        logging.info("attention on %s: %s, because %s", backend, name, reason)
    else:
        logging.warning("attention on %s: %s instead of %s, because %s", backend, name, wanted, reason)


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2), of whole rows or position by position.

    Parameters: query kernel [D, N, H], key and value kernels [D, K, H], out kernel [N, H, D], with `use_bias` their biases;
    with `relative_distance` k the embeddings relative_keys and relative_values [2 k + 1, H]; with `head_norm` the scales of
    query_norm and key_norm [H].

    num_heads: N.
    kv_heads: K, heads of keys and values, each for N / K heads of queries (Ainslie et al. 2023); N if None.
    head_width: H; D / N if None.
    features: width of the output; D if None.
    dropout_rate: dropout on the attention weights, from the rng stream "dropout".
    use_bias: the four projections add a bias.
    out_bias: whether the last of them does, if it is otherwise than the others.
    dtype: of the computation; None for the inputs' and parameters' common dtype.
    param_dtype: of the parameters.
    stddev: of the kernels' initial numbers; 0 for Glorot's (`projections.kernel_init`).
    out_stddev: of the out kernel's, if they are others.
    rotary: turns queries and keys by the positions of the mask.
    head_norm: epsilon of a root mean square norm of each head of queries and keys, before they are turned; 0 for no norm.
    relative_distance: largest offset of key and query that is told apart; offsets get learned vectors that are added to
      keys and values (Shaw et al. 2018, equations 3 and 4), the same for all heads. 0: no relative positions.
    relative_to_values: the vectors are added to values too, not only to keys.
    implementation: see `dot_product_attention`.

    Attention pictures: with the collection "intermediates" mutable, `__call__` sows "weights" [B, N, T, S].
    """

    num_heads: int
    head_width: int | None = None
    dropout_rate: float = 0.0
    use_bias: bool = False
    dtype: jnp.dtype | None = None
    param_dtype: jnp.dtype = jnp.float32
    relative_distance: int = 0
    relative_to_values: bool = True
    implementation: str = "auto"
    features: int | None = None
    stddev: Stddev = 0.0
    kv_heads: int | None = None
    out_bias: bool | None = None
    out_stddev: Stddev | None = None
    rotary: Rotary | None = None
    head_norm: float = 0.0

    def setup(self):
        types, kv_heads = (self.dtype, self.param_dtype), self.kv_heads or self.num_heads
        if self.num_heads % kv_heads:
            raise UserError(f"kv_heads {kv_heads} does not divide num_heads {self.num_heads}: change one of them")
        if kv_heads != self.num_heads and self.head_width is None:
            raise UserError(f"{kv_heads} heads of keys for {self.num_heads} of queries: give head_width")
        self.query = ToHeads(self.num_heads, self.head_width, self.use_bias, *types, self.stddev)
        self.key = ToHeads(kv_heads, self.head_width, self.use_bias, *types, self.stddev)
        self.value = ToHeads(kv_heads, self.head_width, self.use_bias, *types, self.stddev)
        out_bias = self.use_bias if self.out_bias is None else self.out_bias
        self.out = FromHeads(out_bias, *types, self.stddev if self.out_stddev is None else self.out_stddev)
        if self.head_norm:
            self.query_norm = RMSNorm(self.head_norm, *types, axis="kv")
            self.key_norm = RMSNorm(self.head_norm, *types, axis="kv")
        if self.relative_distance:
            self.relative_keys = RelativePositions(self.relative_distance, self.dtype, self.param_dtype)
            if self.relative_to_values:
                self.relative_values = RelativePositions(self.relative_distance, self.dtype, self.param_dtype)

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array | None = None,
        *,
        mask: Mask | jax.Array | None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Attends from x [B, T, D] to context [B, S, D], or to x itself where there is none; gives [B, T, D or features].

        Args:
          mask: a `Mask`, a bool array broadcastable to [B, N, T, S], or None if every query sees every key.
          deterministic: no dropout.

        Raises:
          UserError: num_heads does not divide the width, or context has another width and head_width is not given,
            or no such implementation.
          ValueError: relative or rotary positions between different sequences, or rotary ones and a mask without positions.
        """
        if (self.relative_distance or self.rotary) and context is not None:
            raise ValueError("relative positions are offsets within one sequence: attention to a context has none")
        source = x if context is None else context
        if self.head_width is None and source.shape[-1] != x.shape[-1]:
            raise UserError(
                f"attention from width {x.shape[-1]} to a context of width {source.shape[-1]}: give head_width"
            )
        q, k = self._turned(self.query(x), self.key(source), mask.positions if isinstance(mask, Mask) else None)
        out = self._attend(q, k, self.value(source), mask, 0.0 if deterministic else self.dropout_rate)
        return self.out(out, self.features or x.shape[-1])

    def _turned(self, q: jax.Array, k: jax.Array, positions: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Queries [B, T, N, H] and keys [B, T, K, H] of positions [B, T], normed and turned if that is asked for."""
        if self.head_norm:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rotary is None:
            return q, k
        if positions is None:
            raise ValueError("rotary positions need a Mask with positions")
        return self.rotary.rotate(q, positions), self.rotary.rotate(k, positions)

    def _attend(self, q, k, v, mask, dropout_rate) -> jax.Array:
        """Attention of all heads [B, T, N, H], with relative positions if there are any."""
        offsets = (jnp.arange(q.shape[1]), jnp.arange(k.shape[1]), q.shape[-1])
        bias = self._relative_scores(kernels.heads_first(q), *offsets) if self.relative_distance else None
        picture = self.is_mutable_collection("intermediates")
        with_values = bool(self.relative_distance and self.relative_to_values)
        out = dot_product_attention(
            q, k, v, mask, bias=bias,
            dropout_rate=dropout_rate, dropout_rng=self.make_rng("dropout") if dropout_rate else None,
            implementation=self.implementation, return_weights=picture or with_values,
        )  # fmt: skip
        if picture or with_values:
            out, weights = out
        if picture:
            self.sow("intermediates", "weights", weights)
        return out + kernels.heads_first(self._relative_output(weights, *offsets)) if with_values else out

    def _relative_scores(self, q, query_positions, key_positions, width):
        """[B, N, T, S]: queries [B, N, T, H] times the offsets' key vectors, scaled (Shaw et al. 2018, equation 4)."""
        vectors = self.relative_keys(query_positions, key_positions, width)  # [T, S, H]
        return jnp.einsum("BNTH,TSH->BNTS", q * q.shape[-1] ** -0.5, vectors.astype(q.dtype))

    def _relative_output(self, weights, query_positions, key_positions, width):
        """[B, N, T, H]: offsets' value vectors summed by the weights [B, N, T, S] (Shaw et al. 2018, equation 3)."""
        vectors = self.relative_values(query_positions, key_positions, width)  # [T, S, H]
        return jnp.einsum("BNTS,TSH->BNTH", weights, vectors.astype(weights.dtype))

    def start(self, batch_rows: int, length: int) -> None:
        """Makes an empty self-attention cache of `length` positions a row, heads first: "cache" self_key, self_value.

        Both are [B, K, L, H]: with a query a step, products of that layout run many times faster than of [B, L, K, H].
        """
        kernel = kernel_of(self.key)  # [D, K, H]
        heads, head_width = kernel.shape[1:]
        self._start_steps((batch_rows, heads, length, head_width), self.dtype or kernel.dtype)

    def _start_steps(self, shape: tuple[int, ...], dtype) -> None:
        """Makes the empty cache of keys and values, of this shape [B, K, L, H] each."""
        empty = jnp.zeros(shape, dtype)
        self.put_variable("cache", "self_key", empty)
        self.put_variable("cache", "self_value", empty)

    def start_prompt(self, x: jax.Array, mask: Mask, length: int) -> jax.Array:
        """`__call__` of prompts x [B, P, D], which also makes the cache of what `step_prompt` reads.

        Keys and values of the prompts, [B, K, P, H], go into "cache" prompt_key and prompt_value, which no step changes;
        self_key and self_value are for `length` steps, as `start` makes them.

        Raises:
          ValueError: relative positions, whose offsets differ by row then.
        """
        if self.relative_distance:
            raise ValueError("relative positions do not go on from prompts of different lengths")
        v = self.value(x)
        q, k = self._turned(self.query(x), self.key(x), mask.positions)
        self.put_variable("cache", "prompt_key", kernels.heads_first(k))
        self.put_variable("cache", "prompt_value", kernels.heads_first(v))
        self._start_steps((k.shape[0], k.shape[2], length, k.shape[3]), k.dtype)
        return self.out(self._attend(q, k, v, mask, 0.0), self.features or x.shape[-1])

    def start_context(self, context: jax.Array) -> None:
        """Puts keys and values of context [B, S, D], each [B, N, S, H], into "cache" context_key, context_value."""
        self.put_variable("cache", "context_key", kernels.heads_first(self.key(context)))
        self.put_variable("cache", "context_value", kernels.heads_first(self.value(context)))

    def step(self, x: jax.Array, index: jax.Array) -> jax.Array:
        """Attends from x [B, 1, D], which stands at position `index` of its row, to the cached positions 0 … index.

        x's own key and value are added to the cache. Gives [B, 1, D].
        """
        q, k = self._turned(self.query(x), self.key(x), jnp.broadcast_to(index, x.shape[:2]))
        q, k = kernels.heads_first(q), self._append("self_key", kernels.heads_first(k), index)
        v = self._append("self_value", kernels.heads_first(self.value(x)), index)
        positions = jnp.arange(k.shape[2])
        offsets = (jnp.asarray(index)[None], positions, q.shape[-1])
        bias = self._relative_scores(q, *offsets) if self.relative_distance else None
        out, weights = kernels.product(q, k, v, positions <= index, bias=bias)
        if self.relative_distance and self.relative_to_values:
            out = out + self._relative_output(weights, *offsets)
        return self.out(kernels.heads_first(out), self.features or x.shape[-1])

    def step_prompt(self, x: jax.Array, place: Place) -> jax.Array:
        """Attends from x [B, 1, D], a step that stands at `place`, to the prompt of `start_prompt` and the steps so far.

        x's own key and value are added to the cache. Gives [B, 1, D].
        """
        prompt = self.get_variable("cache", "prompt_key"), self.get_variable("cache", "prompt_value")
        if prompt[0] is None:
            raise ValueError("step_prompt() without a prompt: call start_prompt() first")
        q, k = self._turned(self.query(x), self.key(x), place.positions())
        k = self._append("self_key", kernels.heads_first(k), place.index)
        v = self._append("self_value", kernels.heads_first(self.value(x)), place.index)
        parts = [(*prompt, place.prompt(prompt[0].shape[2])), (k, v, place.steps(k.shape[2]))]
        out = kernels.joined_product(kernels.heads_first(q), parts)
        return self.out(kernels.heads_first(out), self.features or x.shape[-1])

    def _append(self, name: str, new: jax.Array, index: jax.Array) -> jax.Array:
        """The cached array [B, K, L, H] with `new` [B, K, 1, H] at `index`, which it also stores."""
        cached = self.get_variable("cache", name)
        if cached is None:
            raise ValueError("step() without a cache: call start() first")
        cached = jax.lax.dynamic_update_slice_in_dim(cached, new.astype(cached.dtype), index, axis=2)
        self.put_variable("cache", name, cached)
        return cached

    def step_context(self, x: jax.Array, key_segments: jax.Array | None = None) -> jax.Array:
        """Attends from x [B, 1, D] to the context of `start_context`; gives [B, 1, D].

        Args:
          key_segments: [B, S] int32 (0 is padding) or bool (true at real keys); None if all are real.
        """
        k, v = self.get_variable("cache", "context_key"), self.get_variable("cache", "context_value")
        if k is None:
            raise ValueError("step_context() without a context: call start_context() first")
        seen = None if key_segments is None else (key_segments > 0)[:, None, None, :]
        out, _ = kernels.product(kernels.heads_first(self.query(x)), k, v, seen)
        return self.out(kernels.heads_first(out), self.features or x.shape[-1])
