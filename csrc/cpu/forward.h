// The fused forward: the input's product for some steps, then for each of these the recurrent product, the cell update
// in its epilogue, and the new state. A worker does its Share of rows and units; workers that share rows meet at the
// barrier.
#pragma once

#include "product.h"
#include "twin.h"
#include "worker.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

template <class Cell, class Storage>
class Forward : Worker {
  using Compute = compute_t<Storage>;
  using V = Vec<Compute>;
  static constexpr int G = Cell::gates, S = Cell::saved, L = lanes<V>;

 public:
  static constexpr int projection_vectors = 2;

  Forward(const ForwardArgs<Storage>& args, const Share& share, Barrier& barrier)
      : Worker(share, barrier, args.H, args.P), a(args) {}

  void run() {
    if (!start()) return;
    initialise();
    if (!meet()) return;
    for (chunk_begin = 0; chunk_begin < a.sequence.steps; chunk_begin += a.chunk_steps) {
      const std::int64_t chunk_end = std::min(chunk_begin + a.chunk_steps, a.sequence.steps);
      if (a.input_gates) multiply_input(chunk_end);
      for (std::int64_t step = chunk_begin; step < chunk_end; ++step)
        if (!run_step(step)) return;
    }
  }

 private:
  static std::int64_t panels(std::int64_t units) { return (units + L - 1) / L; }

  // A worker's part of h: its units, or its outputs of the projection.
  std::int64_t h_begin() const { return a.projection ? share.projected_begin : share.unit_begin; }
  std::int64_t h_count() const { return (a.projection ? share.projected_end : share.unit_end) - h_begin(); }

  static void copy_or_zero(Compute* to, const Compute* from, std::int64_t count) {
    if (from) std::memcpy(to, from, count * sizeof(Compute));
    else std::fill_n(to, count, Compute(0));
  }

  // Rows that join later, in reverse, find h0 in whichever half their first step reads.
  void initialise() {
    const std::int64_t B = a.sequence.batch;
    for (std::int64_t j = 0; j < my_rows(B); ++j) {
      const std::int64_t b = row(j), from = a.sequence.column(b) * a.P + h_begin(), to = b * h_ld + h_begin();
      for (int half = 0; half < (a.sequence.batch_sizes ? 2 : 1); ++half)
        copy_or_zero(a.h + half * B * h_ld + to, a.h0 ? a.h0 + from : nullptr, h_count());
      if constexpr (Cell::carries_cell) {
        const std::int64_t cell = a.sequence.column(b) * a.H + share.unit_begin;
        copy_or_zero(a.c + cell, a.c0 ? a.c0 + cell : nullptr, share.unit_end - share.unit_begin);
      }
    }
    begin_anew(0, a.h);
    if (a.sequence.columns) leave_out_padding();
  }

  // In a padded batch: the output of rows that have ended, and the final state of those without a step.
  void leave_out_padding() {
    const std::int64_t rows = my_rows(a.sequence.batch);
    for (std::int64_t t = 0; t < a.sequence.steps; ++t)
      for (std::int64_t j = my_rows(a.sequence.active(t)); j < rows; ++j)
        std::fill_n(a.output + a.sequence.place(t, row(j)) * a.output_ld + h_begin(), h_count(), Storage{});
    finish_rows(my_rows(a.sequence.active(0)), rows, a.h);
  }

  // Puts the state of rows that begin anew with a step where the step before left theirs.
  void begin_anew(std::int64_t step, Compute* h0) {
    if (!a.resets || step == a.sequence.steps) return;
    for (std::int64_t j = 0; j < my_rows(a.sequence.batch); ++j) {
      const std::int64_t b = row(j), units = share.unit_end - share.unit_begin;
      if (!a.sequence.begins_anew(a.resets, a.sequence.time(step), b)) continue;
      copy_or_zero(h0 + b * h_ld + h_begin(), a.reset_h ? a.reset_h + h_begin() : nullptr, h_count());
      if constexpr (Cell::carries_cell)
        copy_or_zero(a.c + b * a.H + share.unit_begin, a.reset_c ? a.reset_c + share.unit_begin : nullptr, units);
    }
  }

  bool run_step(std::int64_t step) {
    const std::int64_t t = a.sequence.time(step);
    const Compute* h0 = a.h + (step % 2) * a.sequence.batch * h_ld;
    Compute* h1 = a.h + (1 - step % 2) * a.sequence.batch * h_ld;
    update(step, h0, h1);
    if (!a.output) return meet();
    if (a.projection) {
      if (!meet()) return false;
      project(t, h1);
    }
    finish_rows(my_rows(a.sequence.first_ending(t)), my_rows(a.sequence.active(t)), h1);
    begin_anew(step + 1, h1);
    return meet();
  }

