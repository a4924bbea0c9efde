// The linear state of one head, a chunk of tokens at a time:
//
//   S ← diag(a_t)·S + k_t·x_tᵀ       x_t = v_t; under the delta rule β_t·(v_t − Sᵀk_t), S decayed
//   z ← diag(a_t)·z + k_t
//   o_t = Sᵀq_t,  den_t = z·q_t      after step t; or before it, (q_t·diag(u)·k_t)·v_t added
//
// S [Dk, Dv], a_t = 2^decay_t, one per token or one per channel of the keys. Within a chunk that
// begins with S₀, with G_t the sum of decays up to and including t,
//
//   o_t = (q_t ∘ 2^G_t)ᵀ·S₀ + Σ_{j ≤ t} w_tj·x_j       w_tj = Σ_c q_tc·k_jc·2^(G_tc − G_jc)
//   S_C = diag(2^G_C)·S₀ + Σ_j (k_j ∘ 2^(G_C − G_j))·x_jᵀ
//
// so that all of it is products of small matrices; the x of the delta rule solve a triangular
// system (the WY form of Yang et al., "Parallelizing Linear Transformers with the Delta Rule over
// Sequence Length", 2024). A chunk of one token is the recurrence itself.
//
// 2^(G_t − G_j) per channel is split between the factors, q∘2^(G_t − R) and k∘2^(R − G_j), at a
// reference R that keeps both in range: at the beginning of the chunk while decays are mild;
// otherwise the chunk is halved until they are, with R in the middle for the pairs across the
// halves. Sums of decays are taken from R on, so that a strong decay (a reset) earlier in the chunk
// costs no precision.
#pragma once

#include <algorithm>

#include "../../backend/products.hpp"
#include "../../backend/vectors.hpp"
#include "../../core/workspace.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// What decays a state: nothing, one factor per token, or one per token and channel of the keys.
enum class decay_kind { none, token, channel };

namespace detail {

struct chunk_shape {
  index_t capacity = 0;  // tokens of a chunk at most
  index_t keys = 0;      // Dk
  index_t values = 0;    // Dv
  decay_kind decay = decay_kind::none;
  bool delta = false;       // x_t = β_t·(v_t − Sᵀk_t)
  bool before = false;      // reads see the state before their token
  bool normalised = false;  // z and denominators are kept
};

// Rows in scratch memory are padded to whole vectors with zeros. The caller fills k, v, decay and
// strength, calls begin; for each set of queries fills q, calls read and takes out and denominator;
// and calls end.
template <class Backend, class Real>
class chunk_kernel {
 public:
  using vectors = backend::vectors<Backend, Real>;
  using products = backend::products<Backend, Real>;
  using pack = typename vectors::pack_type;
  static constexpr index_t lanes = vectors::lanes;

  Real* q = nullptr;            // [capacity][key_row]
  Real* k = nullptr;            // [capacity][key_row]
  Real* v = nullptr;            // [capacity][value_row]; x after begin
  Real* decay = nullptr;        // log2 of the decays, [capacity] or [capacity][key_row]
  Real* strength = nullptr;     // [capacity] of β, for the delta rule
  Real* out = nullptr;          // [capacity][value_row]
  Real* denominator = nullptr;  // [capacity]
  Real* state = nullptr;        // [keys][value_row]
  Real* key_sum = nullptr;      // [key_row]
  const Real* bonus = nullptr;  // u [key_row]; null without

  index_t key_row() const { return key_row_; }
  index_t value_row() const { return value_row_; }

