// What a recurrence kernel is told: plain pointers with their shapes, and which part of the work is its.
// T steps, B rows, I inputs, H hidden units, P = size of h (H unless projected), G gates, S saved values
// per unit. N = T*B data rows, or the sum of batch_sizes for packed data. No torch here.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#ifdef __CUDACC__
#define LSTM_FUSED_ANYWHERE __host__ __device__
#else
#define LSTM_FUSED_ANYWHERE
#endif

namespace lstm_fused {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

// Tensors are stored in `Storage`; arithmetic and carried state are in compute_t<Storage>.
template <class Storage>
using compute_t = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

// Clips at this are none, and there are never so many rows.
template <class Compute>
constexpr Compute no_clip = std::numeric_limits<Compute>::infinity();
inline constexpr std::int64_t unlimited = std::numeric_limits<std::int64_t>::max();

// Which data rows belong to which step. The rows of a step are a prefix of the batch.
struct Sequence {
  std::int64_t steps = 0;                       // T
  std::int64_t batch = 0;                       // B
  bool reverse = false;                         // time runs from T-1 to 0
  const std::int64_t* batch_sizes = nullptr;    // [T], non-increasing; null: B at every step
  const std::int64_t* offsets = nullptr;        // [T], data row of row 0 at step t; null: t*B

  LSTM_FUSED_ANYWHERE std::int64_t time(std::int64_t step) const { return reverse ? steps - 1 - step : step; }
  LSTM_FUSED_ANYWHERE std::int64_t active(std::int64_t t) const { return batch_sizes ? batch_sizes[t] : batch; }
  LSTM_FUSED_ANYWHERE std::int64_t offset(std::int64_t t) const { return offsets ? offsets[t] : t * batch; }
  // Rows that were in step t and are in no later step, in the direction of time: [first, active(t)).
  LSTM_FUSED_ANYWHERE std::int64_t first_ending(std::int64_t t) const {
    if (reverse) return t == 0 ? 0 : active(t);
    return t + 1 < steps ? active(t + 1) : 0;
  }
  // Whether row b begins anew at step t. `resets` [T, B] says before which steps, in time, it is cut; in reverse, what
  // follows the cut came first.
  LSTM_FUSED_ANYWHERE bool begins_anew(const bool* resets, std::int64_t t, std::int64_t b) const {
    const std::int64_t cut = reverse ? t + 1 : t;
    return resets && cut < steps && resets[cut * batch + b];
  }
};

// The same, where input and output may be a padded batch [T, B, *] whose rows run for steps of their own. Everything
// else that has data rows has none for the padding.
struct PlacedSequence : Sequence {
  const std::int64_t* columns = nullptr;  // [B], where the rows, the longest first, stand in the batch; null: packed

  std::int64_t column(std::int64_t b) const { return columns ? columns[b] : b; }
  // Which row of input and output belongs to row b at step t.
  std::int64_t place(std::int64_t t, std::int64_t b) const { return columns ? t * batch + columns[b] : offset(t) + b; }
};

// The rows of a product's source lie this many elements apart: an odd number of cache lines, because rows at a power of
// two would compete for the same few sets of L1.
template <class Compute>
constexpr std::int64_t row_stride(std::int64_t width) {
  constexpr std::int64_t line = 64 / sizeof(Compute);
  return ((width + line - 1) / line | 1) * line;
}

// A matrix as a product reads it, a panel of outputs after the other: output j of panel p for input k lies at
// data[p * panel + k * input + j].
template <class Compute>
struct Panels {
  const Compute* data = nullptr;
  std::int64_t panel = 0, input = 0;

