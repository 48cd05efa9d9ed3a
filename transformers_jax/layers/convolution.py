"""Convolutions along a row that read neither padding nor across the border of a packed example, and decode step by step.

Axes: B batch rows, T length, C input channels, F output channels, K width of the kernel (number of taps).

A causal kernel reads its own position and the K - 1 before it, any other stands in its middle ("same" padding). A tap
whose position lies outside the row, in another segment or in padding reads zero: each packed example gets what it would
get alone. Decoding keeps the last K - 1 inputs of each row, which start as zeros, in the collection "cache".
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformers_jax.errors import UserError
from transformers_jax.layers.gather import gather
from transformers_jax.layers.projections import Linear


def depthwise(x: jax.Array, kernel: jax.Array, segments: jax.Array | None = None, *, causal: bool) -> jax.Array:
    """Each channel convolved with its own taps, y[b, t, c] = Σ_j kernel[j, c] · x[b, t + j - first, c], in float32.

    Written as K shifted multiply-adds, with a gradient of the same form: XLA's grouped convolution takes many times longer
    on CPUs. `first` is K - 1 if causal, otherwise (K - 1) // 2.

    Args:
      x: [B, T, C].
      kernel: [K, C].
      segments: [B, T] int32, 0 is padding, which gives and gets zeros; None if each row is one example without padding.
      causal: a position reads none that come after it.

    Returns:
      [B, T, C] in the dtype of x.
    """
    return _depthwise(x, kernel, segments, _first(kernel.shape[0], causal))


def shifted(x: jax.Array, width: int, segments: jax.Array | None = None, *, causal: bool) -> list[jax.Array]:
    """What each of `width` taps reads at every position: K arrays like x [B, T, C]; arguments as in `depthwise`."""
    tap = _taps(x, width, segments, _first(width, causal))
    return [tap(j) for j in range(width)]


def _first(width: int, causal: bool) -> int:
    """How many positions before its own a kernel's first tap reads."""
    return width - 1 if causal else (width - 1) // 2


def _taps(x, width, segments, first):
    """The function j → what tap j reads, [B, T, C]; j may be traced. Few operations a tap: there are many taps to compile."""
    length = x.shape[1]

    def pad(x):
        return jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (first, width - 1 - first, 0)] + [(0, 0, 0)] * (x.ndim - 2))

    def part(padded, j):
        if isinstance(j, int):
            return jax.lax.slice_in_dim(padded, j, j + length, axis=1)
        return jax.lax.dynamic_slice_in_dim(padded, j, length, 1)

    padded = pad(x)
    if segments is None:
        return lambda j: part(padded, j)
    padded_segments, zeros = pad(segments), jnp.zeros_like(x)
    readers = jnp.where(segments > 0, segments, -1)  # padding reads nothing

    def tap(j):
        seen = part(padded_segments, j) == readers  # [B, T]
        return jax.lax.select(jax.lax.broadcast_in_dim(seen, x.shape, (0, 1)), part(padded, j), zeros)

    return tap


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _depthwise(x, kernel, segments, first):
    tap, kernel = _taps(x, kernel.shape[0], segments, first), kernel.astype(jnp.float32)[:, None]  # [K, 1, C]
    products = (tap(j) * jax.lax.slice_in_dim(kernel, j, j + 1) for j in range(len(kernel)))
    return functools.reduce(jax.lax.add, products).astype(x.dtype)


def _forward(x, kernel, segments, first):
    return _depthwise(x, kernel, segments, first), (x, kernel, segments)


def _backward(first, saved, gradient):
    """The input's gradient is the same sum with taps reversed; that of a tap is one sum over rows and positions.

    CPUs take the taps' sums one after the other: in one loop over all of them each would wait for memory.
    """
    x, kernel, segments = saved
    width = kernel.shape[0]
    tap = _taps(x, width, segments, first)

    def of_tap(j):
        return jnp.sum(tap(j) * gradient, axis=(0, 1), dtype=jnp.float32).astype(kernel.dtype)  # [C]

    one_by_one = jax.default_backend() == "cpu"
    of_kernel = jax.lax.map(of_tap, jnp.arange(width)) if one_by_one else jnp.stack([of_tap(j) for j in range(width)])
    return _depthwise(gradient, kernel[::-1], segments, width - 1 - first), of_kernel, None


_depthwise.defvjp(_forward, _backward)


