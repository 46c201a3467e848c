"""The LSTM and the GRU in plain NumPy: one row, one time step, one equation at a time.

Written from the equations of PyTorch's documentation (gate order ``i f g o`` and ``r z n``, LSTMP projection) and
from nothing else: it shares no line with ``csrc/cells/``, so that an error there cannot hide here. A ragged batch
needs no masks: every row runs over its own length, the reverse direction from the row's last valid step down.

The arithmetic is a parameter. ``FLOAT64`` judges float32 and the 16-bit types, ``EXTENDED`` (x87, 64 bits of
mantissa) judges float64, and ``multiprecision()`` (mpmath, 50 digits) judges ``EXTENDED`` itself on tiny cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Arithmetic:
    """The number type the oracle computes in: how to enter it, and its two transcendental functions."""

    name: str
    enter: Callable[[Array], Array]
    exp: Callable[[Array], Array]
    tanh: Callable[[Array], Array]

    def sigmoid(self, a: Array) -> Array:
        """1 / (1 + e^-a), written so that e^x is never taken of a large positive x."""
        small = self.exp(-abs(a))
        return np.where(a >= 0, 1 / (1 + small), small / (1 + small))

    def zeros(self, *shape: int) -> Array:
        return self.enter(np.zeros(shape))


FLOAT64 = Arithmetic("float64", lambda a: a.astype(np.float64), np.exp, np.tanh)
EXTENDED = Arithmetic("extended", lambda a: a.astype(np.longdouble), np.exp, np.tanh)


def multiprecision(digits: int = 50) -> Arithmetic:
    """Arithmetic of ``digits`` decimal digits on object arrays: slow, for cases of a few dozen numbers."""
    context = mpmath.mp.clone()
    context.dps = digits
    ufunc = {name: np.frompyfunc(getattr(context, name), 1, 1) for name in ("mpf", "exp", "tanh")}
    return Arithmetic("mpmath", lambda a: ufunc["mpf"](a.astype(np.float64)), ufunc["exp"], ufunc["tanh"])


@dataclass
class Weights:
    """The weights of one layer in one direction, or their gradients. Biases of a layer without any are zero."""

    w_ih: Array  # [G*H, I]
    w_hh: Array  # [G*H, P]
    b_ih: Array  # [G*H]
    b_hh: Array  # [G*H]
    w_hr: Array | None = None  # [P, H], only with projection

    def zeros_like(self) -> Weights:
        w_hr = None if self.w_hr is None else self.w_hr * 0
        return Weights(self.w_ih * 0, self.w_hh * 0, self.b_ih * 0, self.b_hh * 0, w_hr)


@dataclass
class LSTMStep:
    """What one LSTM step of one row leaves for its backward."""

    x: Array  # [I]
    h0: Array  # [P]
    c0: Array  # [H]
    i: Array  # [H]
    f: Array  # [H]
    g: Array  # [H]
    o: Array  # [H]
    c1: Array  # [H]
    tanh_c1: Array  # [H]
    m: Array  # [H], the output before projection
    h1: Array  # [P]


def within(a: Array, limit: float | None) -> Array:
    """``a``, each element no further from zero than ``limit``."""
    return a if limit is None else np.maximum(np.minimum(a, limit), -limit)


def lstm_step(num: Arithmetic, w: Weights, x: Array, h0: Array, c0: Array, cell_clip: float | None = None) -> LSTMStep:
    """h1, c1 from x, h0, c0."""
    a_i, a_f, a_g, a_o = np.split(w.w_ih @ x + w.b_ih + w.w_hh @ h0 + w.b_hh, 4)
    i = num.sigmoid(a_i)
    f = num.sigmoid(a_f)
    g = num.tanh(a_g)
    o = num.sigmoid(a_o)
    c1 = within(f * c0 + i * g, cell_clip)
    tanh_c1 = num.tanh(c1)
    m = o * tanh_c1
    h1 = m if w.w_hr is None else w.w_hr @ m
    return LSTMStep(x, h0, c0, i, f, g, o, c1, tanh_c1, m, h1)


def lstm_step_backward(
    net: Network, w: Weights, dw: Weights, s: LSTMStep, dh1: Array, dc1: Array
) -> tuple[Array, Array, Array]:
    """dx, dh0, dc0 from dh1, dc1; the weights' gradients are added to ``dw``."""
    if w.w_hr is None or dw.w_hr is None:
        dm = dh1
    else:
        dm = w.w_hr.T @ dh1
        dw.w_hr += np.outer(dh1, s.m)
    d_o = dm * s.tanh_c1
    dc = dc1 + dm * s.o * (1 - s.tanh_c1 * s.tanh_c1)
    if net.cell_clip is not None:
        dc = dc * (abs(s.f * s.c0 + s.i * s.g) < net.cell_clip)
    d_i = dc * s.g
    d_f = dc * s.c0
    d_g = dc * s.i
    dc0 = dc * s.f
    da = np.concatenate(
        [
            d_i * s.i * (1 - s.i),
            d_f * s.f * (1 - s.f),
            d_g * (1 - s.g * s.g),
            d_o * s.o * (1 - s.o),
        ]
    )
    da = within(da, net.grad_clip)
    dw.w_ih += np.outer(da, s.x)
    dw.w_hh += np.outer(da, s.h0)
    dw.b_ih += da
    dw.b_hh += da
    return w.w_ih.T @ da, w.w_hh.T @ da, dc0


