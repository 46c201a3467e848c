"""Drop-in modules: constructor, parameters, initial values, ``state_dict`` and results of torch.nn's.

They build on ``torch.nn.RNNBase`` and ``RNNCellBase``, which lay out and initialise the parameters, but not
on ``torch.nn.LSTM`` itself: torch.compile breaks its graph at every instance of that, ``isinstance``
included.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.nn import Module, RNNBase
from torch.nn.modules.rnn import RNNCellBase
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.rnn import PackedSequence
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from . import _stack

__all__ = ["GRU", "LSTM", "GRUCell", "LSTMCell"]


class _Recurrent(RNNBase):
    """What LSTM and GRU share: parameters are looked up by name at each call, nothing is kept beside them.

    RNNBase keeps a second list of its weights for cuDNN, which parametrisations, ``functional_call`` and the
    like must then be followed with. Here that list is a view, and the upkeep does nothing.
    """

    # Here and not only in the constructor: a module that was torch.nn's has them too, and they can be set at any time.
    cell_clip: float | None = None
    grad_clip: float | None = None
    recompute: bool = False

    def _set_options(self, recompute: bool, **clips: float | None) -> None:
        for name, clip in clips.items():
            if clip is not None and not clip > 0:
                raise ValueError(f"{name}: expected a number above 0, or None, got {clip}")
            if clip is not None:
                setattr(self, name, clip)
        if recompute:
            self.recompute = True

    def extra_repr(self) -> str:
        """Those of the constructor's arguments that are not the default."""
        own = [f"{n}={getattr(self, n)}" for n in ("cell_clip", "grad_clip", "recompute") if getattr(self, n)]
        return ", ".join([super().extra_repr(), *own])

    def _options(self, return_cells: bool = False, return_gates: bool = False) -> _stack.Options:
        layer = _stack.LayerOptions(self.bidirectional, self.cell_clip, self.grad_clip, self.recompute)
        dropout = self.dropout if self.training else 0.0
        return _stack.Options(self.num_layers, dropout, layer, None, return_cells, return_gates)

    def _weights(self) -> list[Tensor]:
        parameters = self._parameters
        try:
            return [parameters[name] for name in self._flat_weights_names]  # type: ignore[misc]
        except KeyError:  # a parametrisation, weight_norm, pruning: what the name stands for is computed
            return [getattr(self, name) for name in self._flat_weights_names]

    def _current_weights(self) -> list[Tensor]:
        """Those of a call that would come now: hooks that run before ``forward`` make some of them."""
        for hook in self._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                setattr(self, hook.name, hook.compute_weight(self, do_power_iteration=False))
            elif isinstance(hook, (WeightNorm, BasePruningMethod)):
                hook(self, ())
        return self._weights()

    def step(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        """One time step of a stream, or of a policy in its environment: what forward gives for a sequence of one.

        Args:
            input: [B, I], or unbatched [I], whatever ``batch_first``.
            hx: the state that the last step returned; None is zeros.

        Returns:
            (output [B, P], unbatched [P], the next hx).

        Raises:
            ValueError: the layer is bidirectional: its reverse direction begins at the end.
        """
        if self.bidirectional:
            raise ValueError(
                "step: expected one direction, got a bidirectional layer: its reverse one begins at the end"
            )
        output, hx = _stack.run(self.mode.lower(), input.unsqueeze(0), hx, self._current_weights(), self._options())
        return output.squeeze(0), hx

    @property
    def _flat_weights(self) -> list[Tensor | None]:  # type: ignore[override]
        return [getattr(self, name, None) for name in self._flat_weights_names]

    def flatten_parameters(self) -> None:
        """Does nothing: the kernels read each weight where it lies."""

    def _init_flat_weights(self) -> None: ...

    def _update_flat_weights(self) -> None: ...

    __setattr__ = Module.__setattr__  # type: ignore[assignment]
    __getstate__ = Module.__getstate__
    __setstate__ = Module.__setstate__
    _replicate_for_data_parallel = Module._replicate_for_data_parallel


class LSTM(_Recurrent):
    """Drop-in for ``torch.nn.LSTM``: same arguments, parameters and results, computed by fused kernels.

        i_t = sigmoid(W_i x_t + U_i h_{t-1} + b_i)        f_t = sigmoid(W_f x_t + U_f h_{t-1} + b_f)
        g_t = tanh   (W_g x_t + U_g h_{t-1} + b_g)        o_t = sigmoid(W_o x_t + U_o h_{t-1} + b_o)
        c_t = f_t * c_{t-1} + i_t * g_t                   h_t = o_t * tanh(c_t)

    Args:
        input_size: features of a time step, I.
        hidden_size: hidden units, H.
        num_layers: L layers, each the input of the next.
        bias: False leaves b_ih and b_hh out.
        batch_first: input and output are [B, T, *] instead of [T, B, *]; states are not affected.
        dropout: probability with which elements of every layer's output but the last's are zeroed in
            training.
        bidirectional: D = 2 directions, outputs side by side.
        proj_size: P > 0 projects h_t to that many features (LSTMP); 0 does not, P = H.
        device, dtype: of the parameters; float32, float64, bfloat16 or float16.
        cell_clip: keeps every c_t in [-cell_clip, cell_clip]; None does not.
        grad_clip: in backward, keeps the gradients at the gates, before their activations, in [-grad_clip, grad_clip].
        recompute: True keeps only h_t and c_t for backward, which computes the gates again: less memory, more time.

    These last three are keywords, and attributes that may be set at any time; ``functional.lstm`` defines them.

    Inputs: ``input`` [T, B, I] (unbatched [T, I]) or a PackedSequence; optionally ``hx``, the pair h_0 [L*D,
    B, P] and c_0 [L*D, B, H] (unbatched without B), zeros by default. By keyword, for a padded batch: ``lengths``, each
    row's steps, int64 [B], unsorted; ``resets``, bool as input's first two dimensions, before which steps a row's state
    is set back; ``reset_state``, to what instead of zeros. See ``functional.lstm``.

    Outputs: ``output`` [T, B, D*P], a PackedSequence if the input was, and the pair (h_n, c_n), shaped as
    ``hx``. With ``return_cells=True``, then a list of every layer's c_t [T, B, D*H]; with ``return_gates=True``, then a
    list of every layer's activated gates [T, B, D, 4, H], without gradients.

    Parameters, for layer k, and with the suffix ``_reverse`` for the second direction: ``weight_ih_l{k}``
    [4*H, I or D*P], ``weight_hh_l{k}`` [4*H, P], ``bias_ih_l{k}`` and ``bias_hh_l{k}`` [4*H],
    ``weight_hr_l{k}`` [P, H]; gates in the order i f g o; initial values uniform in [-1, 1] / sqrt(H).

    Raises:
        ValueError, TypeError, RuntimeError: as ``torch.nn.LSTM`` does, naming argument, expectation and what
            came.
    """

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        cell_clip: float | None = None,
        grad_clip: float | None = None,
        recompute: bool = False,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(
        self,
        *args: Any,
        cell_clip: float | None = None,
        grad_clip: float | None = None,
        recompute: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__("LSTM", *args, **kwargs)
        self._set_options(recompute, cell_clip=cell_clip, grad_clip=grad_clip)

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_state: tuple[Tensor, Tensor] | None = None,
        return_cells: Literal[False] = False,
        return_gates: Literal[False] = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: Any,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_state: tuple[Tensor, Tensor] | None = None,
        return_cells: bool = False,
        return_gates: bool = False,
    ) -> tuple[Any, ...]: ...

    def forward(
        self,
        input: Any,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_state: tuple[Tensor, Tensor] | None = None,
        return_cells: bool = False,
        return_gates: bool = False,
    ) -> Any:
        """Runs the layers over ``input``; see the class for shapes."""
        options = self._options(return_cells, return_gates)
        return _stack.run("lstm", input, hx, self._weights(), options, self.batch_first, lengths, resets, reset_state)

    # RNNBase's helpers, which nn.LSTM has for pairs of states: not for forward, but for callers of nn.LSTM's.

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """Shape of c_0 for this input: [L*D, B, H]."""
        rows, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return rows, batch, self.hidden_size

    def check_forward_args(  # type: ignore[override]
        self, input: Tensor, hidden: tuple[Tensor, Tensor], batch_sizes: Tensor | None
    ) -> None:
        """Raises if ``input`` or ``hidden`` does not fit, as ``torch.nn.LSTM.check_forward_args``."""
        self.check_input(input, batch_sizes)
        h_size = self.get_expected_hidden_size(input, batch_sizes)
        c_size = self.get_expected_cell_size(input, batch_sizes)
        self.check_hidden_size(hidden[0], h_size, "Expected hidden[0] size {}, got {}")
        self.check_hidden_size(hidden[1], c_size, "Expected hidden[1] size {}, got {}")

    def permute_hidden(  # type: ignore[override]
        self, hx: tuple[Tensor, Tensor], permutation: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rows of both states in the order of ``permutation`` [B]."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)


class GRU(_Recurrent):
    """Drop-in for ``torch.nn.GRU``: same arguments, parameters and results, computed by fused kernels.

        r_t = sigmoid(W_r x_t + b_ir + U_r h_{t-1} + b_hr)
        z_t = sigmoid(W_z x_t + b_iz + U_z h_{t-1} + b_hz)
        n_t = tanh   (W_n x_t + b_in + r_t * (U_n h_{t-1} + b_hn))
        h_t = (1 - z_t) * n_t + z_t * h_{t-1}

    Arguments, inputs, outputs and errors are ``LSTM``'s, without proj_size, cell_clip and return_cells; the state is
    one tensor, h_0 [L*D, B, H]. Parameters have 3*H rows, gates in the order r z n.
    """

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        grad_clip: float | None = None,
        recompute: bool = False,
    ) -> None: ...

    @overload
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __init__(self, *args: Any, grad_clip: float | None = None, recompute: bool = False, **kwargs: Any) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__("GRU", *args, **kwargs)
        self._set_options(recompute, grad_clip=grad_clip)

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
        return_gates: Literal[False] = False,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...

    @overload
    def forward(
        self,
        input: Any,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
        return_gates: bool = False,
    ) -> tuple[Any, ...]: ...

    def forward(
        self,
        input: Any,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
        return_gates: bool = False,
    ) -> Any:
        """Runs the layers over ``input``; see ``LSTM`` for shapes."""
        options = self._options(False, return_gates)
        return _stack.run("gru", input, hx, self._weights(), options, self.batch_first, lengths, resets, reset_state)


class _Cell(RNNCellBase):
    def _weights(self) -> list[Tensor]:
        p: dict[str, Any] = self._parameters
        try:  # in full, which takes half as long as a loop over the names
            if self.bias:
                return [p["weight_ih"], p["weight_hh"], p["bias_ih"], p["bias_hh"]]
            return [p["weight_ih"], p["weight_hh"]]
        except KeyError:  # as in _Recurrent
            names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
            return [getattr(self, name) for name in (names if self.bias else names[:2])]


class LSTMCell(_Cell):
    """Drop-in for ``torch.nn.LSTMCell``: one time step of ``LSTM``.

    Args:
        input_size: I. hidden_size: H. bias: False leaves the biases out. device, dtype: of the parameters.

    Inputs: ``input`` [B, I] or [I], and optionally the pair (h_0, c_0), [B, H] or [H] each, zeros by default.

    Outputs: (h_1, c_1), shaped as the pair.

    Parameters: ``weight_ih`` [4*H, I], ``weight_hh`` [4*H, H], ``bias_ih`` and ``bias_hh`` [4*H].
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Advances the state by one step; see the class for shapes."""
        h_1, c_1 = _stack.step("lstm", input, hx, self._weights())
        return h_1, c_1


class GRUCell(_Cell):
    """Drop-in for ``torch.nn.GRUCell``: one time step of ``GRU``.

    Arguments, inputs and parameters are ``LSTMCell``'s, with 3*H rows; the state is one tensor, [B, H] or
    [H].
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Advances the state by one step; see ``LSTMCell`` for shapes."""
        return _stack.step("gru", input, hx, self._weights())[0]
