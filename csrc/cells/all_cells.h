// The list of cells. A new cell is a header of its own and one line in each of the two places below.
#pragma once

#include <string_view>

#include "gru.h"
#include "lstm.h"

namespace lstm_fused::LSTM_FUSED_TARGET {

template <class Cell>
inline constexpr std::string_view cell_name = "";
template <>
inline constexpr std::string_view cell_name<Lstm> = "lstm";
template <>
inline constexpr std::string_view cell_name<Gru> = "gru";

// Whether the gradients at U h are those at W x.
template <class Cell>
constexpr bool same_columns() {
  for (int g = 0; g < Cell::gates; ++g)
    if (Cell::recurrent_column[g] != g) return false;
  return true;
}

// Calls f(Cell{}) for the cell of that name; false where there is none.
template <class F>
bool with_cell(std::string_view name, F&& f) {
  const auto attempt = [&](auto cell) {
    if (name != cell_name<decltype(cell)>) return false;
    f(cell);
    return true;
  };
  return attempt(Lstm{}) || attempt(Gru{});
}

}  // namespace lstm_fused::LSTM_FUSED_TARGET
