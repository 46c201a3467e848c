// What backward sums over all data rows, and what it multiplies them with: weight gradients, bias gradients and the
// gradient of the input. Every sum runs over the rows in order and in blocks of fixed length, whatever the number of
// threads; a block is summed apart, because one running sum over tens of thousands of rows gathers rounding errors.
#pragma once

#include "product.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

inline constexpr int sum_vectors = 2;  // a panel's width in these products

// Rows [row_begin, row_end) of out = rows W, for a range of panels of W.
template <class Compute>
void multiply_rows(const RowsArgs<Compute>& a, std::int64_t row_begin, std::int64_t row_end, std::int64_t panel_begin,
                   std::int64_t panel_end) {
  using Columns = Product<sum_vectors, Compute>;
  using V = Vec<Compute>;
  Columns::run(row_end - row_begin, {panel_begin, panel_end}, Columns::nothing,
               Columns::row_by_row([&](std::int64_t j, std::int64_t panel, const V(&product)[sum_vectors]) {
                 for (int v = 0; v < sum_vectors; ++v) {
                   const std::int64_t column = panel * Columns::panel_width + v * lanes<V>;
                   if (column >= a.outputs) return;
                   with_count<lanes<V>>(column, a.outputs, [&](auto count) {
                     const std::int64_t row = row_begin + j;
                     Compute* to = a.out + (a.places ? a.places[row] : row) * a.outputs + column;
                     store(to, a.add ? load<V>(to, count) + product[v] : product[v], count);
                   });
                 }
               }),
               Columns::term(a.weights, a.K, [&](std::int64_t j) { return a.rows + (row_begin + j) * a.rows_ld; }));
}

// Rows of out = left^T right. A block of `right` is rearranged into panels that stay in L2, and for every tile of out
// the strip of `left` that it needs into a tile that stays in L1.
template <class Compute>
class OuterSum {
  using Tile = Product<sum_vectors, Compute>;
  using V = Vec<Compute>;
  static constexpr int L = lanes<V>, width = Tile::panel_width;
  static constexpr std::int64_t block_rows = 256, block_columns = 512 / width * width;

 public:
  static constexpr std::int64_t scratch_size = block_rows * (block_columns + Tile::max_rows);

  OuterSum(const OuterSumArgs<Compute>& args, Compute* scratch)
      : a(args), panels(scratch), strip(scratch + block_rows * block_columns) {}

  void run(std::int64_t begin, std::int64_t end) {
    if (a.N <= few_rows) return add_few(begin, end);
    for (std::int64_t column = 0; column < a.outputs; column += block_columns)
      for (std::int64_t row = 0; row < a.N; row += block_rows) add_block(row, column, begin, end);
  }

 private:
  static constexpr std::int64_t few_rows = 8;

  const Compute* right(std::int64_t row) const {
    return a.right_rows ? a.right_rows[row * a.right_ld] : a.right + row * a.right_ld;
  }

  // Few data rows leave nothing to gain by tiles: out is written from front to back.
  void add_few(std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      for (std::int64_t column = 0; column < a.outputs; column += L)
        with_count<L>(column, a.outputs, [&](auto count) {
          Compute* to = a.out + r * a.outputs + column;
          V sum{};
          for (std::int64_t k = 0; k < a.N; ++k)
            sum += broadcast<V>(a.left[k * a.left_ld + r]) * load<V>(right(k) + column, count);
          store(to, a.add ? load<V>(to, count) + sum : sum, count);
        });
  }

  void add_block(std::int64_t row, std::int64_t column, std::int64_t begin, std::int64_t end) {
    const std::int64_t rows = std::min(block_rows, a.N - row);
    const std::int64_t columns = std::min(block_columns, a.outputs - column);
    const std::int64_t tiles = (end - begin + Tile::max_rows - 1) / Tile::max_rows;
    pack_panels(row, rows, column, columns);
    const Parts tile_rows(end - begin, tiles);
    for (std::int64_t i = 0; i < tiles; ++i) {
      const std::int64_t first = begin + tile_rows.begin(i), next = begin + tile_rows.begin(i + 1);
      Tile::with_rows(next - first, [&](auto R) { add_tiles(R, first, row, rows, column, columns); });
    }
  }

