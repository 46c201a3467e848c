// Runs forward, backward and the single steps over a table of shapes, cells, element types and plans. Every buffer is a
// heap block of its exact size, so that the sanitizers see a step outside; results of all plans must be the same bits.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../../csrc/cpu/kernels.h"
#include "../../csrc/cpu/plan.h"

using namespace lstm_fused;

namespace {

struct Shape {
  std::int64_t T, B, H, P;
  bool reverse, ragged, resets = false, padded = false;
};

const Shape shapes[] = {
    {1, 1, 1, 1, false, false},
    {1, 9, 40, 40, false, false},
    {1, 15, 33, 16, false, false},
    {3, 2, 7, 7, false, false},
    {4, 5, 33, 33, true, false},
    {5, 7, 40, 40, false, true},
    {5, 9, 17, 17, true, true},
    {3, 4, 35, 19, false, false},
    {4, 6, 50, 33, true, true},
    {2, 70, 16, 16, false, false},
    {5, 6, 33, 33, false, false, true},
    {4, 7, 40, 24, true, false, true},
    {5, 7, 33, 33, false, true, false, true},
    {4, 9, 40, 24, true, true, false, true},
};
const Plan plans[] = {{1, 1, 1}, {1, 3, 1}, {1, 1, 2}, {1, 1, 4}, {1, 2, 2}};

std::mt19937 random_bits(7);

double uniform() { return std::uniform_real_distribution<double>(-1, 1)(random_bits); }

void fill(float& x) { x = static_cast<float>(uniform()); }
void fill(double& x) { x = uniform(); }
void fill(BFloat16& x) {
  x.bits = static_cast<std::uint16_t>(0x3e00 + random_bits() % 0x100 + (random_bits() % 2 << 15));
}
void fill(Float16& x) {
  x.bits = static_cast<std::uint16_t>(0x3000 + random_bits() % 0x800 + (random_bits() % 2 << 15));
}

template <class T>
std::vector<T> random_values(std::int64_t count) {
  std::vector<T> values(count);
  for (T& x : values) fill(x);
  return values;
}

template <class Storage>
void copy_bytes(std::vector<unsigned char>& to, const std::vector<Storage>& from) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(from.data());
  to.insert(to.end(), bytes, bytes + from.size() * sizeof(Storage));
}

void run_workers(const Plan& plan, const RecurrenceShape& shape, int panel, int outputs, const auto& work) {
  std::vector<std::unique_ptr<Barrier>> barriers;
  for (int i = 0; i < plan.rows; ++i) barriers.push_back(std::make_unique<Barrier>());
  for (const auto& barrier : barriers) barrier->reset(plan.units, 0, 0);  // the least delay breaks the team up
  const DealtRows rows = deal_rows(shape, plan.rows);
  run_team(plan.threads(), 0, [&](int member, int) {
    work(share_of(plan, member, shape, rows, panel, outputs), *barriers[member / plan.units]);
  });
}

// One layer's recurrence, forward and then backward, under one plan.
template <class Storage>
struct Problem {
  using Compute = compute_t<Storage>;
  static constexpr int S = 4;
  static constexpr std::int64_t I = 5, chunk_steps = 2;
  const CellKernels<Storage> kernels;
  const int G;
  const Shape s;
  const Plan plan;
  const bool projected = s.P != s.H;
  std::vector<std::int64_t> sizes, offsets, columns, places;
  std::int64_t N = 0, placed = 0;  // data rows; rows of input and output
  PlacedSequence sequence;
  std::vector<Storage> U, W, saved, output;
  std::vector<Compute> c0, cells, h_n, reset_c;
  std::unique_ptr<bool[]> resets;
  std::vector<unsigned char> bytes;  // of every result