class _Convolution(nn.Module):
    """What the layers below share: their fields, and decoding with a rolling window of inputs.

    features: F.
    width: K.
    causal: as in `depthwise`; needed for decoding.
    axes: logical names of C and F.
    dtype: of the computation.
    param_dtype: of the parameters.
    """

    features: int
    width: int
    causal: bool = False
    axes: tuple[str, str] = ("embed", "mlp")
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def linear(self, axes: tuple[str | None, str]) -> Linear:
        return Linear(self.features, axes, dtype=self.dtype, param_dtype=self.param_dtype)

    def start(self, rows: int, in_features: int) -> None:
        """Makes the window of each row, "cache" window [B, K - 1, C]: nothing was read yet."""
        if not self.causal:
            raise ValueError("only a causal convolution decodes position by position")
        if self.width > 1:
            self.put_variable("cache", "window", jnp.zeros((rows, self.width - 1, in_features), self.dtype))

    def start_prompt(self, x: jax.Array, segments: jax.Array) -> jax.Array:
        """`__call__` of prompts x [B, P, C], segments [B, P] 1 where a row has a token; also makes the window.

        The window holds the inputs before the row's last token, which the first step reads again; zeros before its first.
        """
        self.start(x.shape[0], x.shape[2])
        if self.width > 1:
            before = jnp.sum(segments > 0, axis=1, keepdims=True) - 1  # [B, 1]
            read = before + jnp.arange(1 - self.width, 0)  # [B, K - 1]
            window = jnp.where((read >= 0)[..., None], gather(x, jnp.maximum(read, 0)), 0)
            self.put_variable("cache", "window", window.astype(self.dtype))
        return self(x, segments)

    def step(self, x: jax.Array, index: jax.Array | None = None) -> jax.Array:
        """The next position x [B, 1, C] of rows of one example each → [B, 1, F].

        index: the position, which attention's `step` needs and this one does not.
        """
        return self.last(self.roll(x))

    def roll(self, x: jax.Array) -> jax.Array:
        """Moves the window on by x [B, 1, C], and returns what the kernel reads now: [B, K, C]."""
        if self.width == 1:
            return x
        window = self.get_variable("cache", "window")
        if window is None:
            raise ValueError("step() without a window: call start() first")
        x = jnp.concatenate([window, x.astype(window.dtype)], axis=1)  # [B, K, C]
        self.put_variable("cache", "window", x[:, 1:])
        return x

    def last(self, x: jax.Array) -> jax.Array:
        """The output at the last of the positions x [B, n, C], of which it reads K: [B, 1, F]. n is K or more."""
        raise NotImplementedError


class SeparableConv(_Convolution):
    """A depthwise convolution, then a linear map of the channels (Chollet 2017; So, Liang, Le 2019).

    Parameters: taps kernel [K, C], and of the map kernel [C, F] and bias [F].
    """

    def setup(self):
        self.taps = _Taps((None, self.axes[0]), self.param_dtype)
        self.pointwise = self.linear(self.axes)

    def __call__(self, x: jax.Array, segments: jax.Array | None = None) -> jax.Array:
        """x [B, T, C], segments [B, T] or None → [B, T, F]."""
        kernel = self.taps((self.width, x.shape[-1]))  # [K, C]
        return self.pointwise(depthwise(x.astype(self.dtype), kernel, segments, causal=self.causal))

    def last(self, x: jax.Array) -> jax.Array:
        return self.pointwise(_last(x.astype(self.dtype), self.taps((self.width, x.shape[-1]))))


class Conv(_Convolution):
    """A full convolution as one product of matrices: what all taps read stands side by side, [B, T, K · C].

    Parameters: kernel [K · C, F], rows by tap, then by channel, and bias [F]. Width 1 is a linear map.
    """

    def setup(self):
        self.product = self.linear(self.axes)

    def __call__(self, x: jax.Array, segments: jax.Array | None = None) -> jax.Array:
        """x [B, T, C], segments [B, T] or None → [B, T, F]."""
        if self.width > 1:
            x = jnp.concatenate(shifted(x, self.width, segments, causal=self.causal), axis=-1)  # [B, T, K · C]
        return self.product(x)

    def last(self, x: jax.Array) -> jax.Array:
        return self.product(x[:, -self.width :].reshape(x.shape[0], 1, -1))


class LightweightConv(_Convolution):
    """A depthwise convolution whose taps are a softmax, shared by channels (Wu et al. 2019, section 3.1).

    As in the search space of So, Liang, Le 2019: channels c and c + C // reduction share taps; the C % reduction channels
    that are left over at the end have their own; F is a multiple m of C, output c · m + i being the i-th of channel c.

    Parameters: taps kernel [K, C // reduction + C % reduction, m], before the softmax over K. No bias.

    reduction: how many channels share taps.

    Raises:
      UserError: F is no multiple of C.
    """

    reduction: int = 1

    def setup(self):
        self.taps = _Taps((None, None, None), self.param_dtype)

    def __call__(self, x: jax.Array, segments: jax.Array | None = None) -> jax.Array:
        """x [B, T, C], segments [B, T] or None → [B, T, F]."""
        x = x.astype(self.dtype)
        return depthwise(*self._channels(x), segments, causal=self.causal)

    def last(self, x: jax.Array) -> jax.Array:
        return _last(*self._channels(x.astype(self.dtype)))

    def _channels(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x [B, T, C] with each channel m times in a row, and the taps of all F channels, [K, F]."""
        channels = x.shape[-1]
        copies, rest = divmod(self.features, channels)
        if rest or not copies:
            raise UserError(f"a lightweight convolution of {channels} channels gives a multiple of them, not {self.features}")
        shared, own = divmod(channels, self.reduction)
        kernel = self.taps((self.width, shared + own, copies))
        kernel = jnp.concatenate([kernel[:, :shared]] * self.reduction + [kernel[:, shared:]], axis=1)  # [K, C, m]
        kernel = jax.nn.softmax(kernel.astype(jnp.float32), axis=0)
        return jnp.repeat(x, copies, axis=-1), kernel.reshape(self.width, self.features)


class _Taps(nn.Module):
    """A parameter "kernel" of K taps a channel, drawn so that a channel keeps its variance: uniform, of variance 1 / K."""

    axes: tuple[str | None, ...]
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, shape: tuple[int, ...]) -> jax.Array:
        limit = (3 / shape[0]) ** 0.5

        def init(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -limit, limit)

        return self.param("kernel", nn.with_logical_partitioning(init, self.axes), shape, self.param_dtype)


def _last(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A causal `depthwise` at the last of the positions x [B, n, C] only, n being K or more: [B, 1, C]."""
    read = x[:, -kernel.shape[0] :].astype(jnp.float32)  # [B, K, C]
    return jnp.sum(read * kernel.astype(jnp.float32), axis=1, keepdims=True).astype(x.dtype)
