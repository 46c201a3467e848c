// The matrix product inside a time step: out[row][panel] = sum_k source[row][k] * weights[panel][k], for a
// few rows and a range of panels of packed weights, with a functor applied to each result while it is
// still in registers. This is where nearly all of the time goes.
//
// A panel is NV vectors wide. A tile of `rows x panels` keeps every sum in a register; k runs in order
// from one end to the other, in pieces of a length that depends on nothing but the panel's width, so results do not
// depend on how the work is split.
#pragma once

#include <algorithm>

#include "../recurrence.h"
#include "simd.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

// `all` dealt out in parts of nearly equal size. It divides once: a division of 64-bit numbers takes some processors as
// long as a hundred multiply-adds of vectors, and a tile of a short product has but a few hundred.
struct Parts {
  std::int64_t each, longer;  // the first `longer` parts have one more

  Parts(std::int64_t all, std::int64_t count)
      : each(all / std::max<std::int64_t>(count, 1)), longer(all - each * count) {}
  std::int64_t begin(std::int64_t i) const { return i * each + std::min(i, longer); }
};

// The source row of a product: `count` segments of `length` values, at the given multiples of `length`.
struct Segments {
  int count;
  const int* column;
  std::int64_t length;
};

// The panels [begin, end), the first one first or the last.
struct PanelRange {
  std::int64_t begin, end;
  bool backwards = false;
};

// What a product gives at once: `rows` rows from the row-th on of `panels` panels, [panels, rows].
struct Tile {
  std::int64_t row, panel;
  int rows, panels;
};

// Where a tile's rows come from: apart in memory, each with k running along it, or side by side for every k.
template <class Compute>
struct RowsApart {
  const Compute* const* row;
  std::int64_t first;  // k begins there
  LSTM_FUSED_INLINE Compute operator()(int r, std::int64_t k) const { return row[r][first + k]; }
};
template <class Compute, int rows>
struct RowsTogether {
  const Compute* tile;  // [K, rows]
  LSTM_FUSED_INLINE Compute operator()(int r, std::int64_t k) const { return tile[k * rows + r]; }
};

template <int NV, class Compute>
struct Product {
  using V = Vec<Compute>;
  static constexpr int max_rows = Isa::accumulators / NV;
  // Rows whose partial sums are kept while a panel is read in pieces: the more, the fewer times all panels are read.
  static constexpr int row_block = 384 / NV / max_rows * max_rows;
  static constexpr int panel_width = NV * lanes<V>;
  static constexpr int line = 64 / sizeof(Compute);  // a cache line, in elements

  // How much of k to take at once: a piece of the panel that the tiles read again from a near cache while their rows
  // pass by. Each piece is summed apart, and has an end, so that the rounding error of a long sum stays small.
  static std::int64_t piece_of(std::int64_t length) {
    constexpr std::int64_t fits = std::min<std::int64_t>(Isa::panel_bytes / (panel_width * sizeof(Compute)), 256);
    if (length <= fits) return length;
    const std::int64_t pieces = (length + fits - 1) / fits;
    return (length + pieces - 1) / pieces;
  }

  // A few rows have several panels together, whose epilogue then has as much to do at once as that of many rows.
  static constexpr int panels_for(int rows) {
    const int most = Isa::accumulators / (rows * NV);
    return most >= 4 ? 4 : most >= 2 ? 2 : 1;
  }
  // Narrow panels are also multiplied together: independent sums hide the latency of a fused multiply-add, and what is
  // loaded of a row serves them all. Wide ones are read faster one by one.
  static constexpr int multiplied_together(int rows) { return NV > 2 ? 1 : panels_for(rows); }