  // A packed matrix, [panels, K, width].
  static Panels packed(const Compute* data, std::int64_t K, std::int64_t width) { return {data, K * width, width}; }
};

// One direction of one layer, forward. Without an output, for one step: what is `saved`, and nothing else.
template <class Storage>
struct ForwardArgs {
  using Compute = compute_t<Storage>;
  PlacedSequence sequence;
  std::int64_t I = 0, H = 0, P = 0;
  const Compute* input = nullptr;          // [N, I], or the padded batch
  const Compute* input_weights = nullptr;  // W, packed by columns: [H/lanes, I, G*lanes]
  const Compute* recurrent = nullptr;      // U, packed by columns: [H/lanes, P, G*lanes]
  const Compute* projection = nullptr;   // W_hr, packed by columns: [P/panel, H, panel]; null: none
  const Compute* bias_x = nullptr;       // [G*H]; null, for a GPU alone: zero
  const Compute* bias_h = nullptr;       // [G*H]; null, for a GPU alone: zero
  const Compute* h0 = nullptr;           // [B, P]; null: zero
  const Compute* c0 = nullptr;           // [B, H]; null: zero
  const bool* resets = nullptr;          // [T, B], see Sequence::begins_anew; null: nowhere
  const Compute* reset_h = nullptr;      // [P], the state of rows that begin anew; null: zero
  const Compute* reset_c = nullptr;      // [H]; null: zero
  std::int64_t chunk_steps = 1;          // steps whose W x is computed together
  std::int64_t rows_in_step = unlimited; // a worker with so many rows in a step multiplies their W x within it
  bool gates_in_place = false;           // W x stands where the saved gates will: input_gates is saved
  Compute* input_gates = nullptr;        // [N, input_ld] in place, else [chunk_steps * B, input_ld]; null: all W x
                                         // is multiplied within its step
  std::int64_t input_ld = 0;
  Storage* saved = nullptr;              // [N, S*H], may be the memory of input_gates; null: not kept
  Compute* cells = nullptr;              // [N, H]: c_t; null: not kept
  Storage* output = nullptr;             // [N, output_ld], or the padded batch: zero where a row has ended
  std::int64_t output_ld = 0;
  Compute* h = nullptr;                  // [2, B, row_stride(P)]: step s reads half s % 2 and writes the other
  Compute* h_n = nullptr;                // [B, P]
  Compute* c = nullptr;                  // [B, H]: c_{t-1}, and c_n at the end
  Compute* unprojected = nullptr;        // [B, row_stride(H)]: o * tanh(c); only with a projection
  Compute cell_clip = no_clip<Compute>;  // c_t is kept within +-cell_clip
};

// One direction of one layer, backward.
template <class Storage>
struct BackwardArgs {
  using Compute = compute_t<Storage>;
  PlacedSequence sequence;
  std::int64_t H = 0, P = 0;
  Panels<Compute> recurrent;             // U along its rows: G*H inputs, P outputs
  Panels<Compute> projection;            // W_hr along its rows: P inputs, H outputs; null: none
  const Storage* saved = nullptr;        // [N, S*H]
  const Compute* cells = nullptr;        // [N, H]
  const Storage* output = nullptr;       // [N, output_ld], or the padded batch: h_t
  std::int64_t output_ld = 0;
  const Storage* h0 = nullptr;           // [B, P]; null: zero
  const Compute* c0 = nullptr;           // [B, H]; null: zero
  const bool* resets = nullptr;          // forward's
  const Storage* reset_h = nullptr;      // [P]; null: zero
  const Compute* reset_c = nullptr;      // [H]; null: zero
  const Storage* d_output = nullptr;     // [N, d_output_ld], or the padded batch; null: zero
  std::int64_t d_output_ld = 0;
  const Compute* d_cells = nullptr;      // [N, H]: dL/dc_t but by what follows from it; null: zero
  Compute* dh = nullptr;                 // [B, P]: dL/dh_n on entry, dL/dh0 at the end
  Compute* dc = nullptr;                 // [B, H]: dL/dc_n on entry, dL/dc0 at the end
  Compute* d_reset_h = nullptr;          // [B, P]: dL/dreset_h of each row is added to it; null: not needed
  Compute* d_reset_c = nullptr;          // [B, H]
  bool need_dh0 = true;                  // else the product of the first step is left out
  Compute* d_gates = nullptr;            // [N, row_stride(S*H)]: gradients before the activations
  Compute* d_projected = nullptr;        // [N, row_stride(P)]: dL/dh_t; only with a projection
  Compute* unprojected = nullptr;        // [N, H]: o * tanh(c), computed again; only with a projection
  Compute cell_clip = no_clip<Compute>;  // forward's: where c_t lies on it, no gradient goes on
  Compute grad_clip = no_clip<Compute>;  // every element of d_gates is kept within +-grad_clip
};

// One time step of one direction with its derivative along a tangent: every row is two, its value and its tangent.
template <class Compute>
struct DualForwardArgs {
  std::int64_t H = 0;
  const Compute* x = nullptr;            // [rows, 2, G*H]: W x
  const Compute* u = nullptr;            // [rows, 2, G*H]: U h0
  const Compute* bias_x = nullptr;       // [2, G*H] or null
  const Compute* bias_h = nullptr;       // [2, G*H] or null
  const Compute* h0 = nullptr;           // [rows, 2, H]
  const Compute* c0 = nullptr;           // [rows, 2, H]
  Compute* saved = nullptr;              // [rows, 2, S*H]
  Compute* c1 = nullptr;                 // [rows, 2, H]
  Compute* h1 = nullptr;                 // [rows, 2, H], before a projection
  Compute cell_clip = no_clip<Compute>;  // as in ForwardArgs
};

template <class Compute>
struct DualBackwardArgs {
  std::int64_t H = 0;
  const Compute* saved = nullptr;        // [rows, 2, S*H]
  const Compute* h0 = nullptr;           // [rows, 2, H]
  const Compute* c0 = nullptr;           // [rows, 2, H]
  const Compute* c1 = nullptr;           // [rows, 2, H]
  const Compute* dh1 = nullptr;          // [rows, 2, H]: dL/dh1
  Compute* dc = nullptr;                 // [rows, 2, H]: dL/dc1 on entry, dL/dc0 at the end
  Compute* dh0 = nullptr;                // [rows, 2, H]: the part of dL/dh0 beside that through U; may be dh1
  Compute* d_x = nullptr;                // [rows, 2, G*H]: at W x
  Compute* d_u = nullptr;                // [rows, 2, G*H]: at U h0; d_x where they are the same
  Compute cell_clip = no_clip<Compute>;  // as in BackwardArgs
};

// A product of many rows with one matrix: out = rows W, or += with `add`.
template <class Compute>
struct RowsArgs {
  std::int64_t K = 0, outputs = 0;
  const Compute* rows = nullptr;  // [N, rows_ld], of which K columns
  std::int64_t rows_ld = 0;
  Panels<Compute> weights;        // along the rows of W [K, outputs]
  Compute* out = nullptr;         // [N, outputs]
  const std::int64_t* places = nullptr;  // [N], which row of out is the result of each; null: its own
  bool add = false;
};

// A sum over data rows, the gradient of a weight matrix: out = left^T right, or += with `add`.
template <class Compute>
struct OuterSumArgs {
  std::int64_t N = 0, outputs = 0;
  const Compute* left = nullptr;  // [N, left_ld]: a column for each row of out
  std::int64_t left_ld = 0;
  const Compute* right = nullptr;  // [N, right_ld], of which `outputs` columns
  std::int64_t right_ld = 0;
  const Compute* const* right_rows = nullptr;  // instead of `right`: where its rows lie, each right_ld-th of these
  Compute* out = nullptr;  // [rows, outputs]
  bool add = false;
};

// One time step of one direction, on weights in their natural layout.
inline constexpr int max_step_batch = 8;  // more rows are worth packing the weights

template <class Storage>
struct StepArgs {
  std::int64_t batch = 0, I = 0, H = 0;   // B <= max_step_batch
  const Storage* w_ih = nullptr;          // [G*H, I]
  const Storage* w_hh = nullptr;          // [G*H, H]
  const Storage* b_ih = nullptr;          // [G*H] or null
  const Storage* b_hh = nullptr;          // [G*H] or null
  const Storage* input = nullptr;         // [B, I]
  const Storage* h0 = nullptr;            // [B, H]; null: zero
  const Storage* c0 = nullptr;            // [B, H]; null: zero
  Storage* h1 = nullptr;                  // [B, H]
  Storage* c1 = nullptr;                  // [B, H]
  Storage* saved = nullptr;               // [B, S*H]; null: not kept
  compute_t<Storage>* cells = nullptr;    // [B, H]; null: not kept
  compute_t<Storage> cell_clip = no_clip<compute_t<Storage>>;  // as in ForwardArgs
  bool last_unit_first = false;           // an order, which changes no result
};

}  // namespace lstm_fused