  chunk_kernel() = default;
  chunk_kernel(const chunk_shape& shape, heed::detail::bump& memory)
      : shape_(shape),
        key_row_(vectors::padded(shape.keys)),
        value_row_(vectors::padded(shape.values)),
        token_row_(vectors::padded(shape.capacity)) {
    const index_t tokens = shape.capacity;
    q = memory.take<Real>(tokens * key_row_);
    k = memory.take<Real>(token_row_ * key_row_);
    v = memory.take<Real>(tokens * value_row_);
    if (shape.decay == decay_kind::token) decay = memory.take<Real>(token_row_);
    if (shape.decay == decay_kind::channel) decay = memory.take<Real>(tokens * key_row_);
    strength = memory.take<Real>(tokens);
    out = memory.take<Real>(tokens * value_row_);
    denominator = memory.take<Real>(tokens);
    state = memory.take<Real>(shape.keys * value_row_);
    key_sum = memory.take<Real>(key_row_);
    left_ = memory.take<Real>(token_row_ * key_row_);
    keys_ = memory.take<Real>(key_row_ * token_row_);
    weights_ = memory.take<Real>(tokens * token_row_);
    factors_ = memory.take<Real>(token_row_);
    fade_ = memory.take<Real>(std::max(token_row_, key_row_));
  }

  void begin(index_t count) {
    count_ = count;
    if (count == 1) {
      if (!shape_.before) advance();
      return;
    }
    if (shape_.decay == decay_kind::token) {
      for (index_t t = 0; t < count; t += lanes) {
        store_pack(factors_ + t, vectors::exp2(load_pack<pack>(decay + t)));
      }
    }
    clear(k + count * key_row_, (vectors::padded(count) - count) * key_row_);
    mild_ = shape_.decay != decay_kind::channel || is_mild(0, count);
    if (mild_) transpose_keys(0, count);
    if (shape_.delta) solve();
    finite_ = vectors::all_finite(v, count * value_row_);
  }

  void read() {
    if (count_ == 1) return read_one();
    const Real* faded = fade(q, shape_.before);
    read_state(faded, count_);
    weigh(q, faded, shape_.before);
    if (bonus != nullptr) {
      for (index_t t = 0; t < count_; ++t) weights_[t * token_row_ + t] = bonus_weight(t);
    }
    for (index_t t = 0; shape_.normalised && t < count_; ++t) {
      denominator[t] += vectors::sum(weights_ + t * token_row_, vectors::padded(t + 1));
    }
    // Weights of later tokens are 0; where a value is not finite, they must not even be multiplied.
    const index_t height = finite_ ? block : 1;
    for (index_t t = 0; t < count_; t += height) {
      const index_t rows = std::min(height, count_ - t);
      products::add(rows, value_row_, t + rows, weights_ + t * token_row_, token_row_, 1, v,
                    value_row_, out + t * value_row_, value_row_);
    }
  }

  void end() {
    if (count_ == 1) {
      if (shape_.before) advance();
    } else {
      write(fade_to_end(), count_);
    }
  }

  // Without order (every query reads every key): what begin, read and end come to.
  void write_all(index_t count) { write(k, count); }
  void read_all(index_t count) { read_state(q, count); }

 private:
  static constexpr index_t block = 32;  // rows whose weights are computed up to the same column
  static constexpr Real mildest = -60;  // sum of decays (log2) that one reference is enough for
  static constexpr Real smallest = sizeof(Real) == 4 ? Real(1e-35) : Real(1e-300);

  HEED_INLINE static pack at(const Real* row, index_t i) { return load_pack<pack>(row + i); }

  static void clear(Real* row, index_t n) { vectors::clear(row, n); }
  Real bonus_weight(index_t t) const {
    pack sum(Real(0));
    for (index_t c = 0; c < key_row_; c += lanes) {
      const pack qk = at(q + t * key_row_, c) * at(k + t * key_row_, c);
      sum = vectors::fma(qk, at(bonus, c), sum);
    }
    return sum_lanes(sum);
  }

