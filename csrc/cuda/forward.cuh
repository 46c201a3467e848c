// The fused forward of the steps [begin, end). A block multiplies some rows' h_{t-1} with its units' rows of U, and the
// lanes that are given a unit's sums for a row do the cell update. h_{t-1} is read from where the last step has written
// it: the output, or the block's shared memory if no other block needs it.
#pragma once

#include "../cells/all_cells.h"
#include "block.cuh"
#include "kernels.h"

namespace lstm_fused::cuda {

template <class Cell, class Storage, class Product>
class Forward {
  using Compute = compute_t<Storage>;
  using Value = typename Product::Value;
  static constexpr int G = Cell::gates, S = Cell::saved, items = Product::items;

 public:
  __device__ Forward(const ForwardArgs<Storage>& args, const Plan& plan, const Product& product)
      : a(args),
        plan(plan),
        product(product),
        steps{args.sequence},
        H(static_cast<int>(args.H)),
        input_ld(static_cast<int>(args.input_ld)),
        output_ld(static_cast<int>(args.output_ld)),
        units(units_of_block(plan, H)) {}

  __device__ void run(int begin, int end) {
    product.keep_weights();
    Meeting meeting(plan, a.arrived, a.hint, product.updating_warps());
    const Range all = rows_of_block(plan, steps.batch);
    // A lane that has the same items at every step has what they carry in registers, and reads ahead.
    const bool same = all.end - all.begin <= product.rows && units.end - units.begin <= product.pass_units();
    Given given[items];
    if (same) {
      each_item(product, units.begin, all, [&](int i, int b, int unit) { begin_item(begin, b, unit, given[i]); });
      look_ahead(begin, begin, all, given);
    }
    for (int step = begin; step < end; ++step) {
      const Range mine = rows_of_block(plan, steps.active(step));
      const bool more = step + 1 < end && mine.begin < mine.end;
      for (int row = mine.begin; row < mine.end; row += product.rows)
        run_rows(step, begin, end, {row, mine.end}, same, given, [&] {
          if (same && more) meeting.arrive();
        });
      if (more && !same) meeting.arrive();
      if (same && step + 1 < end) look_ahead(step + 1, begin, all, given);
      if (more) meeting.wait();
    }
  }

 private:
  // What a unit's update reads beside its product: elements as they are, so that nothing waits for them before they are
  // needed. What it carries: c or h. And what it leaves.
  struct Given {
    Storage x[G] = {};
    Value carried{}, s[S];
    Storage h1{};
  };

  // Of a step everything that does not depend on the last one's results.
  __device__ void look_ahead(int step, int begin, const Range& all, Given (&given)[items]) {
    const int now = steps.active(step);
    const Range rows = {all.begin, all.end < now ? all.end : now};
    each_item(product, units.begin, rows, [&](int i, int b, int unit) { load_given(step, b, unit, given[i]); });
    product.aim(source_rows(step, begin, rows));
  }

  __device__ auto source_rows(int step, int begin, const Range& rows) const {
    return [=, this](int r) {
      return rows.begin + r < rows.end ? state_before(step, begin, rows.begin + r) : SourceRow<Storage>{};
    };
  }

  // `written` is called when others may read this step's results.
  template <class Written>
  __device__ void run_rows(int step, int begin, int end, const Range& rows, bool same, Given (&given)[items],
                           const Written& written) {
    const auto row = source_rows(step, begin, rows);
    const auto shift = [](int) { return 0; };
    if (!same) product.aim(row);
    for (int first = units.begin; first < units.end; first += product.pass_units()) {
      if (!same)
        each_item(product, first, rows, [&](int i, int b, int unit) {
          begin_item(step, b, unit, given[i]);
          load_given(step, b, unit, given[i]);
        });
      Compute sums[items][weight_rows];
      product.multiply(first, row, shift, sums);
      unsigned word = 0;
      const auto put = [&](int i, int b, int unit) {
        Storage* const at = a.output + rows_before(steps.data_row(step, b), output_ld) + unit;
        publish(at, given[i].h1, word, a.hint, unit);
      };
      each_item(product, first, rows, [&](int i, int b, int unit) {
        update(step, b, unit, given[i], sums[i]);
        if constexpr (items > 1) put(i, b, unit), save(step, end, b, unit, same, given[i]);
      });
      if constexpr (items > 1) continue;  // nobody awaits them
      if (a.hint) word = word_of<Product::neighbour>(given[0].h1);
      each_item(product, first, rows, put);
      written();
      each_item(product, first, rows, [&](int i, int b, int unit) { save(step, end, b, unit, same, given[i]); });
    }
  }

