// Backward's products over all data rows, cut into tasks that threads take as they come. How they are cut and who takes
// which changes no result.
#pragma once

#include <algorithm>
#include <functional>

#include "layer.h"
#include "memory.h"

namespace lstm_fused {

// Some rows and columns of a matrix whose rows are `ld` apart. (Tensors could say this, too; but a layer of a few steps
// would spend more time on making them than on its kernels.)
template <class Compute>
struct MatrixPart {
  const Compute* data = nullptr;
  std::int64_t rows = 0, columns = 0, ld = 0;

  MatrixPart rows_from(std::int64_t begin, std::int64_t count) const { return {data + begin * ld, count, columns, ld}; }
  MatrixPart columns_from(std::int64_t begin, std::int64_t count) const { return {data + begin, rows, count, ld}; }
};

template <class Storage>
class LayerSums {
  using Compute = compute_t<Storage>;

 public:
  LayerSums(const CellKernels<Storage>& kernels, const at::TensorOptions& compute_options)
      : kernels(kernels), options(compute_options) {}

  // out [N, outputs] = the sum over `terms` of rows [N, K] times packed weights.
  void multiply_rows(std::int64_t N, std::vector<RowsArgs<Compute>> terms) {
    constexpr std::int64_t block = 192;  // rows: a multiple of every tile's
    const std::int64_t outputs = terms[0].outputs, panels = divide_up(outputs, kernels.output_panel);
    std::int64_t multiply_adds_of_all = 0;
    for (const RowsArgs<Compute>& term : terms) multiply_adds_of_all += N * term.K * outputs;
    // Few rows make one tile, so their panels are dealt out instead.
    const bool by_rows = N >= 2 * block;
    const std::int64_t count = by_rows ? divide_up(N, block) : std::min<std::int64_t>(panels, 8);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto part = [=](std::int64_t all, std::int64_t index) { return all * index / count; };
      const std::int64_t row_begin = by_rows ? i * block : 0, row_end = by_rows ? std::min(N, row_begin + block) : N;
      const std::int64_t panel_begin = by_rows ? 0 : part(panels, i),
                         panel_end = by_rows ? panels : part(panels, i + 1);
      add_task(multiply_adds_of_all / count, [=, multiply = kernels.multiply_rows](Compute*) {
        for (const RowsArgs<Compute>& term : terms) multiply(term, row_begin, row_end, panel_begin, panel_end);
      });
    }
  }

  // Zeros in the rows of a matrix that are not among `rows`.
  void clear_others(const std::vector<std::int64_t>& rows, const at::Tensor& matrix) {
    std::vector<bool> kept(matrix.size(0));
    for (const std::int64_t row : rows) kept[row] = true;
    const std::int64_t columns = matrix.size(1);
    add_task((matrix.size(0) - static_cast<std::int64_t>(rows.size())) * columns,
             [=, kept = std::move(kept), to = mutable_data<Compute>(matrix)](Compute*) {
               for (std::size_t row = 0; row < kept.size(); ++row)
                 if (!kept[row]) std::fill_n(to + row * columns, columns, Compute(0));
             });
  }

  // out [rows, outputs] = the sum over `terms` of left^T right; left [N, rows] and right [N, outputs]. One of
  // `alike` sums, which are tasks enough together.
  void outer_sum(std::int64_t rows, std::vector<OuterSumArgs<Compute>> terms, std::int64_t alike) {
    // Each task rearranges `right` for itself.
    constexpr std::int64_t least = 48;
    const std::int64_t most_tasks = 2 * usable_threads();
    std::int64_t multiply_adds_of_all = 0;
    for (const OuterSumArgs<Compute>& term : terms) multiply_adds_of_all += term.N * rows * term.outputs;
    const std::int64_t count = std::clamp<std::int64_t>(rows / least, 1, divide_up(most_tasks, alike));
    for (std::int64_t i = 0; i < count; ++i)
      add_task(multiply_adds_of_all / count, [=, sum = kernels.outer_sum](Compute* scratch) {
        for (const OuterSumArgs<Compute>& term : terms) sum(term, scratch, rows * i / count, rows * (i + 1) / count);
      });
  }

  // sums[j] = the sum of column j of a matrix [N, ld], for j < columns
  void sum_columns(std::int64_t N, std::int64_t columns, const Compute* matrix, std::int64_t ld, Compute* sums) {
    constexpr std::int64_t together = 256;  // columns: some cache lines of every row
    for (std::int64_t begin = 0; begin < columns; begin += together)
      add_task(8 * N * std::min(columns - begin, together), [=, sum = kernels.sum_columns](Compute*) {
        sum(matrix, N, ld, begin, std::min(columns, begin + together), sums);
      });
  }

  void run() {
    constexpr std::int64_t worthwhile = 200'000;  // multiply-adds: some microseconds for each thread
    const double all_ns = product_ns(static_cast<double>(multiply_adds), kernels.unit_panel);
    const std::int64_t most = contended() && all_ns < static_cast<double>(time_slice_ns) ? 1 : usable_threads();
    std::ranges::stable_sort(tasks, std::greater{}, &Task::multiply_adds);  // the last ones to end are short
    const int threads = static_cast<int>(std::clamp<std::int64_t>(multiply_adds / worthwhile, 1, most));
    const at::Tensor scratch = allocate({threads, kernels.outer_sum_scratch}, options);
    Compute* const base = mutable_data<Compute>(scratch);
    std::atomic<std::size_t> next{0};
    run_team(threads, all_ns, [&](int member, int) {
      for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < tasks.size();)
        tasks[i].run(base + member * kernels.outer_sum_scratch);
    });
  }

 private:
  struct Task {
    std::int64_t multiply_adds;
    std::function<void(Compute* scratch)> run;
  };

  void add_task(std::int64_t task_multiply_adds, std::function<void(Compute* scratch)> run) {
    multiply_adds += task_multiply_adds;
    tasks.push_back({task_multiply_adds, std::move(run)});
  }

  const CellKernels<Storage>& kernels;
  const at::TensorOptions options;
  std::vector<Task> tasks;
  std::int64_t multiply_adds = 0;
};

}  // namespace lstm_fused