  // out = xᵀS, denominator = x·z
  void read_state(const Real* x, index_t count) {
    clear(out, count * value_row_);
    products::add(count, value_row_, shape_.keys, x, key_row_, 1, state, value_row_, out,
                  value_row_);
    for (index_t t = 0; shape_.normalised && t < count; ++t) {
      denominator[t] = vectors::dot(x + t * key_row_, key_sum, key_row_);
    }
  }
  // S += Σ x·vᵀ, z += Σ x
  void write(const Real* x, index_t count) {
    products::add(shape_.keys, value_row_, count, x, 1, key_row_, v, value_row_, state, value_row_);
    for (index_t t = 0; shape_.normalised && t < count; ++t) {
      vectors::add(x + t * key_row_, key_row_, key_sum);
    }
  }

  // ---- one token ------------------------------------------------------------------------------

  void advance() {
    const index_t n = shape_.keys;
    const Real one = 1;
    // decays of the rows of S
    if (shape_.decay == decay_kind::channel) {
      for (index_t c = 0; c < key_row_; c += lanes) {
        store_pack(fade_ + c, vectors::exp2(at(decay, c)));
      }
    } else {
      const pack whole =
          shape_.decay == decay_kind::token ? vectors::exp2(pack(decay[0])) : pack(one);
      for (index_t c = 0; c < key_row_; c += lanes) store_pack(fade_ + c, whole);
    }
    if (shape_.delta) {
      for (index_t c = 0; c < key_row_; c += lanes) store_pack(left_ + c, at(k, c) * at(fade_, c));
      products::subtract(1, value_row_, n, left_, 1, 1, state, value_row_, v, value_row_);
      for (index_t d = 0; d < value_row_; d += lanes) {
        store_pack(v + d, at(v, d) * pack(strength[0]));
      }
    }
    for (index_t c = 0; c < n; ++c) {
      Real* row = state + c * value_row_;
      const pack factor(fade_[c]), key(k[c]);
      for (index_t d = 0; d < value_row_; d += lanes) {
        store_pack(row + d, vectors::fma(key, at(v, d), at(row, d) * factor));
      }
    }
    if (!shape_.normalised) return;
    for (index_t c = 0; c < key_row_; c += lanes) {
      store_pack(key_sum + c, vectors::fma(at(key_sum, c), at(fade_, c), at(k, c)));
    }
  }

  void read_one() {
    read_state(q, 1);
    if (bonus == nullptr) return;
    const Real weight = bonus_weight(0);
    for (index_t d = 0; d < value_row_; d += lanes) {
      store_pack(out + d, vectors::fma(pack(weight), at(v, d), at(out, d)));
    }
    if (shape_.normalised) denominator[0] += weight;
  }

  // ---- decays ---------------------------------------------------------------------------------

  // Rows faded since the beginning of the chunk, x_t∘2^G_t; before: by the decays of earlier tokens
  // only.
  const Real* fade(const Real* x, bool before) {
    if (shape_.decay == decay_kind::none) return x;
    if (shape_.decay == decay_kind::channel) {
      fade_rows(x, 0, count_, before);
      return left_;
    }
    Real product = 1;
    for (index_t t = 0; t < count_; ++t) {
      const Real next = product * factors_[t];
      vectors::scale(x + t * key_row_, key_row_, before ? product : next, left_ + t * key_row_);
      product = next < smallest ? Real(0) : next;
    }
    return left_;
  }
  // left[t] = x[t]∘2^(Σ decays of first … t), in rows from the front
  void fade_rows(const Real* x, index_t first, index_t count, bool before) {
    for (index_t c = 0; c < key_row_; c += lanes) {
      pack sum(Real(0));
      for (index_t t = first; t < first + count; ++t) {
        const pack next = sum + at(decay + t * key_row_, c);
        const pack power = vectors::exp2(before ? sum : next);
        store_pack(left_ + (t - first) * key_row_ + c, at(x + t * key_row_, c) * power);
        sum = next;
      }
    }
  }
  // left[j] = k_j∘2^(Σ decays of j + 1 … last), and fade = 2^(Σ of all)
  void fade_keys_to(index_t first, index_t count) {
    for (index_t c = 0; c < key_row_; c += lanes) {
      pack sum(Real(0));
      for (index_t j = first + count; j-- > first;) {
        store_pack(left_ + (j - first) * key_row_ + c,
                   at(k + j * key_row_, c) * vectors::exp2(sum));
        sum += at(decay + j * key_row_, c);
      }
      store_pack(fade_ + c, vectors::exp2(sum));
    }
  }
  // Keys faded to the end of the chunk, in left_; S and z are faded by the whole chunk.
  const Real* fade_to_end() {
    if (shape_.decay == decay_kind::none) return k;
    if (shape_.decay == decay_kind::channel) {
      fade_keys_to(0, count_);
    } else {
      Real product = 1;
      for (index_t j = count_; j-- > 0;) {
        vectors::scale(k + j * key_row_, key_row_, product, left_ + j * key_row_);
        product *= factors_[j];
        if (product < smallest) product = 0;
      }
      std::fill_n(fade_, key_row_, product);
    }
    for (index_t c = 0; c < shape_.keys; ++c) {
      Real* row = state + c * value_row_;
      const pack factor(fade_[c]);
      for (index_t d = 0; d < value_row_; d += lanes) store_pack(row + d, at(row, d) * factor);
    }
    for (index_t c = 0; shape_.normalised && c < key_row_; c += lanes) {
      store_pack(key_sum + c, at(key_sum, c) * at(fade_, c));
    }
    return left_;
  }

