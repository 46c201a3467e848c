// Included last by every ISA file: instantiates the kernels and fills the table.
#pragma once

#include "../cells/all_cells.h"
#include "backward.h"
#include "forward.h"
#include "kernels.h"
#include "pack.h"
#include "step.h"
#include "sum_columns.h"

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
    kernels.forward = [](const ForwardArgs<Storage>& args, const Share& share, Barrier& barrier,
                         std::int64_t step_begin, std::int64_t step_end) {
      Forward<Cell, Storage>(args, share, barrier).run(step_begin, step_end);
    };
    kernels.backward = [](const BackwardArgs<Storage>& args, const Share& share, Barrier& barrier) {
      Backward<Cell, Storage>(args, share, barrier).run();
    };
    kernels.step = [](const StepArgs<Storage>& args, std::int64_t unit_begin, std::int64_t unit_end) {
      Step<Cell, Storage>(args).run(unit_begin, unit_end);
    };
    kernels.sum_columns = sum_columns<compute_t<Storage>>;
  });
  return kernels;
}

const IsaKernels isa = {
    isa_name, is_available, {find_kernels<float>, find_kernels<double>, find_kernels<BFloat16>, find_kernels<Float16>}};

}  // namespace lstm_fused::LSTM_FUSED_TARGET