  // sums += product, or = if `first`; meanwhile K cache lines from `ahead` on are fetched into L2. The sums are moved
  // to registers and back one by one: an array copied as a whole would be kept in memory. A function of its own,
  // because its registers must not be planned together with its callers'.
  template <int rows, int panels, class Source>
  [[gnu::noinline]] static void multiply(const Source source, const Panels<Compute> weights, std::int64_t K, bool first,
                                         V (*sums)[NV], const Compute* ahead) {
    V acc[panels][rows][NV];
#pragma GCC unroll 32
    for (int i = 0; i < panels * rows * NV; ++i) acc[i / (rows * NV)][i / NV % rows][i % NV] = V{};
    for (std::int64_t k = 0; k < K; ++k) {
      if constexpr (rows * NV >= 16) __builtin_prefetch(ahead + k * line, 0, 2);  // fewer are bound by their loads
#pragma GCC unroll 8
      for (int p = 0; p < panels; ++p) {
        const Compute* w = weights.data + p * weights.panel + k * weights.input;
        // The shorter side stays in registers and the longer one streams past: accumulators take all the others.
        if constexpr (rows < NV) {
          V x[rows];
#pragma GCC unroll 16
          for (int r = 0; r < rows; ++r) x[r] = broadcast<V>(source(r, k));
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) {
            const V column = in_register<rows>(load<V>(w + v * lanes<V>));
#pragma GCC unroll 16
            for (int r = 0; r < rows; ++r) acc[p][r][v] += x[r] * column;
          }
        } else {
          V column[NV];
#pragma GCC unroll 8
          for (int v = 0; v < NV; ++v) column[v] = in_register<rows <= NV ? rows : 1>(load<V>(w + v * lanes<V>));
#pragma GCC unroll 16
          for (int r = 0; r < rows; ++r) {
            const V x = broadcast<V>(source(r, k));
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) acc[p][r][v] += x * column[v];
          }
        }
      }
    }