  // As pack_rows does it.
  void pack_panels(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) {
    const std::int64_t whole = (columns + width - 1) / width * width;
    for (std::int64_t k = 0; k < rows; ++k) {
      const Compute* const from = right(row + k) + column;
      for (std::int64_t i = 0; i < whole; i += L) {
        V values{};
        if (i < columns) with_count<L>(i, columns, [&](auto count) { values = load<V>(from + i, count); });
        store<V>(panels + (i / width * rows + k) * width + i % width, values);
      }
    }
  }

  template <class Rows>
  void add_tiles(Rows, std::int64_t first, std::int64_t row, std::int64_t rows, std::int64_t column,
                 std::int64_t columns) {
    constexpr int R = Rows::value;
    for (std::int64_t k = 0; k < rows; ++k) {
      const Compute* from = a.left + (row + k) * a.left_ld + first;
      std::memcpy(strip + k * R, from, R * sizeof(Compute));
      __builtin_prefetch(from + 2 * R, 0, 2);  // the next strip's, into L2
    }
    for (std::int64_t i = 0; i < columns; i += width) {
      for (int r = 0; r < R; ++r)  // fetched while the product runs
        for (int v = 0; v < sum_vectors; ++v)
          __builtin_prefetch(a.out + (first + r) * a.outputs + column + i + v * L, 1);
      V sums[R][sum_vectors];
      Tile::template multiply<R, 1>(RowsTogether<Compute, R>{strip}, Tile::packed(panels + i * rows, rows), rows, true,
                                    sums, strip);
      for (int r = 0; r < R; ++r)
        for (int v = 0; v < sum_vectors; ++v) {
          const std::int64_t at = column + i + v * L;
          if (at >= a.outputs) continue;
          with_count<L>(at, a.outputs, [&](auto count) {
            Compute* to = a.out + (first + r) * a.outputs + at;
            store(to, row > 0 || a.add ? load<V>(to, count) + sums[r][v] : sums[r][v], count);
          });
        }
    }
  }

  const OuterSumArgs<Compute>& a;
  Compute* const panels;  // [block_columns / width, rows of the block, width]
  Compute* const strip;   // [rows of the block, rows of the tile]
};

// Sums of columns, in blocks of `run` rows.
template <class V, int together, class Count>
LSTM_FUSED_INLINE void sum_block(const element_t<V>* matrix, std::int64_t rows, std::int64_t ld, Count count,
                                 element_t<V>* sums) {
  constexpr std::int64_t run = 64;
  V total[together] = {};
  for (std::int64_t begin = 0; begin < rows; begin += run) {
    V sum[together] = {};
    for (std::int64_t row = begin; row < std::min(begin + run, rows); ++row)
#pragma GCC unroll 4
      for (int v = 0; v < together; ++v) sum[v] += load<V>(matrix + row * ld + v * lanes<V>, count);
    for (int v = 0; v < together; ++v) total[v] += sum[v];
  }
  for (int v = 0; v < together; ++v) store(sums + v * lanes<V>, total[v], count);
}

template <class Compute>
void sum_columns(const Compute* matrix, std::int64_t rows, std::int64_t ld, std::int64_t begin, std::int64_t end,
                 Compute* sums) {
  using V = Vec<Compute>;
  constexpr int L = lanes<V>, together = 4;
  std::int64_t j = begin;
  for (; j + together * L <= end; j += together * L)
    sum_block<V, together>(matrix + j, rows, ld, AllLanes<L>{}, sums + j);
  for (; j < end; j += L)
    with_count<L>(j, end, [&](auto count) { sum_block<V, 1>(matrix + j, rows, ld, count, sums + j); });
}

}  // namespace lstm_fused::LSTM_FUSED_TARGET