  bool is_mild(index_t first, index_t count) const {
    pack lowest(Real(0));
    for (index_t c = 0; c < key_row_; c += lanes) {
      pack sum(Real(0));
      for (index_t t = first; t < first + count; ++t) sum += at(decay + t * key_row_, c);
      lowest = min(lowest, sum);
    }
    return -max_lanes(-lowest) >= mildest;
  }

  // ---- weights of pairs of tokens -------------------------------------------------------------

  // keys_ [key_row][token_row]: k_jᵀ∘2^(−Σ decays of first … j). Columns up to a whole vector are
  // 0.
  void transpose_keys(index_t first, index_t count) {
    const Real* rows = k + first * key_row_;
    if (shape_.decay == decay_kind::channel) {
      for (index_t c = 0; c < key_row_; c += lanes) {
        pack sum(Real(0));
        for (index_t j = first; j < first + count; ++j) {
          sum += at(decay + j * key_row_, c);
          store_pack(left_ + (j - first) * key_row_ + c,
                     at(k + j * key_row_, c) * vectors::exp2(-sum));
        }
      }
      rows = left_;
      clear(left_ + count * key_row_, (vectors::padded(count) - count) * key_row_);
    }
    products::transpose(vectors::padded(count), key_row_, rows, key_row_, keys_, token_row_);
  }

  // weights_[t][j] = Σ_c x_tc·k_jc·2^(G_tc − G_jc) for j ≤ t (before: j < t, decays of t left out),
  // 0 behind; faded is fade(x, before).
  void weigh(const Real* x, const Real* faded, bool before) {
    if (!mild_) {
      clear(weights_, count_ * token_row_);
      weigh_halves(x, before, 0, count_);
      return;
    }
    weigh_triangle(shape_.decay == decay_kind::channel ? faded : x, before, 0, count_);
    if (shape_.decay == decay_kind::token) fade_weights(before);
  }

  void weigh_halves(const Real* x, bool before, index_t first, index_t count) {
    if (count == 1) {
      // A token weighs itself without decay, however strong its own is.
      const Real self = vectors::dot(x + first * key_row_, k + first * key_row_, key_row_);
      if (!before) weights_[first * token_row_ + first] = self;
      return;
    }
    if (is_mild(first, count)) {
      transpose_keys(first, count);
      fade_rows(x, first, count, before);
      weigh_triangle(left_, before, first, count);
      return;
    }
    index_t half = 1;
    while (2 * half < count) half *= 2;
    const index_t middle = first + half, later = count - half;
    fade_keys_to(first, half);
    products::transpose(half, key_row_, left_, key_row_, keys_, token_row_);
    fade_rows(x, middle, later, before);
    products::add(later, half, shape_.keys, left_, key_row_, 1, keys_, token_row_,
                  weights_ + middle * token_row_ + first, token_row_);
    weigh_halves(x, before, first, half);
    weigh_halves(x, before, middle, later);
  }

