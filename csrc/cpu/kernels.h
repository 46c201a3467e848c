// The kernels of one instruction set, by cell and storage type: function pointers that cross from host code
// into code compiled for that set.
#pragma once

#include <cstdint>
#include <string_view>
#include <tuple>

#include "../recurrence.h"
#include "share.h"
#include "team.h"

namespace lstm_fused {

template <class Storage>
struct CellKernels {
  using Compute = compute_t<Storage>;
  int unit_panel;    // units per panel of U packed for forward
  int output_panel;  // outputs per panel of every other packed matrix
  // One panel packed of U [G*H, P], or of W [outputs, K] used along its columns.
  void (*pack_gates)(const Storage* U, std::int64_t H, std::int64_t P, std::int64_t panel, Compute* packed);
  void (*pack_columns)(const Storage* W, std::int64_t outputs, std::int64_t K, std::int64_t panel, Compute* packed);
  // A range of panels of W [K, outputs] used along its rows.
  void (*pack_rows)(const Storage* W, std::int64_t outputs, std::int64_t K, std::int64_t panel_begin,
                    std::int64_t panel_end, Compute* packed);
  void (*forward)(const ForwardArgs<Storage>&, const Share&, Barrier&);
  void (*backward)(const BackwardArgs<Storage>&, const Share&, Barrier&);
  void (*step)(const StepArgs<Storage>&, std::int64_t unit_begin, std::int64_t unit_end);
  void (*dual_forward)(const DualForwardArgs<Compute>&, std::int64_t row_begin, std::int64_t row_end);
  void (*dual_backward)(const DualBackwardArgs<Compute>&, std::int64_t row_begin, std::int64_t row_end);
  // Rows [row_begin, row_end) and a range of panels of a product with a matrix packed by rows.
  void (*multiply_rows)(const RowsArgs<Compute>&, std::int64_t row_begin, std::int64_t row_end,
                        std::int64_t panel_begin, std::int64_t panel_end);
  // Rows [begin, end) of a sum over data rows; scratch: [outer_sum_scratch], the caller's own.
  std::int64_t outer_sum_scratch;
  void (*outer_sum)(const OuterSumArgs<Compute>&, Compute* scratch, std::int64_t begin, std::int64_t end);
  // sums[j] of column j of a matrix [rows, ld], for j in [begin, end)
  void (*sum_columns)(const Compute* matrix, std::int64_t rows, std::int64_t ld, std::int64_t begin, std::int64_t end,
                      Compute* sums);
};

template <class Storage>
using FindKernels = CellKernels<Storage> (*)(std::string_view cell);

struct IsaKernels {
  std::string_view name;
  bool (*available)();
  std::tuple<FindKernels<float>, FindKernels<double>, FindKernels<BFloat16>, FindKernels<Float16>> find;

  template <class Storage>
  CellKernels<Storage> kernels(std::string_view cell) const {
    return std::get<FindKernels<Storage>>(find)(cell);
  }
};

namespace scalar { extern const IsaKernels isa; }
#if defined(__x86_64__)
namespace avx2 { extern const IsaKernels isa; }
namespace avx512 { extern const IsaKernels isa; }
#endif

}  // namespace lstm_fused
