// Gradients of exact attention. With P = exp(scores(scale·q kᵀ) − lse) and δ_i = Σ_d dO_id O_id,
//
//   dV = Pᵀ dO    dS = P·(dO Vᵀ − δ)·∂scores    dQ = scale·dS K    dK = scale·dSᵀ Q
//
//   q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv]      as in heed::attention
//   out [B, Hq, Lq, Dv], lse [B, Hq, Lq]                         what it wrote
//   d_out [B, Hq, Lq, Dv]                                        ∂loss/∂out
//   d_q, d_k, d_v                                                ∂loss/∂q, …, shaped like q, k, v
//
// d_k and d_v are summed over the query heads that share a KV head. Scores are computed again, tile
// by tile: memory beside the operands is linear in Lq (Dao et al., "FlashAttention", 2022). A row
// that attends to nothing, a key that nobody attends to, and what lies outside of every sequence
// have gradients of 0; what is masked is never read into one. Results are bit-identical on any
// executor.
#pragma once

#include "../engine/backward.hpp"
#include "attention.hpp"

HEED_NAMESPACE_BEGIN

// ∂loss/∂lse [B, Hq, Lq], where the loss depends on the log-sum-exp too; 0 without it.
template <element T, int Rank>
struct lse_gradient {
  tensor_view<const T, Rank> view;
};
template <class T, int Rank>
lse_gradient(tensor_view<T, Rank>) -> lse_gradient<std::remove_const_t<T>, Rank>;

// Where the gradient of a bias goes: [B|1, Hq|1, Lq|1, Lk|1] or its last two or three axes, like
// the bias; it is summed over axes of extent 1. It is the gradient of whatever is added to the
// scores at this place among the modifiers, so that it stands next to its bias: derivatives of
// scores that come later (softcap, say) count, of earlier ones not. Costs two more products per
// tile.
template <element T, int Rank>
struct bias_gradient_to {
  static_assert(Rank >= 2 && Rank <= 4, "heed: the gradient of a bias has 2, 3 or 4 axes");
  tensor_view<T, Rank> view;
};
template <class T, int Rank>
bias_gradient_to(tensor_view<T, Rank>) -> bias_gradient_to<T, Rank>;

// Where the gradient of the sinks' logits goes: [Hq], or [1] for the sum over all heads.
template <element T>
struct sink_gradient_to {
  tensor_view<T, 1> view;
};
template <class T>
sink_gradient_to(tensor_view<T, 1>) -> sink_gradient_to<T>;

