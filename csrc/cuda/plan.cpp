#include "plan.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>
#include <vector>

namespace lstm_fused::cuda {

namespace {

const char* name(Kind kind) { return kind == Kind::block ? "block" : kind == Kind::grid ? "grid" : "step"; }

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The product inside a step: columns of its source, and rows of its matrix for each unit, those of zeros included.
struct Product {
  std::int64_t columns;
  int per_unit;
  bool tensor;
  bool wide = false;  // as Plan::wide; backward 8 units are done with 16 rows then, and not 16 with 8
  int granule() const {  // units that are done together
    if (wide && per_unit == 1) return tile_weights / 2;
    return (tensor ? tile_weights : weight_rows) / per_unit;
  }
};
Product product_of(const Shape& shape, const Device& device, bool backward) {
  const bool tensor = device.tensor_cores && (shape.storage_bytes == 2 || (shape.storage_bytes == 4 && shape.tf32));
  if (backward) return {shape.gates * shape.H, 1, tensor};
  return {shape.H, weight_rows, tensor};
}

constexpr int fragment = 32 * 16;  // bytes of a warp's part of a slab: of 8 rows

// Gives a plan its places in shared memory. Without weights to keep there, the staged rows have a third of it, so that
// several blocks fit on a multiprocessor.
void lay_out(Plan& plan, const Shape& shape, const Device& device, const Product& product) {
  const std::int64_t weights = plan.units_per_block * product.per_unit;  // rows of them
  std::int64_t staged_bytes = 0, source_bytes = 0, weight_bytes = 0, partial_bytes = 0;
  const auto round_up = [](std::int64_t bytes) { return divide_up(bytes, 16) * 16; };
  plan.source_stride = round_up(product.columns * shape.storage_bytes);
  if (plan.even) {
    plan.held = plan.split = true;
    const int rows = product.wide && product.per_unit == 1 ? 2 * tile_rows : tile_rows;
    plan.shared_bytes =
        divide_up(plan.rows_per_block, rows) * chains * chain_tiles(product.per_unit, product.wide) * fragment;
    return;
  }
  if (plan.tensor) {
    const std::int64_t tiles = divide_up(weights, tile_weights);
    const std::int64_t slabs = divide_up(product.columns * shape.storage_bytes, slab_bytes);
    plan.split = plan.kind != Kind::block;
    const int most_tiles = held_tiles(product.per_unit),
              most_slabs = held_slabs(product.per_unit, shape.gates, plan.split);
    plan.held = plan.resident && plan.aligned &&
                (plan.split ? tiles <= most_tiles && slabs <= chains * most_slabs
                            : tiles <= warps * most_tiles && slabs <= most_slabs);
    if (plan.resident && !plan.held) weight_bytes = tiles * slabs * 2 * fragment;
    if (plan.split) partial_bytes = 2 * chains * most_tiles * fragment;
    plan.source_stride = (slabs | 1) * slab_bytes;  // half a bank row apart: lanes of a fragment read different banks
  }
  if (plan.kind == Kind::block) source_bytes = 2 * plan.rows * plan.source_stride;
  plan.kept = source_bytes > 0 && source_bytes <= device.shared_per_block / (plan.resident ? 1 : 3);
  if (!plan.kept) source_bytes = 0;
  if (!plan.tensor) {
    if (plan.resident) weight_bytes = round_up(weights * product.columns * shape.storage_bytes);
    const std::int64_t room =
        plan.resident ? device.shared_per_block - weight_bytes - source_bytes : device.shared_per_block / 3;
    const std::int64_t column_bytes = plan.rows * shape.compute_bytes;
    plan.staged_columns = std::min(product.columns, std::max<std::int64_t>(32, room / column_bytes / 32 * 32));
    staged_bytes = round_up(plan.staged_columns * column_bytes);
  }
  plan.source_at = staged_bytes;
  plan.weights_at = plan.source_at + source_bytes;
  plan.partials_at = plan.weights_at + weight_bytes;
  plan.shared_bytes = plan.partials_at + partial_bytes;
}

Plan with_layout(Kind kind, std::int64_t rows_per_block, std::int64_t units, bool resident, const Shape& shape,
                 const Device& device, const Product& product, bool even = false) {
  Plan plan;
  plan.kind = kind;
  plan.even = even;
  plan.wide = product.wide;
  plan.tensor = product.tensor;
  plan.rows = product.tensor || shape.B >= 3 ? 8 : 1;
  plan.rows_per_block = rows_per_block ? rows_per_block : plan.rows;
  plan.units_per_block = units;
  plan.resident = resident;
  plan.aligned = shape.H * shape.storage_bytes % 16 == 0;
  lay_out(plan, shape, device, product);
  return plan;
}

// The best of the ways to deal rows and units to blocks that are on the device together.
std::optional<Plan> best_grid(const Shape& shape, const Device& device, const Product& product, bool backward,
                              bool resident) {
  std::optional<Plan> best;
  const std::int64_t batch = std::max<std::int64_t>(shape.B, 1);
  for (std::int64_t rows = batch >= 3 ? 8 : 1, last = 0; last < batch; last = rows, rows *= 2) {
    const std::int64_t blocks = device.multiprocessors / divide_up(batch, rows);  // for each group of rows
    if (blocks == 0) continue;
    const std::int64_t units = divide_up(divide_up(shape.H, blocks), product.granule()) * product.granule();
    const Plan plan = with_layout(Kind::grid, rows, units, resident, shape, device, product);
    if (plan.shared_bytes > device.shared_per_block) continue;
    if (!best || step_cycles(plan, shape, device, backward) < step_cycles(*best, shape, device, backward)) best = plan;
  }
  return best;
}

// The same where weights stay in registers and every step has the same rows.
std::optional<Plan> best_even(const Shape& shape, const Device& device, const Product& product, bool backward) {
  std::optional<Plan> best;
  const int slabs = chains * chain_slabs(product.per_unit, shape.gates, product.wide);
  if (!shape.even || !product.tensor || shape.H * shape.storage_bytes % 16 ||
      product.columns * shape.storage_bytes > slabs * slab_bytes)
    return best;
  const std::int64_t batch = std::max<std::int64_t>(shape.B, 1);
  for (std::int64_t rows = product.wide ? 2 * tile_rows : tile_rows, last = 0;
       last < batch && rows <= most_items * rows_apart(product.wide); last = rows, rows *= 2)
    for (int tiles = 1; tiles <= chain_tiles(product.per_unit, product.wide); ++tiles) {
      const std::int64_t units = tiles * product.granule();
      const Plan plan = with_layout(Kind::grid, rows, units, true, shape, device, product, true);
      if (divide_up(batch, rows) * divide_up(shape.H, units) > device.multiprocessors) continue;
      if (plan.shared_bytes > device.shared_per_block) continue;
      if (!best || step_cycles(plan, shape, device, backward) < step_cycles(*best, shape, device, backward))
        best = plan;
    }
  return best;
}

// Multiply-adds a cycle of a multiprocessor in a large product: three quarters of what was measured on an H100, or of
// the peak of an A100 and of other cards, told apart by their shared memory; of float32 numbers, without tf32, an
// A100's.
double product_rate(const Shape& shape, const Device& device) {
  if (shape.storage_bytes != 2) return 50;
  return device.shared_per_block >= 200 << 10 ? 1000 : device.shared_per_block >= 150 << 10 ? 750 : 190;
}

// Steps to run before the rest of the input's product is there, which is made beside them by the multiprocessors that
// they leave free; 0 where that would save little.
std::int64_t first_steps(const Plan& plan, const Shape& shape, const Device& device, const std::string& forced) {
  if (!plan.even || forced == "grid" || shape.T < 2) return 0;
  if (forced == "pieces") return (shape.T + 2) / 3;
  if (shape.I == 0) return 0;
  const auto number = [](std::int64_t n) { return static_cast<double>(n); };
  const std::int64_t blocks = divide_up(shape.B, plan.rows_per_block) * divide_up(shape.H, plan.units_per_block);
  // Cycles of a step, of its product on one multiprocessor, and of all steps; and what a second start costs, twice
  // over: a launch, U into registers, the first step's way to them.
  const double step = step_cycles(plan, shape, device, /*backward=*/false);
  const double product = number(shape.B * shape.gates * shape.H) * number(shape.I) / product_rate(shape, device);
  const double all = number(shape.T) * step, start = 40000;
  const double meanwhile = number(device.multiprocessors - blocks) * step;
  const auto first = static_cast<std::int64_t>(std::ceil(number(shape.T) * product / (product + meanwhile)));
  const double saved = number(shape.T - first) * product / device.multiprocessors;
  return saved > std::max(start, all / 25) ? first : 0;
}

}  // namespace

std::string Plan::describe() const {
  return std::string(name(kind)) + ", " + std::to_string(units_per_block) + " units and " +
         std::to_string(rows_per_block) + (rows_per_block == 1 ? " row" : " rows") + " a block, " +
         std::to_string(shared_bytes) + " bytes shared" +
         (held       ? ", weights in registers"
          : resident ? ", weights among them"
                     : "") +
         (tensor ? ", tensor cores" : "") + (even ? ", even steps" : "") + (wide ? " of few units" : "") +
         (first_steps ? ", the first " + std::to_string(first_steps) + " before the others' input" : "");
}

// docs/cuda.md says where the figures come from.
double step_cycles(const Plan& plan, const Shape& shape, const Device& device, bool backward) {
  const auto number = [](std::int64_t n) { return static_cast<double>(n); };
  Product product = product_of(shape, device, backward);
  product.wide = plan.wide;
  const std::int64_t batch = std::max<std::int64_t>(shape.B, 1), rows = std::min(plan.rows_per_block, batch);
  const std::int64_t row_tiles = divide_up(rows, plan.rows), granule = product.granule();
  const std::int64_t granules = divide_up(plan.units_per_block, granule);
  const double columns = number(product.columns), bytes = shape.storage_bytes;
  const double weights = number(granules * granule * product.per_unit);
  // From L2; where the block keeps the source, each of 8 warps reads all of it.
  const double source = plan.kind == Kind::block ? number(8 * plan.rows) * columns * bytes / 128
                                                 : 600 + number(row_tiles * plan.rows) * columns * bytes / 32;
  const std::int64_t blocks = divide_up(batch, plan.rows_per_block) * divide_up(shape.H, plan.units_per_block);
  if (plan.even) {
    const double handed = number(blocks * row_tiles * plan.rows) * columns * bytes;
    return (backward ? 1600 + handed / 2900 : 1700 + handed / 1700) + 25 * number(granules - 1) +
           (backward ? 150 : 300) * number(row_tiles - 1);
  }
  const double weights_read =
      plan.held ? 0 : number(row_tiles) * weights * columns * bytes / (plan.resident ? 128 : 32);
  const double multiply_adds = plan.tensor ? 1024 / bytes : 256.0 / shape.compute_bytes;  // a cycle
  const double arithmetic = number(row_tiles * plan.rows) * weights * columns / multiply_adds;
  double updates = 1500 * number(row_tiles * divide_up(granules, warps));
  if (plan.split) updates = 2300 * number(row_tiles * divide_up(granules, held_tiles(product.per_unit)));
  else if (plan.tensor) updates = 1200 + (backward ? 3700 : 1750) * number(divide_up(granules, warps));
  // A warp loads a slab of the source after the other, where weights are not in registers.
  if (plan.split && !plan.held) updates += 700 * number(row_tiles) * std::ceil(columns * bytes / slab_bytes / chains);
  const double meeting = plan.kind == Kind::grid ? 1300 : plan.kind == Kind::step ? 5000 : 100;
  const double waves = number(divide_up(blocks, device.multiprocessors));
  return waves * (source + std::max(weights_read, arithmetic) + updates) + meeting;
}

Plan choose_plan(const Shape& shape, const Device& device, bool backward, const std::string& forced) {
  const bool block_forced = forced == "block", step_forced = forced == "step";
  const bool grid_forced = forced == "grid" || forced == "pieces";
  if (!forced.empty() && !block_forced && !grid_forced && !step_forced)
    throw std::invalid_argument("expected block, grid, pieces or step, got " + forced);
  const Product product = product_of(shape, device, backward);
  std::vector<Plan> plans;
  if (!grid_forced && !step_forced && (shape.T > 1 || !forced.empty())) {
    const auto block = [&](bool kept) { return with_layout(Kind::block, 0, shape.H, kept, shape, device, product); };
    if (const Plan kept = block(true); kept.shared_bytes <= device.shared_per_block) plans.push_back(kept);
    else if (!forced.empty()) plans.push_back(block(false));
  }
  if (!block_forced && !step_forced && device.cooperative && (shape.T > 1 || !forced.empty())) {
    std::optional<Plan> grid = best_grid(shape, device, product, backward, true);
    if (!grid) grid = best_grid(shape, device, product, backward, false);
    if (grid) plans.push_back(*grid);
    if (const std::optional<Plan> even = best_even(shape, device, product, backward)) plans.push_back(*even);
    Product wide = product;
    wide.wide = shape.storage_bytes == 4;  // of 16-bit numbers, U fits without where the units do
    if (wide.wide)
      if (const std::optional<Plan> even = best_even(shape, device, wide, backward)) plans.push_back(*even);
  }
  if (forced.empty() || step_forced) {
    const std::int64_t units = product.tensor ? product.granule() : warps * product.granule();
    plans.push_back(with_layout(Kind::step, 0, units, false, shape, device, product));
  }
  if (plans.empty()) throw std::invalid_argument("plan grid: this device cannot have so many blocks together");
  const auto cycles = [&](const Plan& plan) { return step_cycles(plan, shape, device, backward); };
  Plan best = *std::min_element(plans.begin(), plans.end(),
                                [&](const Plan& a, const Plan& b) { return cycles(a) < cycles(b); });
  if (!backward) best.first_steps = first_steps(best, shape, device, forced);
  return best;
}

}  // namespace lstm_fused::cuda