@dataclass
class GRUStep:
    """What one GRU step of one row leaves for its backward."""

    x: Array  # [I]
    h0: Array  # [H]
    r: Array  # [H]
    z: Array  # [H]
    n: Array  # [H]
    q: Array  # [H], the candidate's recurrent part U_n h0 + b_hn, before the reset gate
    h1: Array  # [H]


def gru_step(num: Arithmetic, w: Weights, x: Array, h0: Array) -> GRUStep:
    """h1 from x, h0, in PyTorch's form: the reset gate acts on U_n h0 + b_hn."""
    x_r, x_z, x_n = np.split(w.w_ih @ x + w.b_ih, 3)
    u_r, u_z, q = np.split(w.w_hh @ h0 + w.b_hh, 3)
    r = num.sigmoid(x_r + u_r)
    z = num.sigmoid(x_z + u_z)
    n = num.tanh(x_n + r * q)
    h1 = (1 - z) * n + z * h0
    return GRUStep(x, h0, r, z, n, q, h1)


def gru_step_backward(net: Network, w: Weights, dw: Weights, s: GRUStep, dh1: Array) -> tuple[Array, Array]:
    """dx, dh0 from dh1; the weights' gradients are added to ``dw``."""
    d_z = dh1 * s.h0 - dh1 * s.n
    da_n = dh1 * (1 - s.z) * (1 - s.n * s.n)
    da_r = da_n * s.q * s.r * (1 - s.r)
    da_z = d_z * s.z * (1 - s.z)
    d_ih = within(np.concatenate([da_r, da_z, da_n]), net.grad_clip)
    d_hh = within(np.concatenate([da_r, da_z, da_n * s.r]), net.grad_clip)
    dw.w_ih += np.outer(d_ih, s.x)
    dw.w_hh += np.outer(d_hh, s.h0)
    dw.b_ih += d_ih
    dw.b_hh += d_hh
    return w.w_ih.T @ d_ih, w.w_hh.T @ d_hh + dh1 * s.z


@dataclass
class Network:
    """A stack of layers, one or two directions each, of one cell."""

    cell: str  # "lstm" or "gru"
    weights: Sequence[Sequence[Weights]]  # [layers][directions]
    cell_clip: float | None = None  # c_t is kept within it; where it was outside, no gradient goes through
    grad_clip: float | None = None  # gradients before the activations are kept within it

    @property
    def directions(self) -> int:
        return len(self.weights[0])

    def state_size(self) -> int:
        return int(self.weights[0][0].w_hh.shape[1])

    def cell_size(self) -> int:
        w = self.weights[0][0]
        return int(w.w_hh.shape[1] if w.w_hr is None else w.w_hr.shape[1])


@dataclass
class Run:
    """Results of a forward, and every step of it: ``steps[layer][direction][row]`` in the order they ran."""

    output: Array  # [T, B, D*P], zero beyond a row's length
    h_n: Array  # [L*D, B, P]
    c_n: Array  # [L*D, B, H], zero for a GRU
    lengths: Sequence[int]  # [B]
    steps: list[list[list[list[Any]]]] = field(default_factory=list)


@dataclass
class Gradients:
    x: Array  # [T, B, I]
    h0: Array  # [L*D, B, P]
    c0: Array  # [L*D, B, H], zero for a GRU
    weights: list[list[Weights]]  # [layers][directions]


