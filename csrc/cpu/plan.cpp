#include "plan.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "team.h"

namespace lstm_fused {

namespace {

// Rough figures of current server cores; only their ratios matter to the choice.
constexpr double cycles_per_ns = 3.0;
constexpr double barrier_ns = 250;        // two to four cores of one socket
constexpr double launch_ns = 3000;        // waking a team
constexpr double cell_cycles = 90;        // activations of one vector of units
constexpr double unhidden_part = 0.25;         // of the shorter one of computing and reading weights
constexpr double exchange_bytes_per_cycle = 4;
constexpr double worthwhile_gain = 0.93;  // more threads must win at least this much: they cost others theirs

// Bytes a core reads per cycle from the smallest cache that holds `bytes`.
double bytes_per_cycle(const Machine& machine, double bytes) {
  if (bytes <= 0.75 * machine.l1_bytes) return 60;
  if (bytes <= 0.9 * machine.l2_bytes) return 28;
  if (bytes <= 0.9 * machine.l3_bytes) return 11;
  return 4;
}

std::int64_t cache_bytes(int name, std::int64_t fallback) {
  const long bytes = sysconf(name);
  return bytes > 0 ? bytes : fallback;
}

}  // namespace

std::string Plan::describe() const {
  if (threads() == 1) return "serial";
  std::string text;
  const auto add = [&](const char* name, int count) {
    if (count > 1) text += (text.empty() ? "" : " x ") + std::string(name) + " " + std::to_string(count);
  };
  add("directions", directions);
  add("rows", rows);
  add("units", units);
  return text;
}

Machine this_machine(int threads) {
#ifdef _SC_LEVEL1_DCACHE_SIZE
  static const Machine caches = {1, cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 << 10),
                                 cache_bytes(_SC_LEVEL2_CACHE_SIZE, 1 << 20),
                                 cache_bytes(_SC_LEVEL3_CACHE_SIZE, 16 << 20)};
#else
  static const Machine caches = {1, 64 << 10, 1 << 20, 16 << 20};
#endif
  Machine machine = caches;
  machine.threads = threads;
  return machine;
}

double estimate(const RecurrenceShape& s, const Machine& machine, const Plan& plan) {
  const double rows = static_cast<double>(divide_up(s.batch, plan.rows));
  const double panels = static_cast<double>(divide_up(divide_up(s.hidden, s.panel_units), plan.units));
  const double units = std::min<double>(panels * s.panel_units, static_cast<double>(s.hidden));
  const double weights = units * s.gates * static_cast<double>(s.recurrent);  // of one worker, one direction
  const double per_worker_directions = static_cast<double>(s.directions) / plan.directions;
  // Multiply-adds: two vectors a cycle, one where a single row leaves only a latency-bound chain or a load each.
  const double vectors = weights / s.lanes * rows;
  const double multiply = vectors / (rows == 1 ? 1.2 : 1.8);
  const double read =
      weights * s.element_bytes / bytes_per_cycle(machine, weights * s.element_bytes * per_worker_directions);
  const double cell = rows * units / s.lanes * cell_cycles;
  // The two overlap, but not quite.
  double cycles = std::max(multiply, read) + unhidden_part * std::min(multiply, read) + cell;
  // What the others have written comes from their caches.
  if (plan.units > 1) cycles += rows * static_cast<double>(s.exchanged) * s.element_bytes / exchange_bytes_per_cycle;
  double step = cycles / cycles_per_ns;
  if (plan.units > 1) step += barrier_ns * (s.projected ? 2 : 1);
  return s.steps * step * per_worker_directions + (plan.threads() > 1 ? launch_ns : 0);
}