  Problem(const IsaKernels& isa, const char* cell, int G, const Shape& s, const Plan& plan)
      : kernels(isa.kernels<Storage>(cell)), G(G), s(s), plan(plan) {
    random_bits.seed(11);
    for (std::int64_t t = 0; t < s.T; ++t) {
      sizes.push_back(s.ragged ? std::max<std::int64_t>(1, s.B - 2 * t - s.padded) : s.B);
      offsets.push_back(N);
      N += sizes.back();
    }
    for (std::int64_t b = 0; b < s.B; ++b) columns.push_back((b * 4 + 1) % s.B);
    sequence = {{s.T, s.B, s.reverse, s.ragged ? sizes.data() : nullptr, s.ragged ? offsets.data() : nullptr},
                s.padded ? columns.data() : nullptr};
    placed = s.padded ? s.T * s.B : N;
    for (std::int64_t t = 0; t < s.T; ++t)
      for (std::int64_t b = 0; b < sizes[t]; ++b) places.push_back(sequence.place(t, b));
    U = random_values<Storage>(G * s.H * s.P);
    W = random_values<Storage>(s.P * s.H);
    c0 = random_values<Compute>(s.B * s.H);
    reset_c = random_values<Compute>(s.H);
    if (s.resets) resets.reset(new bool[N]);
    for (std::int64_t i = 0; s.resets && i < N; ++i) resets[i] = random_bits() % 3 == 0;
    saved.resize(N * S * s.H);
    output.resize(placed * s.P);
    cells.resize(N * s.H);
    h_n.resize(s.B * s.P);
    forward();
    backward();
  }

  // All panels of a matrix with this many outputs and inputs, packed by pack(panel, to).
  static std::vector<Compute> packed(std::int64_t outputs, int panel_units, int width, std::int64_t K,
                                     const auto& pack) {
    const std::int64_t panels = (outputs + panel_units - 1) / panel_units;
    std::vector<Compute> to(panels * K * width);
    for (std::int64_t i = 0; i < panels; ++i) pack(i, to.data());
    return to;
  }

  RecurrenceShape shape() const {
    RecurrenceShape shape = {s.T,       s.B, s.H, s.P, G, 1, sizeof(Compute), kernels.unit_panel, kernels.unit_panel,
                             projected, s.P};
    shape.batch_sizes = sequence.batch_sizes;
    return shape;
  }

  void forward() {
    const int unit = kernels.unit_panel, wide = kernels.output_panel;
    const auto packed_U = packed(s.H, unit, G * unit, s.P,
                                 [&](std::int64_t i, Compute* to) { kernels.pack_gates(U.data(), s.H, s.P, i, to); });
    const auto packed_W = packed(s.P, wide, wide, s.H,
                                 [&](std::int64_t i, Compute* to) { kernels.pack_columns(W.data(), s.P, s.H, i, to); });
    const auto W_ih = random_values<Storage>(G * s.H * I);
    const auto packed_W_ih = packed(
        s.H, unit, G * unit, I, [&](std::int64_t i, Compute* to) { kernels.pack_gates(W_ih.data(), s.H, I, i, to); });
    const auto bias_x = random_values<Compute>(G * s.H), bias_h = random_values<Compute>(G * s.H);
    const auto h0 = random_values<Compute>(s.B * s.P), reset_h = random_values<Compute>(s.P),
               input = random_values<Compute>(placed * I);
    const bool in_place = std::is_same_v<Storage, Compute> && s.T % 2 == 1, in_step = !in_place && s.B != 6;
    std::vector<Compute> gates(in_place ? 0 : chunk_steps * s.B * G * s.H), h(2 * s.B * row_stride<Compute>(s.P)),
        c(s.B * s.H), unprojected(s.B * row_stride<Compute>(s.H));
    ForwardArgs<Storage> args;
    args.sequence = sequence;
    args.I = I;
    args.H = s.H;
    args.P = s.P;
    args.input = input.data();
    args.input_weights = packed_W_ih.data();
    args.recurrent = packed_U.data();
    args.projection = projected ? packed_W.data() : nullptr;
    args.bias_x = bias_x.data();
    args.bias_h = bias_h.data();
    args.h0 = h0.data();
    args.c0 = c0.data();
    args.resets = resets.get();
    args.reset_h = reset_h.data();
    args.reset_c = reset_c.data();
    args.chunk_steps = chunk_steps;
    args.gates_in_place = in_place;
    if constexpr (std::is_same_v<Storage, Compute>) args.input_gates = in_place ? saved.data() : gates.data();
    else args.input_gates = gates.data();
    if (in_step) args.input_gates = nullptr;
    if (s.ragged) args.rows_in_step = 3;
    args.input_ld = (in_place ? S : G) * s.H;
    args.saved = saved.data();
    args.cells = cells.data();
    args.output = output.data();
    args.output_ld = s.P;
    args.h = h.data();
    args.h_n = h_n.data();
    args.c = c.data();
    args.unprojected = unprojected.data();
    run_workers(plan, shape(), unit, wide,
                [&](const Share& share, Barrier& barrier) { kernels.forward(args, share, barrier); });
    copy_bytes(bytes, saved);
    copy_bytes(bytes, output);
    copy_bytes(bytes, h_n);
    if (G == 4) copy_bytes(bytes, cells);
    if (s.T > 1) return;
    auto alone = random_values<Storage>(static_cast<std::int64_t>(saved.size()));
    args.saved = alone.data();
    if constexpr (std::is_same_v<Storage, Compute>)
      if (in_place) args.input_gates = alone.data();
    args.output = nullptr;
    args.h_n = args.cells = nullptr;
    run_workers(plan, shape(), unit, wide,
                [&](const Share& share, Barrier& barrier) { kernels.forward(args, share, barrier); });
    if (std::memcmp(alone.data(), saved.data(), saved.size() * sizeof(Storage)) != 0)
      std::exit((std::puts("gates alone: other bits than with the states"), 1));
  }

