// Causal depthwise convolution along the tokens, as in front of Mamba's and delta rules' states:
//
//   out[b, t, c] = f(bias[c] + Σ_w weight[c, w]·x[b, t − (W − 1) + w, c]),   f identity or SiLU
//
// The W − 1 inputs before the first token are a state: 0, or the last ones of an earlier call, so
// that a sequence may come in pieces of any length, one token each at the shortest.
#pragma once

#include "../backend/vectors.hpp"
#include "../core/view_of.hpp"
#include "../dense/options.hpp"
#include "detail/gates.hpp"

HEED_NAMESPACE_BEGIN
namespace linear {

// bias [C] added to every output.
template <class T>
struct channel_bias {
  tensor_view<const T, 1> values;
  template <viewable X>
  explicit channel_bias(const X& x) : values(read_view_of(x)) {}
};
template <viewable X>
channel_bias(const X&) -> channel_bias<typename read_view<X>::value_type>;

// Inputs before the first token [B, W − 1, C], read first and replaced by the last W − 1 inputs.
template <class T>
struct input_state {
  tensor_view<T, 3> values;
  template <viewable X>
  explicit input_state(X&& x) : values(output_view_of(x).template lifted<3>()) {}
};
template <viewable X>
input_state(X&&) -> input_state<typename decltype(output_view_of(std::declval<X&>()))::value_type>;

// Outputs go through x / (1 + e^(−x)).
struct silu_activation {};

namespace detail {

template <class M>
struct picks_channel_bias : std::false_type {};
template <class T>
struct picks_channel_bias<channel_bias<T>> : std::true_type {};
template <class M>
struct picks_input_state : std::false_type {};
template <class T>
struct picks_input_state<input_state<T>> : std::true_type {};

}  // namespace detail

// x and out [B, L, C] (or [L, C]), weight [C, W], W ≥ 1, in any element types; sums in float, or in
// double where an operand is double. Modifiers: channel_bias, input_state, silu_activation,
// scratch, on. out may be x itself. Raises invalid_argument before anything is written where shapes
// differ.
template <class Backend = backend::native, viewable X, viewable W, viewable Out, class... Modifiers>
void causal_convolution(const X& input, const W& weight, Out&& output,
                        const Modifiers&... modifiers) {
  static_assert(
      (... && (detail::picks_channel_bias<Modifiers>::value ||
               detail::picks_input_state<Modifiers>::value || heed::detail::is_on<Modifiers> ||
               heed::detail::is_any_of<Modifiers, silu_activation, scratch>)),
      "heed::linear::causal_convolution: unknown modifier");
  const auto x = read_view_of(input).template lifted<3>();
  const auto w = read_view_of(weight).template lifted<2>();
  const auto out = output_view_of(output).template lifted<3>();
  using T = typename decltype(out)::value_type;
  using Real = accumulator<typename decltype(x)::value_type, typename decltype(w)::value_type, T>;
  using vectors = backend::vectors<Backend, Real>;
  using pack = typename vectors::pack_type;
  struct {
    tensor_view<const float, 1> values;
  } const no_bias;
  struct {
    tensor_view<float, 3> values;
  } const no_state;
  const auto& bias = heed::detail::pick<detail::picks_channel_bias>(no_bias, modifiers...).values;
  const auto& before = heed::detail::pick<detail::picks_input_state>(no_state, modifiers...).values;
  constexpr bool has_bias = (... || detail::picks_channel_bias<Modifiers>::value);
  constexpr bool keeps = (... || detail::picks_input_state<Modifiers>::value);

  const index_t batches = x.extent(0), length = x.extent(1), channels = x.extent(2);
  const index_t width = w.extent(1);
  detail::check_data("x", x);
  if (width < 1) raise(message("weight: width ") << width << " must be at least 1");
  detail::require_shape("weight", w, {channels, width});
  detail::require_shape("out", out, {batches, length, channels});
  if (has_bias) detail::require_shape("bias", bias, {channels});
  if (keeps) detail::require_shape("state", before, {batches, width - 1, channels});

  // Per worker: the taps transposed [W][C], bias, the last W inputs as a ring [W][C], one output.
  const index_t row = vectors::padded(channels);
  const index_t bytes = (2 * width + 2) * row * static_cast<index_t>(sizeof(Real)) + 64;
  serial on_this_thread;
  const on<serial> default_runner(on_this_thread);
  const auto& runner =
      heed::detail::pick<heed::detail::picks_executor>(default_runner, modifiers...);
  const scratch* given = heed::detail::find<scratch>(modifiers...);
  thread_workspace of_thread;
  workspace& memory = given != nullptr ? given->memory : of_thread.get();
  const index_t share = (bytes + 63) / 64 * 64;
  std::byte* first = memory.reserve(share * runner.runner.workers());
  runner.runner.run(batches, [&](index_t b, int worker) {
    Real* taps = reinterpret_cast<Real*>(first + share * worker);
    Real* bias_row = taps + width * row;
    Real* ring = bias_row + row;
    Real* sum = ring + width * row;
    vectors::clear(taps, (2 * width + 2) * row);
    for (index_t c = 0; c < channels; ++c) {
      for (index_t i = 0; i < width; ++i) taps[i * row + c] = widen<Real>(w(c, i));
    }
    if (has_bias) vectors::load_row(bias.data(), channels, bias_row);
    const auto slot = [&](index_t t) { return ring + (t + width) % width * row; };
    for (index_t i = 0; keeps && i < width - 1; ++i) {
      vectors::load_row(before.row(b, i), channels, slot(i - (width - 1)));
    }
    for (index_t t = 0; t < length; ++t) {
      vectors::load_row(x.row(b, t), channels, slot(t));
      const index_t oldest = (t + 1) % width;
      for (index_t c = 0; c < row; c += vectors::lanes) {
        pack y = load_pack<pack>(bias_row + c);
        for (index_t i = 0, from = oldest; i < width; ++i) {
          y = vectors::fma(load_pack<pack>(taps + i * row + c),
                           load_pack<pack>(ring + from * row + c), y);
          if (++from == width) from = 0;
        }
        if constexpr ((... || std::is_same_v<Modifiers, silu_activation>)) {
          y = y / (pack(Real(1)) + exp(-y));
        }
        store_pack(sum + c, y);
      }
      vectors::store_row(sum, channels, Real(1), out.row(b, t));
    }
    if constexpr (keeps) {
      for (index_t i = 0; i < width - 1; ++i) {
        vectors::store_row(slot(length + i - (width - 1)), channels, Real(1), before.row(b, i));
      }
    }
  });
}

}  // namespace linear
HEED_NAMESPACE_END
