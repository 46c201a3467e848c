#include "plan.h"

#include <algorithm>
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
  int granule() const { return (tensor ? tile_columns : weight_rows) / per_unit; }  // units that are done together
};
Product product_of(const Shape& shape, const Device& device, bool backward) {
  const bool tensor = device.tensor_cores && (shape.storage_bytes == 2 || (shape.storage_bytes == 4 && shape.tf32));
  if (backward) return {shape.gates * shape.H, 1, tensor};
  return {shape.H, weight_rows, tensor};
}

// Gives a plan its places in shared memory. Without weights to keep there, the source has a third of it, so that
// several blocks fit on a multiprocessor.
void lay_out(Plan& plan, const Shape& shape, const Device& device, const Product& product) {
  const std::int64_t weights = plan.units_per_block * product.per_unit;  // rows of them
  const auto room_beside = [&](std::int64_t bytes) {
    return plan.resident ? device.shared_per_block - bytes : device.shared_per_block / 3;
  };
  std::int64_t weight_bytes = 0, partial_bytes = 0;
  if (plan.tensor) {
    const std::int64_t tiles = divide_up(weights, tile_columns), slab_columns = slab_bytes / shape.storage_bytes;
    const std::int64_t slabs = divide_up(product.columns, slab_columns);
    constexpr int fragment = 32 * 16;  // bytes of a warp's part of a slab, and of a tile of sums
    plan.split = tiles <= warps / 2;
    if (plan.resident) weight_bytes = tiles * slabs * fragment;
    if (plan.split) partial_bytes = chains * tiles * fragment;
    // Whole chains' worth of slabs. Rows half a bank row apart: then the lanes of a fragment read different banks.
    const std::int64_t row_room = room_beside(weight_bytes + partial_bytes) / tile_rows - slab_bytes;
    const std::int64_t fitting = std::max<std::int64_t>(1, row_room / (chains * slab_bytes)) * chains;
    const std::int64_t staged = std::min(slabs, fitting);
    plan.staged_columns = staged * slab_columns;
    plan.staged_stride = (staged | 1) * slab_bytes;
  } else {
    if (plan.resident) weight_bytes = weights * product.columns * shape.storage_bytes;
    const std::int64_t column_bytes = plan.rows * shape.compute_bytes;
    const std::int64_t fitting = std::max<std::int64_t>(32, room_beside(weight_bytes) / column_bytes / 32 * 32);
    plan.staged_columns = std::min(product.columns, fitting);
    plan.staged_stride = plan.staged_columns * shape.compute_bytes;
  }
  plan.weights_at = divide_up(plan.rows * plan.staged_stride, 16) * 16;
  plan.partials_at = plan.weights_at + weight_bytes;
  plan.shared_bytes = plan.partials_at + partial_bytes;
}

Plan with_layout(Kind kind, std::int64_t rows_per_block, std::int64_t units, bool resident, const Shape& shape,
                 const Device& device, const Product& product) {
  Plan plan;
  plan.kind = kind;
  plan.tensor = product.tensor;
  plan.rows = product.tensor ? tile_rows : shape.B >= 3 ? 8 : 1;
  plan.rows_per_block = rows_per_block ? rows_per_block : plan.rows;
  plan.units_per_block = units;
  plan.resident = resident;
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

}  // namespace

std::string Plan::describe() const {
  return std::string(name(kind)) + ", " + std::to_string(units_per_block) + " units and " +
         std::to_string(rows_per_block) + (rows_per_block == 1 ? " row" : " rows") + " a block, " +
         std::to_string(shared_bytes) + " bytes shared" + (resident ? ", weights among them" : "") +
         (tensor ? ", tensor cores" : "");
}

// docs/cuda.md says where the figures come from.
double step_cycles(const Plan& plan, const Shape& shape, const Device& device, bool backward) {
  const auto number = [](std::int64_t n) { return static_cast<double>(n); };
  const Product product = product_of(shape, device, backward);
  const std::int64_t batch = std::max<std::int64_t>(shape.B, 1), rows = std::min(plan.rows_per_block, batch);
  const std::int64_t row_tiles = divide_up(rows, plan.rows), granule = product.granule();
  const double columns = number(product.columns), bytes = shape.storage_bytes;
  const double weights = number(divide_up(plan.units_per_block, granule) * granule * product.per_unit);
  const double source = number(rows) * columns * bytes / 64;  // bytes a cycle, from L2
  const double weights_read = number(row_tiles) * weights * columns * bytes / (plan.resident ? 128 : 64);
  const double multiply_adds = plan.tensor ? 2048 / bytes : 256.0 / shape.compute_bytes;  // a cycle
  const double arithmetic = number(row_tiles * plan.rows) * weights * columns / multiply_adds;
  const double updates = 200 * number(row_tiles * divide_up(plan.units_per_block, warps * granule));
  const double meeting = plan.kind == Kind::grid ? 1500 : plan.kind == Kind::step ? 5000 : 100, latency = 500;
  const std::int64_t blocks = divide_up(batch, plan.rows_per_block) * divide_up(shape.H, plan.units_per_block);
  const double waves = number(divide_up(blocks, device.multiprocessors));
  return waves * (source + std::max(weights_read, arithmetic) + updates + latency) + meeting;
}

Plan choose_plan(const Shape& shape, const Device& device, bool backward, const std::string& forced) {
  if (!forced.empty() && forced != "block" && forced != "grid" && forced != "step")
    throw std::invalid_argument("expected block, grid or step, got " + forced);
  const Product product = product_of(shape, device, backward);
  std::vector<Plan> plans;
  if (forced != "grid" && forced != "step" && (shape.T > 1 || !forced.empty())) {
    const auto block = [&](bool resident) {  // all at the same time, if more rows a block can do that
      Plan plan = with_layout(Kind::block, 0, shape.H, resident, shape, device, product);
      plan.rows_per_block *=
          std::max<std::int64_t>(1, divide_up(divide_up(shape.B, device.multiprocessors), plan.rows));
      return plan;
    };
    if (const Plan kept = block(true); kept.shared_bytes <= device.shared_per_block) plans.push_back(kept);
    else if (!forced.empty()) plans.push_back(block(false));
  }
  if (forced != "block" && forced != "step" && device.cooperative && (shape.T > 1 || !forced.empty())) {
    std::optional<Plan> grid = best_grid(shape, device, product, backward, true);
    if (!grid) grid = best_grid(shape, device, product, backward, false);
    if (grid) plans.push_back(*grid);
  }
  if (forced.empty() || forced == "step") {
    const std::int64_t units = product.tensor ? tile_columns : warps * product.granule();
    plans.push_back(with_layout(Kind::step, 0, units, false, shape, device, product));
  }
  if (plans.empty()) throw std::invalid_argument("plan grid: this device cannot have so many blocks together");
  const auto cycles = [&](const Plan& plan) { return step_cycles(plan, shape, device, backward); };
  return *std::min_element(plans.begin(), plans.end(),
                           [&](const Plan& a, const Plan& b) { return cycles(a) < cycles(b); });
}

}  // namespace lstm_fused::cuda