def order(length: int, direction: int) -> list[int]:
    """The time steps of a row in the order in which a direction visits them."""
    return list(range(length)) if direction == 0 else list(reversed(range(length)))


def forward(num: Arithmetic, net: Network, x: Array, h0: Array, c0: Array, lengths: Sequence[int]) -> Run:
    """All layers over x [T, B, I] from h0 [L*D, B, P], c0 [L*D, B, H] (ignored by a GRU)."""
    T, B, _ = x.shape
    D, P = net.directions, net.state_size()
    run = Run(x, h0.copy(), c0.copy(), lengths)
    for layer, layer_weights in enumerate(net.weights):
        output = num.zeros(T, B, D * P)
        run.steps.append([])
        for d, w in enumerate(layer_weights):
            run.steps[layer].append([])
            k = layer * D + d
            for b in range(B):
                h, c, steps = h0[k, b], c0[k, b], []
                for t in order(lengths[b], d):
                    if net.cell == "lstm":
                        step: Any = lstm_step(num, w, run.output[t, b], h, c, net.cell_clip)
                        c = step.c1
                    else:
                        step = gru_step(num, w, run.output[t, b], h)
                    h = step.h1
                    output[t, b, d * P : (d + 1) * P] = h
                    steps.append(step)
                run.h_n[k, b], run.c_n[k, b] = h, c
                run.steps[layer][d].append(steps)
        run.output = output
    return run


def cells(num: Arithmetic, net: Network, run: Run, layer: int) -> Array:
    """c_t of a layer [T, B, D*H], zero beyond a row's length."""
    T, B, _ = run.output.shape
    result = num.zeros(T, B, net.directions, net.cell_size())
    for d, rows in enumerate(run.steps[layer]):
        for b, steps in enumerate(rows):
            for t, step in zip(order(run.lengths[b], d), steps, strict=True):
                result[t, b, d] = step.c1
    return result.reshape(T, B, -1)


def gates(num: Arithmetic, net: Network, run: Run, layer: int) -> Array:
    """The activated gates of a layer [T, B, D, G, H], zero beyond a row's length."""
    T, B, _ = run.output.shape
    names = ("i", "f", "g", "o") if net.cell == "lstm" else ("r", "z", "n")
    result = num.zeros(T, B, net.directions, len(names), net.cell_size())
    for d, rows in enumerate(run.steps[layer]):
        for b, steps in enumerate(rows):
            for t, step in zip(order(run.lengths[b], d), steps, strict=True):
                for k, name in enumerate(names):
                    result[t, b, d, k] = getattr(step, name)
    return result


def backward(
    num: Arithmetic,
    net: Network,
    run: Run,
    d_output: Array,
    d_h_n: Array,
    d_c_n: Array,
    d_cells: Sequence[Array] | None = None,
) -> Gradients:
    """Gradients of sum(output * d_output) + sum(h_n * d_h_n) + sum(c_n * d_c_n) + sum over layers(cells * d_cells)."""
    T, B, _ = d_output.shape
    D, P = net.directions, net.state_size()
    grads = Gradients(d_output, d_h_n * 0, d_c_n * 0, [[w.zeros_like() for w in ws] for ws in net.weights])
    for layer in reversed(range(len(net.weights))):
        d_input = num.zeros(T, B, net.weights[layer][0].w_ih.shape[1])
        for d, w in enumerate(net.weights[layer]):
            dw, k = grads.weights[layer][d], layer * D + d
            for b in range(B):
                dh, dc = d_h_n[k, b], d_c_n[k, b]
                visited = zip(order(run.lengths[b], d), run.steps[layer][d][b], strict=True)
                for t, step in reversed(list(visited)):
                    dh = dh + grads.x[t, b, d * P : (d + 1) * P]
                    if net.cell == "lstm":
                        H = len(dc)
                        dc = dc if d_cells is None else dc + d_cells[layer][t, b, d * H : (d + 1) * H]
                        dx, dh, dc = lstm_step_backward(net, w, dw, step, dh, dc)
                    else:
                        dx, dh = gru_step_backward(net, w, dw, step, dh)
                    d_input[t, b] += dx
                grads.h0[k, b], grads.c0[k, b] = dh, dc
        grads.x = d_input
    return grads
