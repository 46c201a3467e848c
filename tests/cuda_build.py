"""What can be told of a CUDA build of the package without a GPU. Run by ``make cuda-build``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import lstm_fused
from lstm_fused import runtime

info = runtime.info()
assert info["cuda_compiled"] and not info["why_no_cuda"], info
for op in ("layer", "forward", "backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lstm_fused::{op}", "CUDA"), op
with FakeTensorMode(), torch.device("cuda"):
    for kind in ("LSTM", "GRU"):
        output, _ = getattr(lstm_fused, kind)(4, 8, bidirectional=True)(torch.randn(5, 3, 4))
        assert output.device.type == "cuda" and output.shape == (5, 3, 16), output
for kind in ("LSTM", "GRU"):
    ours, theirs = getattr(lstm_fused, kind)(4, 8), getattr(nn, kind)(4, 8)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 3, 4)
    assert torch.allclose(ours(x)[0], theirs(x)[0], atol=1e-6), kind
(library,) = Path(lstm_fused.__file__).parent.glob("_C*.so")
size = library.stat().st_size / 1e6
print(f"torch {torch.__version__}, CUDA {torch.version.cuda}: operators registered for CUDA; library {size:.1f} MB")
assert size < 20, size