namespace detail {

template <class M>
struct picks_lse_gradient : std::false_type {};
template <class T, int Rank>
struct picks_lse_gradient<lse_gradient<T, Rank>> : std::true_type {};
template <class M>
struct picks_bias_gradient : std::false_type {};
template <class T, int Rank>
struct picks_bias_gradient<bias_gradient_to<T, Rank>> : std::true_type {};
template <class M>
struct picks_sink_gradient : std::false_type {};
template <class T>
struct picks_sink_gradient<sink_gradient_to<T>> : std::true_type {};

template <class M>
concept gradient_option = picks_lse_gradient<M>::value || picks_bias_gradient<M>::value ||
    picks_sink_gradient<M>::value || is_on<M> || sink_function<M> ||
    is_any_of<M, scale, scratch, query_lengths, ragged, count_tiles>;

// The gradients of biases that are wanted, each with the number of scores in front of it.
template <std::size_t Scores>
constexpr auto bias_gradients() {
  return std::tuple<>();
}
template <std::size_t Scores, class First, class... Rest>
constexpr auto bias_gradients(const First& first, const Rest&... rest) {
  if constexpr (picks_bias_gradient<First>::value) {
    using T = typename decltype(first.view)::element_type;
    const engine::bias_gradient<Scores, T> own{first.view.template lifted<4>()};
    return std::tuple_cat(std::make_tuple(own), bias_gradients<Scores>(rest...));
  } else {
    return bias_gradients<Scores + (is_score<First> ? 1 : 0)>(rest...);
  }
}

// Every tensor of a backward call, as views of rank 4 (lse and d_lse 3, sink_gradient 1).
template <class Q, class K, class V, class Out, class Lse, class DOut, class DQ, class DK, class DV,
          class DLse, class DSink>
struct backward_views {
  using real =
      accumulator<typename Q::value_type, typename K::value_type, typename V::value_type,
                  typename Out::value_type, typename DOut::value_type, typename DQ::value_type,
                  typename DK::value_type, typename DV::value_type>;
  using sink_type = typename DSink::value_type;
  Q q;
  K k;
  V v;
  Out out;
  Lse lse;
  DOut d_out;
  DQ d_q;
  DK d_k;
  DV d_v;
  DLse d_lse;
  DSink sink_gradient;
};
template <class... Views>
backward_views(Views...) -> backward_views<Views...>;

// An operand or a gradient that has the shape of another one.
HEED_NOINLINE inline void check_shape_like(const operand& x, const operand& like) {
  check_rows(x, like);
  require_equal(x.name, "depth", x.extents[3], like.name, like.extents[3]);
}

HEED_NOINLINE inline void check_bias_gradient(const operand& x, const call_shape& shape) {
  const index_t sizes[4] = {shape.batches, shape.heads, shape.queries, shape.keys};
  const char* const axes[4] = {"batch axis", "head axis", "query axis", "key axis"};
  const char* const units[4] = {" batches", " heads", " queries", " keys"};
  check_operand(x);
  for (int axis = 0; axis < 4; ++axis) {
    const index_t extent = x.extents[axis];
    if (extent != 1 && extent != sizes[axis]) {
      raise(message(x.name) << ": " << axes[axis] << " has extent " << extent << ", call has "
                            << sizes[axis] << units[axis]);
    }
    if (axis < 3 && extent > 1 && x.strides[axis] == 0) {
      raise(message(x.name) << ": axis " << axis << " of extent " << extent
                            << " has stride 0, its rows would overwrite each other");
    }
  }
}

template <class T>
operand erase_vector(const char* name, const tensor_view<T, 1>& x) {
  return erase(name, x.template lifted<4>());
}

template <class Views, class... Biases>
void check_backward(const Views& x, const engine::batch_layout& queries,
                    const engine::batch_layout& keys, const std::tuple<Biases...>& biases,
                    bool has_lse_gradient, bool wants_sink_gradient) {
  const operand q = erase("q", x.q), k = erase("k", x.k), v = erase("v", x.v);
  const operand out = erase("out", x.out);
  const operand inputs[] = {
      q, k, v, out, erase("d_out", x.d_out), erase("lse", x.lse), erase("lse_gradient", x.d_lse)};
  const call_shape shape{queries.sequences, x.q.extent(1), queries.extent(), keys.extent()};
  std::apply(
      [&](const auto&... bias) {
        const operand outputs[] = {erase("d_q", x.d_q), erase("d_k", x.d_k), erase("d_v", x.d_v),
                                   erase_vector("sink_gradient_to", x.sink_gradient),
                                   erase("bias_gradient_to", bias.view)...};
        check_shape_like(inputs[4], out);
        check_rows(inputs[5], q);
        if (has_lse_gradient) check_rows(inputs[6], q);
        for (int i = 0; i < 3; ++i) {
          check_shape_like(outputs[i], inputs[i]);
          check_output(inputs[i], outputs[i]);
        }
        const index_t sinks = x.sink_gradient.extent(0);
        check_operand(outputs[3]);
        if (wants_sink_gradient && sinks != 1 && sinks != shape.heads) {
          raise(message("sink_gradient_to: extent ")
                << sinks << " is neither 1 nor the call's " << shape.heads << " heads");
        }
        (check_bias_gradient(erase("bias_gradient_to", bias.view), shape), ...);
        constexpr int count = 4 + static_cast<int>(sizeof...(Biases));
        for (int i = 0; i < count; ++i) {
          for (const operand& in : inputs) check_disjoint(outputs[i], in);
          for (int j = 0; j < i; ++j) check_disjoint(outputs[i], outputs[j]);
        }
      },
      biases);
}

}  // namespace detail

// Gradients of heed::attention(q, k, v, out, modifiers..., heed::lse_to{lse}), called with the same
// modifiers: masks, scores, sink, scale, key_lengths, query_lengths, left_padding, ragged; on,
// scratch and count_tiles as there. lse_gradient, bias_gradient_to and sink_gradient_to come in
// addition. Scores need a derivative(s, p); heed::score takes one as its second function. All
// tensors may have any element type; sums are kept in float, or in double where one is double.
//
// With the out and lse of several sources under one softmax, a call per source gives its d_k and
// d_v; d_q is then the sum of the calls'.
//
// Raises invalid_argument before anything is written when operands or modifiers do not fit.
template <class Backend = backend::native, viewable Q, viewable K, viewable V, viewable Out,
          viewable Lse, viewable DOut, viewable DQ, viewable DK, viewable DV, class... Modifiers>