#pragma GCC unroll 32
    for (int i = 0; i < panels * rows * NV; ++i) {
      const V& piece = acc[i / (rows * NV)][i / NV % rows][i % NV];
      sums[i / NV][i % NV] = first ? piece : sums[i / NV][i % NV] + piece;
    }
  }

  // Calls f(rows) with the number of a tile's rows as a constant.
  template <class F>
  LSTM_FUSED_INLINE static void with_rows(std::int64_t rows, F f) {
    [&]<int... r>(std::integer_sequence<int, r...>) {
      (void)((rows == r + 1 && (f(std::integral_constant<int, r + 1>{}), true)) || ...);
    }(std::make_integer_sequence<int, max_rows>{});
  }

  // Calls f(panels) with the number of a tile's panels, at most panels_for(rows), as a constant.
  template <int rows, class F>
  LSTM_FUSED_INLINE static void with_panels(int panels, F f) {
    if (panels == 1) f(std::integral_constant<int, 1>{});
    if constexpr (panels_for(rows) >= 2)
      if (panels == 2) f(std::integral_constant<int, 2>{});
    if constexpr (panels_for(rows) >= 4)
      if (panels == 4) f(std::integral_constant<int, 4>{});
  }

  // The panels that every step reads for its rows. More of them than a core's cache holds are read to and fro: what was
  // last is still there. That is L2; but of few rows, which do little else, L1, if it holds a good part of them. Else
  // they are not, for a step that began with them would have to wait for the units that the last one ended with.
  static PanelRange to_and_fro(std::int64_t begin, std::int64_t end, std::int64_t K, std::int64_t step,
                               std::int64_t rows) {
    constexpr std::int64_t l1_bytes = 40 * 1024, l2_bytes = 512 * 1024;
    const auto bytes = static_cast<std::int64_t>(sizeof(Compute)) * K * panel_width * (end - begin);
    const bool beyond = bytes > l2_bytes || (rows <= 2 && bytes > l1_bytes && bytes < 4 * l1_bytes);
    return {begin, end, beyond && step % 2 != 0};
  }

  static Panels<Compute> packed(const Compute* data, std::int64_t K) {
    return Panels<Compute>::packed(data, K, panel_width);
  }

  // A `soon` that has nothing to fetch, and a `done` that takes them one by one, by f(j, panel, V sums[NV]).
  static constexpr auto nothing = [](std::int64_t, std::int64_t) {};
  template <class F>
  static auto row_by_row(F f) {
    return [f](const Tile& tile, const V(*sums)[NV]) {
      for (int p = 0; p < tile.panels; ++p)
        for (int r = 0; r < tile.rows; ++r) f(tile.row + r, tile.panel + p, *sums++);
    };
  }

  // One factor of rows, source(j) being the j-th, with the weights that they meet.
  template <class Source>
  struct Term {
    Panels<Compute> weights;
    Segments k;
    Source source;
    std::int64_t piece = piece_of(k.length);
  };
  template <class Source>
  static Term<Source> term(const Panels<Compute>& weights, const Segments& k, Source source) {
    return {weights, k, source};
  }
  // Of rows in one piece.
  template <class Source>
  static Term<Source> term(const Panels<Compute>& weights, std::int64_t length, Source source) {
    static constexpr int whole_row[] = {0};
    return {weights, {1, whole_row, length}, source};
  }

  // The products of several terms, each summed apart: done(tile, V (*sums)[NV]) takes results, the first term's from
  // sums[0] on, the next one's row_block further on; soon(j, panel) is called while there is still a product to
  // compute, to fetch what done will read.
  template <class Soon, class Done, class... Source>
  static void run(std::int64_t n, const PanelRange& panels, Soon soon, Done done, const Term<Source>&... terms) {
    const std::int64_t blocks = (n + row_block - 1) / row_block;
    const Parts rows(n, blocks);
    for (std::int64_t i = 0; i < blocks; ++i) run_block(rows.begin(i), rows.begin(i + 1), panels, soon, done, terms...);
  }

 private:
  template <class Soon, class Done, class... Source>
  static void run_block(std::int64_t row_begin, std::int64_t row_end, const PanelRange& range, Soon soon, Done done,
                        const Term<Source>&... terms) {
    const std::int64_t rows = row_end - row_begin;
    const std::int64_t tiles = (rows + max_rows - 1) / max_rows;
    // An epilogue may take rows two at a time, so no tile has an odd one but the last.
    constexpr int pair = max_rows % 2 ? 1 : 2;
    const Parts pairs((rows + pair - 1) / pair, tiles);
    const auto tile_begin = [&](std::int64_t i) { return row_begin + std::min(pair * pairs.begin(i), rows); };
    constexpr int last_term = sizeof...(terms) - 1;
    V partial[sizeof...(terms)][row_block][NV];
    const Compute* sources[sizeof...(terms)][row_block];
    int of_term = 0;
    const auto find_sources = [&](const auto& term, const Compute** source) {
      for (std::int64_t r = 0; r < rows; ++r) source[r] = term.source(row_begin + r);
    };
    (find_sources(terms, sources[of_term++]), ...);

    const auto tile = [&](auto rows_constant, auto panels_constant, const auto& term, int which, std::int64_t row,
                          std::int64_t panel, int segment, std::int64_t k0, std::int64_t k1, std::int64_t i) {
      constexpr int R = rows_constant, panels = panels_constant;
      const Segments& k = term.k;
      const bool first = segment == 0 && k0 == 0;
      const bool last = which == last_term && segment == k.count - 1 && k1 == k.length;
      for (int r = 0; last && r < R * panels; ++r) soon(row + r % R, panel + r / R);
      const RowsApart<Compute> from{sources[which] + (row - row_begin), k.column[segment] * k.length + k0};
      V(*const sums)[NV] = partial[which] + (row - row_begin) * panels;  // [panels][R]
      const Panels<Compute>& weights = term.weights;
      const Compute* const w = weights.data + panel * weights.panel + (segment * k.length + k0) * weights.input;
      // While the first tiles read this piece of the panel they fetch the next one, each a part of it.
      const bool turns = range.backwards && segment == k.count - 1 && k1 == k.length;
      const Compute* const next = turns ? weights.data + (panel > range.begin ? panel - 1 : panel) * weights.panel
                                        : w + (k1 - k0) * panel_width;
      constexpr int each = std::min(panels, multiplied_together(R));
      for (int p0 = 0; p0 < panels; p0 += each) {
        const int p = range.backwards ? panels - each - p0 : p0;
        multiply<R, each>(from, {w + p * weights.panel, weights.panel, weights.input}, k1 - k0, first, sums + p * R,
                          i * line < panel_width ? next + (k1 - k0) * i * line : w);
      }
      if (last) done(Tile{row, panel, R, panels}, sums - last_term * row_block);
    };

    for (std::int64_t left = range.end - range.begin; left > 0;) {
      const int most = tiles == 1 ? panels_for(rows) : 1;
      const int together = most <= left ? most : most == 4 && left >= 2 ? 2 : 1;
      const std::int64_t panel = range.backwards ? range.begin + left - together : range.end - left;
      const auto multiply_term = [&](const auto& term, int which) {
        for (int segment = 0; segment < term.k.count; ++segment)
          for (std::int64_t k0 = 0; k0 < term.k.length; k0 += term.piece)
            for (std::int64_t i = 0; i < tiles; ++i) {
              const std::int64_t row = tile_begin(i), next = tile_begin(i + 1);
              const std::int64_t k1 = std::min(k0 + term.piece, term.k.length);
              with_rows(next - row, [&](auto R) {
                with_panels<R>(together,
                               [&](auto panels) { tile(R, panels, term, which, row, panel, segment, k0, k1, i); });
              });
            }
      };
      int which = 0;
      (multiply_term(terms, which++), ...);
      left -= together;
    }
  }
};

}  // namespace lstm_fused::LSTM_FUSED_TARGET