  void backward() {
    const int wide = kernels.output_panel;
    const auto packed_U = packed(s.P, wide, wide, G * s.H, [&](std::int64_t i, Compute* to) {
      kernels.pack_rows(U.data(), s.P, G * s.H, i, i + 1, to);
    });
    const auto packed_W = packed(s.H, wide, wide, s.P, [&](std::int64_t i, Compute* to) {
      kernels.pack_rows(W.data(), s.H, s.P, i, i + 1, to);
    });
    const auto d_output = random_values<Storage>(placed * s.P), h0 = random_values<Storage>(s.B * s.P),
               reset_h = random_values<Storage>(s.P);
    auto dh = random_values<Compute>(s.B * s.P), dc = random_values<Compute>(s.B * s.H);
    std::vector<Compute> d_gates(N * row_stride<Compute>(S * s.H)), d_projected(N * row_stride<Compute>(s.P)),
        unprojected(N * s.H), sums(S * s.H), d_reset_h(s.B * s.P), d_reset_c(s.B * s.H);
    BackwardArgs<Storage> args;
    args.sequence = sequence;
    args.H = s.H;
    args.P = s.P;
    args.recurrent = Panels<Compute>::packed(packed_U.data(), G * s.H, wide);
    if (projected) args.projection = Panels<Compute>::packed(packed_W.data(), s.P, wide);
    args.saved = saved.data();
    args.cells = cells.data();
    args.output = output.data();
    args.output_ld = s.P;
    args.h0 = h0.data();
    args.c0 = c0.data();
    args.resets = resets.get();
    args.reset_h = reset_h.data();
    args.reset_c = reset_c.data();
    args.d_reset_h = d_reset_h.data();
    args.d_reset_c = d_reset_c.data();
    args.d_output = d_output.data();
    args.d_output_ld = s.P;
    args.dh = dh.data();
    args.dc = dc.data();
    args.d_gates = d_gates.data();
    args.d_projected = d_projected.data();
    args.unprojected = unprojected.data();
    run_workers(plan, shape(), wide, wide,
                [&](const Share& share, Barrier& barrier) { kernels.backward(args, share, barrier); });
    kernels.sum_columns(d_gates.data(), N, row_stride<Compute>(S * s.H), 0, S * s.H, sums.data());
    for (const auto* part : {&dh, &d_gates, &sums, &d_reset_h, &d_reset_c}) copy_bytes(bytes, *part);
    if (G == 4) copy_bytes(bytes, dc);
    sum_over_rows(d_gates);
  }