void attention_backward(const Q& q, const K& k, const V& v, const Out& out, const Lse& lse,
                        const DOut& d_out, DQ&& d_q, DK&& d_k, DV&& d_v,
                        const Modifiers&... modifiers) {
  static_assert(backend::available<Backend>,
                "heed: this backend needs instruction sets that the compiler's target lacks");
  static_assert((... && (mask_function<Modifiers> || score_function<Modifiers> ||
                         detail::key_option<Modifiers> || detail::gradient_option<Modifiers>)),
                "heed::attention_backward: a modifier is neither a mask (bool of a position), a "
                "score (of a score and a position), nor an option such as heed::scale");
  static_assert((... && (!detail::is_score<Modifiers> || differentiable_score<Modifiers>)),
                "heed::attention_backward: a score has no derivative(score, position); a function "
                "gets one as heed::score{f, derivative}");
  static_assert((... || detail::sink_function<Modifiers>) ||
                    !(... || detail::picks_sink_gradient<Modifiers>::value),
                "heed::attention_backward: sink_gradient_to without a sink");
  const lse_gradient<float, 3> no_lse_gradient{};
  const sink_gradient_to<float> no_sink_gradient{};
  const engine::no_sink no_sink;
  const auto& sink = detail::pick<detail::picks_sink>(no_sink, modifiers...);
  auto source = detail::engine_source(read_view_of(k), read_view_of(v), modifiers...);
  const detail::backward_views views{
      read_view_of(q).template lifted<4>(),
      source.k,
      source.v,
      read_view_of(out).template lifted<4>(),
      read_view_of(lse).template lifted<3>(),
      read_view_of(d_out).template lifted<4>(),
      output_view_of(d_q).template lifted<4>(),
      output_view_of(d_k).template lifted<4>(),
      output_view_of(d_v).template lifted<4>(),
      detail::pick<detail::picks_lse_gradient>(no_lse_gradient, modifiers...)
          .view.template lifted<3>(),
      detail::pick<detail::picks_sink_gradient>(no_sink_gradient, modifiers...).view};
  const auto biases = detail::bias_gradients<0>(modifiers...);

  const detail::operand query = detail::erase("q", views.q),
                        output = detail::erase("out", views.out);
  const detail::operand keys = detail::erase("k", source.k), values = detail::erase("v", source.v);
  detail::check_operand(query);
  detail::check_keys_and_values(keys, values);
  detail::check_rows(output, query);
  detail::check_source(query, output, keys, values);
  source.keys = detail::key_layout(
      source.k.extent(0), source.k.extent(2), detail::find<ragged>(modifiers...),
      detail::find<key_lengths>(modifiers...), detail::find<left_padding>(modifiers...));
  const engine::batch_layout queries =
      detail::query_layout(views.q.extent(0), views.q.extent(2), detail::find<ragged>(modifiers...),
                           detail::find<query_lengths>(modifiers...));
  detail::check_hooks(source, sink, queries, views.q.extent(1));
  detail::check_backward(views, queries, source.keys, biases,
                         (... || detail::picks_lse_gradient<Modifiers>::value),
                         (... || detail::picks_sink_gradient<Modifiers>::value));
  const double factor = detail::scale_factor(views.q.extent(3), detail::find<scale>(modifiers...));

  using Views = std::remove_const_t<decltype(views)>;
  using Real = typename Views::real;
  using Problem =
      engine::backward_problem<Real, Views, decltype(source.mask), decltype(source.scores),
                               std::remove_cvref_t<decltype(sink)>>;
  Problem problem{views,       queries,       source.keys, static_cast<Real>(factor),
                  source.mask, source.scores, sink};
  if (const count_tiles* counter = detail::find<count_tiles>(modifiers...)) {
    problem.counts = &counter->counts;
  }
  serial on_this_thread;
  const heed::on<serial> default_runner(on_this_thread);
  const scratch* memory = detail::find<scratch>(modifiers...);
  thread_workspace memory_of_thread;
  engine::backward<Backend, Problem, std::remove_const_t<decltype(biases)>>(
      problem, biases, memory != nullptr ? memory->memory : memory_of_thread.get())
      .run(detail::pick<detail::picks_executor>(default_runner, modifiers...).runner);
}

HEED_NAMESPACE_END
