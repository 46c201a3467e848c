#include "plan.h"

#include <algorithm>
#include <stdexcept>

namespace lstm_fused::cuda {

namespace {

const char* name(Kind kind) { return kind == Kind::block ? "block" : kind == Kind::grid ? "grid" : "step"; }

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Columns of a product's source, and rows of its matrix for each unit.
struct Product {
  std::int64_t columns, rows_per_unit;
};
Product product_of(const Shape& shape, bool backward) {
  if (backward) return {shape.gates * shape.H, 1};
  return {shape.H, weight_rows};
}

Plan with_tiles(Kind kind, const Shape& shape, const Device& device, const Product& product, std::int64_t units,
                bool resident) {
  Plan plan;
  plan.kind = kind;
  plan.rows = shape.B >= 3 ? 8 : 1;
  plan.units_per_block = units;
  plan.resident = resident;
  const std::int64_t column_bytes = plan.rows * shape.compute_bytes;
  const std::int64_t weight_bytes =
      resident ? units * product.rows_per_unit * product.columns * shape.storage_bytes : 0;
  // As many columns of the source as there is room for, in whole warps' worth; without weights to keep, a third of the
  // memory, so that several blocks fit on a multiprocessor.
  const std::int64_t room = resident ? device.shared_per_block - weight_bytes : device.shared_per_block / 3;
  plan.staged_columns = std::min(product.columns, std::max<std::int64_t>(32, room / column_bytes / 32 * 32));
  plan.shared_bytes = plan.staged_columns * column_bytes + weight_bytes;
  return plan;
}

}  // namespace

std::string Plan::describe() const {
  return std::string(name(kind)) + ", " + std::to_string(units_per_block) + " units a block, " + std::to_string(rows) +
         (rows == 1 ? " row" : " rows") + " at once, " + std::to_string(shared_bytes) + " bytes shared" +
         (resident ? ", weights among them" : "");
}

Plan choose_plan(const Shape& shape, const Device& device, bool backward, const std::string& forced) {
  const Product product = product_of(shape, backward);
  const auto fits = [&](const Plan& plan) { return plan.shared_bytes <= device.shared_per_block; };
  const auto plan_of = [&](Kind kind, bool resident) {
    if (kind == Kind::block) return with_tiles(kind, shape, device, product, shape.H, resident);
    // Backward's warps take several units at once.
    const std::int64_t at_least = backward ? weight_rows : 1;
    const std::int64_t spread = kind == Kind::grid ? divide_up(shape.H, device.multiprocessors) : warps * at_least;
    return with_tiles(kind, shape, device, product, std::max(at_least, spread), resident);
  };
  for (const Kind kind : {Kind::block, Kind::grid}) {
    const Plan plan = plan_of(kind, true);
    const bool possible = kind == Kind::block || device.cooperative;
    if (forced.empty() ? possible && fits(plan) && shape.T > 1 : forced == name(kind) && possible && fits(plan))
      return plan;
    if (forced != name(kind)) continue;
    if (!possible) throw std::invalid_argument("plan grid: this device has no cooperative launches");
    return plan_of(kind, false);
  }
  if (!forced.empty() && forced != "step") throw std::invalid_argument("expected block, grid or step, got " + forced);
  return plan_of(Kind::step, false);
}

}  // namespace lstm_fused::cuda
