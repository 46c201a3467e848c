"""Prints a hash of the bits of results and gradients of some layers; run by ``test_cuda_emulated``."""

from __future__ import annotations

import hashlib
import itertools

import raw
import torch
from cases import Case

hashed = hashlib.sha256()
for cell, precision in itertools.product(("lstm", "gru"), ("ieee", "tf32")):
    torch.backends.cudnn.rnn.fp32_precision = precision
    for case in (
        Case(cell, T=5, B=17, I=3, H=33),
        Case(cell, T=5, B=2, I=3, H=100, bidirectional=True),
        Case(cell, T=4, B=5, I=3, H=7, packed=True, bidirectional=True, dtype=torch.bfloat16),
        Case(cell, T=3, B=19, I=3, H=96, dtype=torch.float16),
        *([Case(cell, T=2, B=19, I=3, H=524)] if precision == "tf32" else []),  # longer rows of U than others
    ):
        a = raw.arguments(case)
        outputs = a.call()
        grads = torch.autograd.grad(outputs, a.tensors, [o.detach().cos() for o in outputs])
        if not case.packed:
            x, h = (
                a.input.detach().requires_grad_(),
                torch.full((case.D, case.H), 0.5, dtype=case.dtype).requires_grad_(),
            )
            resets = torch.arange(case.T * case.B).view(case.T, case.B) % 3 == 0
            state = (h, h) if cell == "lstm" else (h, None)
            call = (cell, x, [], a.weights, None, case.bidirectional, None, None, False, resets, *state)
            cut = torch.ops.lstm_fused.layer(*call)
            grads += torch.autograd.grad(cut, [x, h, *a.weights], [o.detach().cos() for o in cut])
            outputs += cut
        for result in (*outputs, *grads):
            assert result.isfinite().all(), case.id
            hashed.update(result.detach().contiguous().view(torch.uint8).numpy().tobytes())
print(hashed.hexdigest())
