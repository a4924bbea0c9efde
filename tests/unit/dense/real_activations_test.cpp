// Queries, keys and values of a language model that has read real code: their scores are far wider
// and their softmax far more peaked than those of random numbers. In 16 bits a kernel may be at
// most twice as far from double precision as a plain implementation in that precision, also where
// the logits are wider still.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "../../../examples/generate/safetensors.hpp"
#include "heed/core/quantize.hpp"
#include "heed/dense/attention.hpp"
#include "heed/mask/causal.hpp"
#include "heed/reference/dense.hpp"
#include "support/backends.hpp"
#include "support/tensor.hpp"

namespace {

using heed::index_t;
using heed_test::tensor;
namespace reference = heed::reference;

constexpr index_t query_heads = 4, key_heads = 2, length = 1024, depth = 64;
// The last queries against all keys keep the oracle quick.
constexpr index_t queries = 200;

template <class T>
heed::tensor_view<const T, 4> last(const tensor<T>& q) {
  return q.read().slice(2, length - queries, queries);
}

// One operand of one layer, times a factor, in an element type.
template <class T>
tensor<T> activations(const std::string& name, index_t heads, double factor) {
  static const auto file = example::safetensors_file::open(
      std::filesystem::path(HEED_EXAMPLE_MODELS) / "pybyte" / "golden.safetensors");
  const auto values = file.as_float(name, {heads, length, depth});
  tensor<T> result(1, heads, length, depth);
  std::size_t at = 0;
  result.for_each([&](T& x) { x = heed::narrow<T>(factor * static_cast<double>(values[at++])); });
  return result;
}

reference::options causal() {
  reference::options how;
  how.visible = [](const heed::position& p) { return heed::causal{}(p); };
  return how;
}

template <class Backend, class T>
double error_of(const tensor<T>& q, const tensor<T>& k, const tensor<T>& v,
                const tensor<double>& truth) {
  tensor<T> out(1, query_heads, queries, depth);
  heed::attention<Backend>(last(q), k.read(), v.read(), out.view(), heed::causal{});
  return heed_test::worst_error(out.read(), truth.read());
}

// The oracle takes far longer than the kernels: one result serves all backends.
template <class T, class Backends>
void check(Backends backends, double allowed) {
  for (const char* layer : {"layer1", "layer3"}) {
    for (const double factor : {1.0, 4.0, 16.0}) {
      const auto q = activations<T>(std::string(layer) + ".q", query_heads, factor);
      const auto k = activations<T>(std::string(layer) + ".k", key_heads, factor);
      const auto v = activations<T>(std::string(layer) + ".v", key_heads, 1);
      tensor<double> truth(1, query_heads, queries, depth), plain = truth;
      reference::attention(last(q), k.read(), v.read(), truth.view(), causal());
      reference::plain<T>(last(q), k.read(), v.read(), plain.view(), causal());
      const double limit = 2 * heed_test::worst_error(plain.read(), truth.read()) + allowed;
      heed_test::for_each_backend(backends, [&]<class Backend>(std::type_identity<Backend>) {
        EXPECT_LE((error_of<Backend>(q, k, v, truth)), limit)
            << Backend::name << ", " << layer << ", logits times " << factor * factor;
      });
    }
  }
}

TEST(real_activations, float32) { check<float>(heed_test::all_backends{}, 1e-5); }
// In 16 bits unit/dense/attention_test compares all backends.
TEST(real_activations, bfloat16) { check<Eigen::bfloat16>(heed_test::method_backends{}, 0); }
TEST(real_activations, half) { check<Eigen::half>(heed_test::method_backends{}, 0); }

// Eight bits per token keep the outputs of this model to a percent of their size, four bits with
// keys per channel to twelve. That every backend computes right with codes, quantized_test shows.
TEST(real_activations_quantized, lose_little) {
  const auto q = activations<float>("layer3.q", query_heads, 1);
  const auto k = activations<float>("layer3.k", key_heads, 1);
  const auto v = activations<float>("layer3.v", key_heads, 1);
  tensor<double> truth(1, query_heads, queries, depth);
  reference::attention(last(q), k.read(), v.read(), truth.view(), causal());
  tensor<float> out(1, query_heads, queries, depth);
  const auto error = [&] {  // root of the mean square, relative
    double difference = 0, size = 0;
    const auto got = out.read();
    const auto wanted = truth.read();
    for (index_t h = 0; h < query_heads; ++h) {
      for (index_t i = 0; i < queries; ++i) {
        for (index_t d = 0; d < depth; ++d) {
          const double w = wanted(0, h, i, d), e = static_cast<double>(got(0, h, i, d)) - w;
          difference += e * e;
          size += w * w;
        }
      }
    }
    return std::sqrt(difference / size);
  };
  const auto run = [&]<class Code>(std::type_identity<Code>, const heed::scale_groups& of_keys) {
    constexpr index_t width = depth / heed::codes_per_element<Code>;
    tensor<Code> key_codes(1, key_heads, length, width), value_codes = key_codes;
    const index_t tokens = (length - 1) / of_keys.tokens + 1;
    const index_t channels = (depth - 1) / of_keys.channels + 1;
    tensor<float> key_scales(1, key_heads, tokens, channels), key_zeros = key_scales;
    tensor<float> value_scales(1, key_heads, length, 1);
    heed::quantize(k.read(), key_codes.view(), key_scales.view(), key_zeros.view(), of_keys);
    heed::quantize(v.read(), value_codes.view(), value_scales.view());
    heed::attention(last(q),
                    heed::quantized_view<Code, 4>(key_codes.view(), key_scales.view(),
                                                  key_zeros.view(), of_keys),
                    heed::quantized_view<Code, 4>(value_codes.view(), value_scales.view()),
                    out.view(), heed::causal{});
    return error();
  };
  EXPECT_LE(run(std::type_identity<std::int8_t>{}, heed::per_token), 0.01);
  EXPECT_LE(run(std::type_identity<heed::int4_pair>{}, heed::scale_groups{32, 1}), 0.12);
}

}  // namespace
