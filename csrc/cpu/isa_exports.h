// Included last by every ISA file: instantiates the kernels and fills the table.
#pragma once

#include "../cells/all_cells.h"
#include "backward.h"
#include "dual.h"
#include "forward.h"
#include "kernels.h"
#include "pack.h"
#include "step.h"
#include "sums.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

template <class Storage>
CellKernels<Storage> find_kernels(std::string_view name) {
  CellKernels<Storage> kernels{};
  with_cell(name, [&](auto cell) {
    using Cell = decltype(cell);
    constexpr int panel = Backward<Cell, Storage>::panel_width;
    kernels.unit_panel = lanes_of<compute_t<Storage>>;
    kernels.output_panel = panel;
    kernels.pack_gates = pack_gates<Cell::gates, Storage>;
    kernels.pack_columns = pack_columns<panel, Storage>;
    kernels.pack_rows = pack_rows<panel, Storage>;
    kernels.forward = [](const ForwardArgs<Storage>& args, const Share& share, Barrier& barrier) {
      Forward<Cell, Storage>(args, share, barrier).run();
    };
    kernels.backward = [](const BackwardArgs<Storage>& args, const Share& share, Barrier& barrier) {
      Backward<Cell, Storage>(args, share, barrier).run();
    };
    kernels.step = [](const StepArgs<Storage>& args, std::int64_t unit_begin, std::int64_t unit_end) {
      Step<Cell, Storage>(args).run(unit_begin, unit_end);
    };
    using Compute = compute_t<Storage>;
    kernels.dual_forward = DualStep<Cell, Compute>::forward;
    kernels.dual_backward = DualStep<Cell, Compute>::backward;
    kernels.multiply_rows = multiply_rows<Compute>;
    kernels.outer_sum_scratch = OuterSum<Compute>::scratch_size;
    kernels.outer_sum = [](const OuterSumArgs<Compute>& args, Compute* scratch, std::int64_t begin, std::int64_t end) {
      OuterSum<Compute>(args, scratch).run(begin, end);
    };
    kernels.sum_columns = sum_columns<Compute>;
  });
  return kernels;
}

const IsaKernels isa = {
    isa_name, is_available, {find_kernels<float>, find_kernels<double>, find_kernels<BFloat16>, find_kernels<Float16>}};

}  // namespace lstm_fused::LSTM_FUSED_TARGET