  // W x of a step's rows, [B, input_ld]: where its saved gates will be, or in its place among the chunk's steps.
  Compute* input_gates(std::int64_t step) const {
    const std::int64_t first =
        a.gates_in_place ? a.sequence.offset(a.sequence.time(step)) : (step - chunk_begin) * a.sequence.batch;
    return a.input_gates + first * a.input_ld;
  }

  bool input_in_step(std::int64_t t) const { return !a.input_gates || my_rows(a.sequence.active(t)) >= a.rows_in_step; }

  // W x of this worker's rows and units for the steps of a chunk. Rows of several steps go together, so that W is read
  // once for many of them. Nobody else reads the result, so there is nothing to wait for.
  void multiply_input(std::int64_t chunk_end) {
    using Input = Product<G, Compute>;
    const Compute* source[Input::row_block];
    Compute* result[Input::row_block];
    std::int64_t count = 0;
    const auto multiply = [&] {
      Input::run(count, {share.unit_begin / L, panels(share.unit_end)}, Input::nothing,
                 Input::row_by_row([&](std::int64_t j, std::int64_t panel, const V(&product)[G]) {
                   with_count<L>(panel * L, a.H, [&](auto units) {
#pragma GCC unroll 8
                     for (int g = 0; g < G; ++g) store(result[j] + g * a.H + panel * L, product[g], units);
                   });
                 }),
                 Input::term(Input::packed(a.input_weights, a.I), a.I, [&](std::int64_t j) { return source[j]; }));
      count = 0;
    };
    for (std::int64_t step = chunk_begin; step < chunk_end; ++step) {
      const std::int64_t t = a.sequence.time(step);
      if (input_in_step(t)) continue;
      for (std::int64_t j = 0; j < my_rows(a.sequence.active(t)); ++j) {
        source[count] = a.input + a.sequence.place(t, row(j)) * a.I;
        result[count] = input_gates(step) + row(j) * a.input_ld;
        if (++count == Input::row_block) multiply();
      }
    }
    multiply();
  }

  // Where the i-th of the values lies that are kept of a data row.
  Storage* saved(std::int64_t data_row, int i) const { return a.saved + (data_row * S + i) * a.H; }

  void update(std::int64_t step, const Compute* h0, Compute* h1) {
    const std::int64_t t = a.sequence.time(step);
    using Gates = Product<G, Compute>;
    const auto run = [&](auto soon, auto done, const auto&... input_term) {
      const std::int64_t rows = my_rows(a.sequence.active(t));
      Gates::run(rows, Gates::to_and_fro(share.unit_begin / L, panels(share.unit_end), a.P, step, rows), soon, done,
                 input_term...,
                 Gates::term(Gates::packed(a.recurrent, a.P), a.P, [&](std::int64_t j) { return h0 + row(j) * h_ld; }));
    };
    // The lines that the cell will write, so that no store waits for one that another processor has.
    const auto fetch_targets = [&](std::int64_t j, std::int64_t panel) {
      const std::int64_t b = row(j), unit = panel * L;
      if constexpr (Cell::carries_cell) __builtin_prefetch(a.c + a.sequence.column(b) * a.H + unit, 1);
      if (!a.output) return;
      if (a.projection) return __builtin_prefetch(a.unprojected + b * unprojected_ld + unit, 1);
      __builtin_prefetch(h1 + b * h_ld + unit, 1);
      __builtin_prefetch(a.output + a.sequence.place(t, b) * a.output_ld + unit, 1);
    };
    if (input_in_step(t)) {
      const std::int64_t offset = a.sequence.offset(t);
      run(
          [&](std::int64_t j, std::int64_t panel) {
            for (int i = 0; a.saved && i < S; ++i) __builtin_prefetch(saved(offset + row(j), i) + panel * L, 1);
            fetch_targets(j, panel);
          },
          [&](const Tile& tile, const V(*sums)[G]) {
            update_tile(t, tile, sums + Gates::row_block, h0, h1, [](const V(*product)[G], auto, auto, int g, auto) {
              return (product - Gates::row_block)[0][g];
            });
          },
          Gates::term(Gates::packed(a.input_weights, a.I), a.I,
                      [&](std::int64_t j) { return a.input + a.sequence.place(t, row(j)) * a.I; }));
      return;
    }
    const Compute* const input = input_gates(step);
    const auto place = [=, this](std::int64_t b, std::int64_t unit, int g) {
      return input + b * a.input_ld + g * a.H + unit;
    };
    run(
        [&](std::int64_t j, std::int64_t panel) {
          for (int g = 0; g < G; ++g) __builtin_prefetch(place(row(j), panel * L, g));
          fetch_targets(j, panel);
        },
        [&](const Tile& tile, const V(*sums)[G]) {
          update_tile(t, tile, sums, h0, h1, [=](auto, std::int64_t b, std::int64_t unit, int g, auto count) {
            return load<V>(place(b, unit, g), count);
          });
        });
  }