Plan choose_plan(const RecurrenceShape& s, const Machine& machine, const std::string& forced) {
  const int threads = machine.threads;
  const int most_rows = static_cast<int>(std::min<std::int64_t>(threads, s.batch));
  const int most_units = static_cast<int>(std::min<std::int64_t>(threads, divide_up(s.hidden, s.panel_units)));
  if (forced == "serial") return {};
  if (forced == "rows") return {1, std::max(1, most_rows), 1};
  if (forced == "units") return {1, 1, std::max(1, most_units)};
  Plan best;
  double best_ns = estimate(s, machine, best);
  for (int directions = 1; directions <= std::min(s.directions, threads); ++directions)
    for (int rows = 1; rows <= most_rows && directions * rows <= threads; ++rows)
      for (int units = 1; units <= most_units && directions * rows * units <= threads; ++units) {
        const Plan plan{directions, rows, units};
        const double ns = estimate(s, machine, plan);
        if (ns < best_ns * (plan.threads() > best.threads() ? worthwhile_gain : 1.0)) {
          best = plan;
          best_ns = ns;
        }
      }
  return best;
}

std::int64_t rows_for_input_in_step(const RecurrenceShape& s, const Machine& machine, const Plan& plan,
                                    std::int64_t inputs) {
  constexpr double independent_sums = 16;  // with fewer a product waits for its own multiply-adds
  constexpr double per_input = 0.6;        // rows that repay a cycle of reading for each input; fitted to times
  const double bytes = static_cast<double>(s.hidden * s.gates * (inputs + s.recurrent)) / plan.units * s.element_bytes;
  const double worthwhile = per_input * static_cast<double>(inputs) / bytes_per_cycle(machine, bytes);
  return static_cast<std::int64_t>(std::ceil(std::max(independent_sums / s.gates, worthwhile)));
}

double product_ns(double multiply_adds, int lanes) { return multiply_adds / lanes / 1.8 / cycles_per_ns; }

std::int64_t patience_ns(const RecurrenceShape& s, const Plan& plan, double apart_ns) {
  constexpr double steps = 4;  // estimates are within a factor of two or so
  RecurrenceShape step = s;
  step.steps = 1;
  const auto waited = static_cast<std::int64_t>(steps * estimate(step, this_machine(plan.threads()), plan));
  return std::max(least_patience_ns, waited) + static_cast<std::int64_t>(apart_ns);
}

// Packed rows come with the longest first, and each goes to the group that is done with it first; so every group has
// one. A step takes about as long as its rows and one more, which stands for reading the weights.
DealtRows deal_rows(const RecurrenceShape& s, int groups) {
  DealtRows rows(groups);
  std::vector<std::int64_t> load(groups, 0);
  std::int64_t length = s.steps;
  for (std::int64_t b = 0; b < s.batch; ++b) {
    while (s.batch_sizes && length > 0 && s.batch_sizes[length - 1] <= b) --length;
    const auto done = [&](int group) {
      return load[group] + std::max<std::int64_t>(length, 1) * (rows[group].empty() ? 2 : 1);
    };
    int first = 0;
    for (int group = 1; group < groups; ++group)
      if (done(group) < done(first)) first = group;
    load[first] = done(first);
    rows[first].push_back(b);
  }
  return rows;
}

Share share_of(const Plan& plan, int member, const RecurrenceShape& s, const DealtRows& rows, int panel_units,
               int panel_outputs) {
  const int within = member % (plan.rows * plan.units);
  const int unit_group = within % plan.units;
  const auto part = [&](std::int64_t outputs, std::int64_t panel, int group) {
    return std::min(outputs, divide_up(outputs, panel) * group / plan.units * panel);
  };
  Share share;
  share.member = unit_group;
  const std::vector<std::int64_t>& own = rows[within / plan.units];
  share.rows = own.data();
  share.row_count = static_cast<std::int64_t>(own.size());
  share.unit_begin = part(s.hidden, panel_units, unit_group);
  share.unit_end = part(s.hidden, panel_units, unit_group + 1);
  share.projected_begin = part(s.recurrent, panel_outputs, unit_group);
  share.projected_end = part(s.recurrent, panel_outputs, unit_group + 1);
  return share;
}

}  // namespace lstm_fused
