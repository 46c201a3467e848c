"""The benchmark behind `lstm-fused bench`: cases, floor, side-by-side timing, report.

cases.py      shapes and named grids            machine.py   what is said about the machine
floor.py      measured ceilings, floor formula  measure.py   interleaved timing, statistics.py under it
workload.py   what a row runs on both layers    peers.py     ONNX Runtime, OpenVINO, torch.compile
contended.py  rows beside a busy process        run.py       the run
card.py       a CUDA device, cuDNN's paths      cuda.py      rows on it
report.py     rows, JSON, CSV                   targets.py, table.py, card_table.py, plot.py   what is shown
"""