  // The cells of a tile. input(product, b, unit, g, count) is W x of a block of row b.
  template <class Input>
  void update_tile(std::int64_t t, const Tile& tile, const V (*products)[G], const Compute* h0, Compute* h1,
                   Input input) {
    // Only the last panel may have units that do not exist: it is then by itself.
    if (tile.panels > 1 && (tile.panel + tile.panels) * L > a.H) {
      for (int p = 0; p < tile.panels; ++p)
        update_tile(t, {tile.row, tile.panel + p, tile.rows, 1}, products + p * tile.rows, h0, h1, input);
      return;
    }
    with_count<L>(tile.panel * L, a.H, [&](auto count) {
      if (tile.rows > 1) update_pairs<false>(t, tile, count, products, h0, h1, input);
      if (tile.rows % 2) update_pairs<true>(t, tile, count, products, h0, h1, input);
    });
  }

  // The rows of a tile two by two; or `last`, the one that then is left, its panels two by two. Two functions, because
  // their registers must not be planned together.
  template <bool last, class Count, class Input>
  [[gnu::noinline]] void update_pairs(std::int64_t t, const Tile& tile, Count count, const V (*products)[G],
                                      const Compute* h0, Compute* h1, Input input) {
    // f(blocks, k, stride) takes the k-th of the tile's products and, of two, that `stride` further on.
    const auto each = [&](auto f) {
      if constexpr (last) {
        const int r = tile.rows - 1;
        const std::int64_t b = row(tile.row + r);
        int p = 0;
        for (; p + 1 < tile.panels; p += 2)
          f(Blocks<Twin<V>, Count, true>{{b, b}, (tile.panel + p) * L, count}, p * tile.rows + r, tile.rows);
        if (p < tile.panels) f(Blocks<V, Count, false>{{b, b}, (tile.panel + p) * L, count}, p * tile.rows + r, 1);
      } else {
        for (int p = 0; p < tile.panels; ++p)
          for (int r = 0; r + 1 < tile.rows; r += 2)
            f(Blocks<Twin<V>, Count, false>{{row(tile.row + r), row(tile.row + r + 1)}, (tile.panel + p) * L, count},
              p * tile.rows + r, 1);
      }
    };
    V kept[Product<G, Compute>::max_rows][S + 1];
    if constexpr (Cell::carries_cell) {
      // The output has an activation more, which waits for all the others: so those of the tile come together.
      each([&](const auto& blocks, int k, int stride) {
        update_units(t, blocks, products + k, stride, h0, kept + k, input);
      });
      if (!a.output) return;
      each([&](const auto& blocks, int k, int stride) { output_units(t, blocks, stride, kept + k, h0, h1); });
    } else {
      each([&](const auto& blocks, int k, int stride) {
        update_units(t, blocks, products + k, stride, h0, kept, input);
        if (a.output) output_units(t, blocks, stride, kept, h0, h1);
      });
    }
  }

  // A block of units of a row (W = V), or two blocks (W = Twin<V>), of two rows or beside each other in one: a cell's
  // values in some matrix, in which f(b) is where row b begins.
  template <class W, class Count, bool beside>
  struct Blocks {
    std::int64_t b[2], unit;
    Count count;

    LSTM_FUSED_INLINE std::int64_t row(int i) const { return b[beside ? 0 : i]; }
    LSTM_FUSED_INLINE std::int64_t unit_of(int i) const { return unit + (beside ? i * L : 0); }

    template <class F>
    LSTM_FUSED_INLINE W read(F f) const {
      return gather<W>([&](int i) { return load<V>(f(row(i)) + unit_of(i), count); });
    }
    template <class F>
    LSTM_FUSED_INLINE void write(const W& value, F f) const {
      scatter(value, [&](int i, const V& v) { store(f(row(i)) + unit_of(i), v, count); });
    }
  };