  // The gradients of input and W, in two parts of each, which need not be even.
  void sum_over_rows(const std::vector<Compute>& d_gates) {
    const int wide = kernels.output_panel;
    const auto W_ih = random_values<Storage>(G * s.H * I);
    const auto packed_W = packed(I, wide, wide, G * s.H, [&](std::int64_t i, Compute* to) {
      kernels.pack_rows(W_ih.data(), I, G * s.H, i, i + 1, to);
    });
    const auto input = random_values<Compute>(N * I);
    std::vector<Compute> d_input(placed * I), d_W(G * s.H * I), scratch(kernels.outer_sum_scratch);
    const RowsArgs<Compute> rows{G * s.H,
                                 I,
                                 d_gates.data(),
                                 row_stride<Compute>(S * s.H),
                                 Panels<Compute>::packed(packed_W.data(), G * s.H, wide),
                                 d_input.data(),
                                 s.padded ? places.data() : nullptr};
    const OuterSumArgs<Compute> outer{.N = N,
                                      .outputs = I,
                                      .left = d_gates.data(),
                                      .left_ld = row_stride<Compute>(S * s.H),
                                      .right = input.data(),
                                      .right_ld = I,
                                      .out = d_W.data()};
    const std::int64_t cut = plan.units > 1 ? N / 3 : N, cut_gates = plan.units > 1 ? G * s.H / 3 : G * s.H;
    for (const auto& [begin, end] : {std::pair{std::int64_t(0), cut}, std::pair{cut, N}})
      kernels.multiply_rows(rows, begin, end, 0, (I + wide - 1) / wide);
    for (const auto& [begin, end] : {std::pair{std::int64_t(0), cut_gates}, std::pair{cut_gates, G * s.H}})
      kernels.outer_sum(outer, scratch.data(), begin, end);
    std::vector<const Compute*> input_rows;
    for (std::int64_t n = 0; n < N; ++n) input_rows.push_back(input.data() + n * I);
    std::vector<Compute> by_rows(d_W.size());
    OuterSumArgs<Compute> same = outer;
    same.right = nullptr;
    same.right_rows = input_rows.data();
    same.right_ld = 1;
    same.out = by_rows.data();
    kernels.outer_sum(same, scratch.data(), 0, G * s.H);
    if (by_rows != d_W) std::exit((std::puts("rows by their places: other bits than side by side"), 1));
    for (const auto* part : {&d_input, &d_W}) copy_bytes(bytes, *part);
  }
};

template <class Storage>
std::vector<unsigned char> results(const IsaKernels& isa, const char* cell, int G, const Shape& s, const Plan& plan) {
  return Problem<Storage>(isa, cell, G, s, plan).bytes;
}

template <class Storage>
void run_step(const IsaKernels& isa, const char* cell, int G, std::int64_t B, std::int64_t I, std::int64_t H) {
  const CellKernels<Storage> kernels = isa.kernels<Storage>(cell);
  const auto w_ih = random_values<Storage>(G * H * I), w_hh = random_values<Storage>(G * H * H);
  const auto b_ih = random_values<Storage>(G * H), b_hh = random_values<Storage>(G * H);
  const auto input = random_values<Storage>(B * I), h0 = random_values<Storage>(B * H),
             c0 = random_values<Storage>(B * H);
  std::vector<Storage> h1(B * H), c1(B * H), saved(B * 4 * H);
  std::vector<compute_t<Storage>> cells(B * H);
  StepArgs<Storage> args;
  args.batch = B;
  args.I = I;
  args.H = H;
  args.w_ih = w_ih.data();
  args.w_hh = w_hh.data();
  args.b_ih = b_ih.data();
  args.b_hh = b_hh.data();
  args.input = input.data();
  args.h0 = h0.data();
  args.c0 = c0.data();
  args.h1 = h1.data();
  args.c1 = c1.data();
  args.saved = saved.data();
  args.cells = cells.data();
  kernels.step(args, 0, H);
}