  // Whether row b took part in the step before, in the direction of time.
  __device__ bool goes_on(int step, int b) const { return step > 0 && b < steps.active(step - 1); }
  // Its h [H] then, or that which it begins with; null: zero.
  __device__ const Storage* last_state(int step, int b) const {
    if (goes_on(step, b)) return a.output + rows_before(steps.data_row(step - 1, b), output_ld);
    return a.h0 ? a.h0 + rows_before(b, H) : nullptr;
  }
  __device__ SourceRow<Storage> state_before(int step, int begin, int b) const {
    if (steps.begins_anew(a.resets, step, b)) return {a.reset_h, false};
    const bool written = step > begin && goes_on(step, b);
    if (plan.kept && written) return {kept_row<Storage>(plan, step - 1, row_of_block(plan, b)), false};
    return {last_state(step, b), written};
  }

  // What an item carries into `step`.
  __device__ void begin_item(int step, int b, int unit, Given& given) const {
    if constexpr (Cell::carries_cell) {
      given.carried = a.c[rows_before(b, H) + unit];
    } else {
      const Storage* const h0 = last_state(step, b);
      given.carried = h0 ? load_fresh(h0 + unit) : Compute(0);
    }
  }
  __device__ void load_given(int step, int b, int unit, Given& given) const {
    const Storage* const x = a.input_gates + rows_before(steps.data_row(step, b), input_ld) + unit;
#pragma unroll
    for (int g = 0; g < G; ++g) given.x[g] = x[g * H];
    if (!steps.begins_anew(a.resets, step, b)) return;
    const Storage* const anew = Cell::carries_cell ? a.reset_c : a.reset_h;
    given.carried = anew ? load(anew + unit) : Compute(0);
  }

  __device__ void update(int step, int b, int unit, Given& given, const Compute (&product_of_gate)[weight_rows]) {
    Value x[G], r[G];
#pragma unroll
    for (int g = 0; g < G; ++g) {
      x[g] = to_compute(given.x[g]);
      r[g] = product_of_gate[g] + (a.bias_h ? load(a.bias_h + g * H + unit) : Compute(0));
    }
    Value c1{};
    Cell::template update<Value>(x, r, given.carried, given.carried, given.s, c1);
    if constexpr (Cell::carries_cell) c1 = host::clamp(number(c1), a.cell_clip);
    given.h1 = to_storage<Storage>(number(Cell::template output<Value>(given.s, given.carried, c1)));
    given.carried = Cell::carries_cell ? c1 : Value(to_compute(given.h1));
    if (plan.kept) kept_row<Storage>(plan, step, row_of_block(plan, b))[unit] = given.h1;
  }

  __device__ void save(int step, int end, int b, int unit, bool same, Given& given) {
    const int data = steps.data_row(step, b);
    if (a.saved) {
      Storage* const saved = a.saved + rows_before(data, S * H) + unit;
#pragma unroll
      for (int i = 0; i < S; ++i) store(saved + i * H, number(given.s[i]));
    }
    if (Cell::carries_cell && a.cells) a.cells[rows_before(data, H) + unit] = number(given.carried);
    const bool ends = steps.ends(step, b);
    if (ends) a.h_n[rows_before(b, H) + unit] = given.h1;
    if (Cell::carries_cell && (!same || ends || step + 1 == end)) a.c[rows_before(b, H) + unit] = number(given.carried);
  }

  const ForwardArgs<Storage>& a;
  const Plan& plan;
  Product product;
  const Steps steps;
  const int H, input_ld, output_ld;
  const Range units;
};

// `rows` names the product: of so many rows at once, or by tensor cores.
template <class Cell, class Storage, int rows>
__global__ void __launch_bounds__(threads, 1)
    forward_kernel(const ForwardArgs<Storage> args, const Plan plan, std::int64_t begin, std::int64_t end) {
  if constexpr (rows > 0 || has_tensor_cores) {
    const Range units = units_of_block(plan, static_cast<int>(args.H));
    const Weights<Storage> weights(args.recurrent, args.H, args.H, Cell::gates, units);
    const auto product = make_product<Storage, weight_rows, Cell::gates, rows>(weights, plan, args.hint);
    Forward<Cell, Storage, std::remove_const_t<decltype(product)>>(args, plan, product)
        .run(static_cast<int>(begin), static_cast<int>(end));
  }
}

}  // namespace lstm_fused::cuda