  // What `output_units` needs is kept, s and c_t.
  template <class W, class Count, bool beside, class Input>
  LSTM_FUSED_INLINE void update_units(std::int64_t t, const Blocks<W, Count, beside>& blocks, const V (*products)[G],
                                      int stride, const Compute* h0, V (*kept)[S + 1], Input input) {
    W x[G], r[G], s[S], h_before{}, c_before{}, c_after{};
    const std::int64_t offset = a.sequence.offset(t);
    const auto cell = [&](std::int64_t b) { return a.c + a.sequence.column(b) * a.H; };
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      x[g] = gather<W>([&](int i) {
               return input(products + i * stride, blocks.row(i), blocks.unit_of(i), g, blocks.count);
             }) +
             blocks.read([&](auto) { return a.bias_x + g * a.H; });
      r[g] = gather<W>([&](int i) { return products[i * stride][g]; }) +
             blocks.read([&](auto) { return a.bias_h + g * a.H; });
    }
    if constexpr (Cell::reads_h0) h_before = blocks.read([&](auto b) { return h0 + b * h_ld; });
    if constexpr (Cell::carries_cell) c_before = blocks.read(cell);
    Cell::update(x, r, h_before, c_before, s, c_after);
    if constexpr (Cell::carries_cell) {
      c_after = clamp<W>(c_after, a.cell_clip);
      if (a.output) blocks.write(c_after, cell);
      if (a.cells) blocks.write(c_after, [&](auto b) { return a.cells + (offset + b) * a.H; });
    }
#pragma GCC unroll 8
    for (int i = 0; i < S; ++i) {
      if (a.saved) blocks.write(s[i], [&](auto b) { return saved(offset + b, i); });
      scatter(s[i], [&](int n, const V& v) { kept[n * stride][i] = v; });
    }
    scatter(c_after, [&](int n, const V& v) { kept[n * stride][S] = v; });
  }

  template <class W, class Count, bool beside>
  LSTM_FUSED_INLINE void output_units(std::int64_t t, const Blocks<W, Count, beside>& blocks, int stride,
                                      const V (*kept)[S + 1], const Compute* h0, Compute* h1) {
    W s[S], h_before{};
#pragma GCC unroll 8
    for (int i = 0; i < S; ++i) s[i] = gather<W>([&](int n) { return kept[n * stride][i]; });
    if constexpr (Cell::reads_h0) h_before = blocks.read([&](auto b) { return h0 + b * h_ld; });
    const W h = Cell::output(s, h_before, gather<W>([&](int n) { return kept[n * stride][S]; }));
    if (a.projection) return blocks.write(h, [&](auto b) { return a.unprojected + b * unprojected_ld; });
    blocks.write(h, [&](auto b) { return h1 + b * h_ld; });
    blocks.write(h, [&](auto b) { return a.output + a.sequence.place(t, b) * a.output_ld; });
  }

  void project(std::int64_t t, Compute* h1) {
    static constexpr int width = projection_vectors * L;
    using Projection = Product<projection_vectors, Compute>;
    Projection::run(
        my_rows(a.sequence.active(t)), {share.projected_begin / width, (share.projected_end + width - 1) / width},
        Projection::nothing,
        Projection::row_by_row([&](std::int64_t j, std::int64_t panel, const V(&product)[projection_vectors]) {
          for (int v = 0; v < projection_vectors; ++v) {
            const std::int64_t p = panel * width + v * L;
            if (p >= a.P) return;
            with_count<L>(p, a.P, [&](auto count) {
              store(h1 + row(j) * h_ld + p, product[v], count);
              store(a.output + a.sequence.place(t, row(j)) * a.output_ld + p, product[v], count);
            });
          }
        }),
        Projection::term(Projection::packed(a.projection, a.H), a.H,
                         [&](std::int64_t j) { return a.unprojected + row(j) * unprojected_ld; }));
  }

  // The final states of this worker's rows [begin, end).
  void finish_rows(std::int64_t begin, std::int64_t end, const Compute* h1) {
    for (std::int64_t j = begin; j < end; ++j) {
      const std::int64_t from = row(j) * h_ld + h_begin(), to = a.sequence.column(row(j)) * a.P + h_begin();
      std::memcpy(a.h_n + to, h1 + from, h_count() * sizeof(Compute));
    }
  }

  const ForwardArgs<Storage>& a;
  const std::int64_t h_ld = row_stride<Compute>(a.P), unprojected_ld = row_stride<Compute>(a.H);
  std::int64_t chunk_begin = 0;
};

}  // namespace lstm_fused::LSTM_FUSED_TARGET