template <class Storage>
void run_dual_step(const IsaKernels& isa, const char* cell, int G, std::int64_t B, std::int64_t H) {
  using Compute = compute_t<Storage>;
  const CellKernels<Storage> kernels = isa.kernels<Storage>(cell);
  const auto x = random_values<Compute>(B * 2 * G * H), u = random_values<Compute>(B * 2 * G * H);
  const auto bias_x = random_values<Compute>(2 * G * H), bias_h = random_values<Compute>(2 * G * H);
  const auto h0 = random_values<Compute>(B * 2 * H), c0 = random_values<Compute>(B * 2 * H);
  std::vector<Compute> saved(B * 2 * 4 * H), c1(B * 2 * H), h1(B * 2 * H), d_x(B * 2 * G * H), d_u(B * 2 * G * H);
  DualForwardArgs<Compute> forward{H, x.data(), u.data(), bias_x.data(), bias_h.data(), h0.data(), c0.data()};
  forward.saved = saved.data();
  forward.c1 = c1.data();
  forward.h1 = h1.data();
  kernels.dual_forward(forward, 0, B);
  DualBackwardArgs<Compute> backward{H, saved.data(), h0.data(), c0.data(), c1.data(), h1.data()};
  auto dc = random_values<Compute>(B * 2 * H);
  backward.dc = dc.data();
  backward.dh0 = h1.data();
  backward.d_x = d_x.data();
  backward.d_u = G == 4 ? d_x.data() : d_u.data();
  kernels.dual_backward(backward, 0, B);
}

// Every instruction set computes the same numbers, up to rounding. All parts of a float64 result are float64.
void compare_with_scalar(const IsaKernels& isa, const char* cell, int G) {
  for (const Shape& shape : shapes) {
    if (G == 3 && shape.P != shape.H) continue;
    const auto ours = results<double>(isa, cell, G, shape, plans[0]);
    const auto reference = results<double>(scalar::isa, cell, G, shape, plans[0]);
    for (std::size_t i = 0; i < ours.size(); i += sizeof(double)) {
      double a, b;
      std::memcpy(&a, &ours[i], sizeof(a));
      std::memcpy(&b, &reference[i], sizeof(b));
      if (std::abs(a - b) <= 1e-11 * std::max(1.0, std::abs(b))) continue;
      std::printf("%s %s H%ld: %g where scalar gives %g\n", isa.name.data(), cell, long(shape.H), a, b);
      std::exit(1);
    }
  }
}

template <class Storage>
void run_all(const IsaKernels& isa, const char* cell, int G) {
  for (const Shape& shape : shapes) {
    if (G == 3 && shape.P != shape.H) continue;
    const auto serial = results<Storage>(isa, cell, G, shape, plans[0]);
    for (const Plan& plan : plans) {
      if (results<Storage>(isa, cell, G, shape, plan) == serial) continue;
      std::printf("%s %s T%ld B%ld H%ld: plan %s gives other bits than serial\n", isa.name.data(), cell, long(shape.T),
                  long(shape.B), long(shape.H), plan.describe().c_str());
      std::exit(1);
    }
  }
  for (const std::int64_t B : {1, 3, 8})
    for (const std::int64_t H : {1, 7, 16, 33, 100}) {  // 100: beyond four vectors of every instruction set
      run_step<Storage>(isa, cell, G, B, H + 2, H);
      run_dual_step<Storage>(isa, cell, G, B, H);
    }
}

}  // namespace

int main() {
  for (const IsaKernels* isa : {&scalar::isa, &avx2::isa, &avx512::isa}) {
    if (!isa->available()) continue;
    for (const auto& [cell, G] : {std::pair{"lstm", 4}, std::pair{"gru", 3}}) {
      run_all<float>(*isa, cell, G);
      run_all<double>(*isa, cell, G);
      run_all<BFloat16>(*isa, cell, G);
      run_all<Float16>(*isa, cell, G);
      compare_with_scalar(*isa, cell, G);
    }
    std::printf("%s: clean\n", isa->name.data());
  }
}
