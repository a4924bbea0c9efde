// Relative positions as Transformer-XL and XLNet have them:
//
//   score = scale · ((q_i + u_h) · k_j + (q_i + v_h) · r_h[j − i − first])
//
//   r     [H|1, N, D], or [N, D]: projected encodings of the distances first, first + 1, … of a key
//         from its query (the last query at the last key); those beyond the ends get the end's
//   u, v  [H|1, D], or [D]: the biases of content and of position
//
// Without `first` the last entry is for the query's own position (first = 1 − N): N = Lk entries,
// in the order of the keys, serve a causal call with memory. XLNet's table of Lk + Lq entries
// starts at first = −Lk. A table in the paper's order of growing distance is a view with a negative
// stride.
//
// Dai et al., "Transformer-XL: Attentive Language Models Beyond a Fixed-Length Context", ACL 2019;
// Yang et al., "XLNet", 2019.
#pragma once

#include "content_bias.hpp"
#include "relative_embedding.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

// The two terms' workers, one after the other.
template <class Term, class Tiles>
class transformer_xl_worker {
 public:
  transformer_xl_worker(const Term& term, const term_sizes& sizes, bump& memory)
      : content_(term.content(), sizes, memory), position_(term.position(), sizes, memory) {}

  template <class Tile>
  void add(const Tile& tile) {
    content_.add(tile);
    position_.add(tile);
  }

 private:
  typename Term::content_type::template worker<Tiles> content_;
  typename Term::position_type::template worker<Tiles> position_;
};

}  // namespace detail

template <element R, element U, element V>
class transformer_xl : public detail::term_base {
 public:
  using content_type = content_bias<U>;
  using position_type = relative_embedding<R, V>;
  template <class Tiles>
  using worker = detail::transformer_xl_worker<transformer_xl, Tiles>;

  template <class TR, int RankR, class TU, int RankU, class TV, int RankV>
  transformer_xl(tensor_view<TR, RankR> r, tensor_view<TU, RankU> u, tensor_view<TV, RankV> v,
                 index_t first_distance)
      : content_(u), position_(r, first_distance, v) {}
  template <class TR, int RankR, class TU, int RankU, class TV, int RankV>
  transformer_xl(tensor_view<TR, RankR> r, tensor_view<TU, RankU> u, tensor_view<TV, RankV> v)
      : transformer_xl(r, u, v, 1 - r.extent(RankR - 2)) {}

  void check(const call_shape& shape) const {
    content_.check(shape);
    position_.check(shape);
  }
  const content_type& content() const { return content_; }
  const position_type& position() const { return position_; }

 private:
  content_type content_;
  position_type position_;
};

template <class R, int RankR, class U, int RankU, class V, int RankV>
transformer_xl(tensor_view<R, RankR>, tensor_view<U, RankU>, tensor_view<V, RankV>)
    -> transformer_xl<std::remove_const_t<R>, std::remove_const_t<U>, std::remove_const_t<V>>;
template <class R, int RankR, class U, int RankU, class V, int RankV>
transformer_xl(tensor_view<R, RankR>, tensor_view<U, RankU>, tensor_view<V, RankV>, index_t)
    -> transformer_xl<std::remove_const_t<R>, std::remove_const_t<U>, std::remove_const_t<V>>;

HEED_NAMESPACE_END
