// Relaxed attention: weights are mixed with the uniform distribution over the keys that the query
// may attend to.
//
//   p_ij ← (1 − γ)·p_ij + γ / n_i        n_i keys that query i sees
//
// Lohrenz et al., "Relaxed Attention for Transformer Models", 2022.
#pragma once

#include "../core/error.hpp"
#include "../core/weight_row.hpp"

HEED_NAMESPACE_BEGIN

class relaxed {
 public:
  static constexpr bool needs_visibility = true;

  explicit relaxed(double gamma) : gamma_(gamma) {
    if (!(gamma >= 0 && gamma <= 1)) raise("relaxed: gamma must lie in [0, 1]");
  }

  template <class Row>
  void transform(Row& row) const {
    using real = typename Row::real;
    using pack_type = typename Row::pack_type;
    index_t seen = 0;
    for (index_t i = 0; i < row.run_count; ++i) seen += __builtin_popcountll(row.visible(i));
    if (seen == 0) return;
    const pack_type keep(static_cast<real>(1 - gamma_)), none(real(0));
    const pack_type share(static_cast<real>(gamma_ / static_cast<double>(seen)));
    for (index_t i = 0; i < row.run_count; ++i) {
      real* w = row.weights + i * Row::run_keys;
      for (int c = 0; c < Row::run_keys; c += Row::lanes) {
        const auto visible = from_bits<real, Row::lanes>(row.visible(i) >> c);
        const pack_type mixed = load_pack<pack_type>(w + c) * keep + share;
        store_pack(w + c, select(visible, mixed, none));
      }
    }
  }

 private:
  double gamma_;
};

HEED_NAMESPACE_END