  // Products of rows first … with keys_, for pairs of the same range; 0 above the diagonal.
  void weigh_triangle(const Real* rows, bool before, index_t first, index_t count) {
    for (index_t t = 0; t < count; t += block) {
      const index_t height = std::min(block, count - t);
      const index_t width = std::min(vectors::padded(t + height), token_row_ - first);
      Real* to = weights_ + (first + t) * token_row_ + first;
      for (index_t i = 0; i < height; ++i) clear(to + i * token_row_, width);
      products::add(height, width, shape_.keys, rows + t * key_row_, key_row_, 1, keys_, token_row_,
                    to, token_row_);
      // By selecting, not multiplying: what a later token holds must not reach an earlier one.
      for (index_t i = 0; i < height; ++i) {
        const index_t visible = t + i + (before ? 0 : 1);
        std::fill(to + i * token_row_ + visible, to + i * token_row_ + width, Real(0));
      }
    }
  }

  // Weights by one decay per token: row t is row t − 1 times its factor, and 1 on the diagonal.
  void fade_weights(bool before) {
    clear(fade_, token_row_);
    for (index_t t = 0; t < count_; ++t) {
      Real* row = weights_ + t * token_row_;
      if (before) multiply(row, t);
      const pack factor(factors_[t]);
      for (index_t j = 0; j < t; j += lanes) {
        const pack next = at(fade_, j) * factor;
        store_pack(fade_ + j, select(next < pack(smallest), Real(0), next));
      }
      fade_[t] = 1;
      if (!before) multiply(row, t + 1);
    }
  }
  void multiply(Real* row, index_t n) {
    for (index_t j = 0; j < n; j += lanes) store_pack(row + j, at(row, j) * at(fade_, j));
  }

  // ---- delta rule -----------------------------------------------------------------------------

  // x_t = β_t·(v_t − (k_t∘2^G_t)ᵀS₀ − Σ_{j < t} w_tj·x_j) with the keys' own weights, in place of
  // v.
  void solve() {
    const Real* faded = fade(k, false);
    products::subtract(count_, value_row_, shape_.keys, faded, key_row_, 1, state, value_row_, v,
                       value_row_);
    weigh(k, faded, false);
    constexpr index_t rows = 16;
    for (index_t first = 0; first < count_; first += rows) {
      const index_t end = std::min(first + rows, count_);
      products::subtract(end - first, value_row_, first, weights_ + first * token_row_, token_row_,
                         1, v, value_row_, v + first * value_row_, value_row_);
      for (index_t t = first; t < end; ++t) {
        Real* x = v + t * value_row_;
        products::subtract(1, value_row_, t - first, weights_ + t * token_row_ + first, 1, 1,
                           v + first * value_row_, value_row_, x, value_row_);
        for (index_t d = 0; d < value_row_; d += lanes) {
          store_pack(x + d, at(x, d) * pack(strength[t]));
        }
      }
    }
  }

  chunk_shape shape_;
  index_t key_row_ = 0, value_row_ = 0, token_row_ = 0, count_ = 0;
  bool mild_ = true, finite_ = true;
  Real* left_ = nullptr;     // faded rows, [token_row][key_row]
  Real* keys_ = nullptr;     // transposed keys, [key_row][token_row]
  Real* weights_ = nullptr;  // [capacity][token_row]
  Real* factors_ = nullptr;  // decays of the tokens
  Real* fade_ = nullptr;     // one row of decays
};

}  // namespace detail
}  // namespace linear
HEED_NAMESPACE_END
