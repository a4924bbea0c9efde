// Compiled once per instruction set, with UNIT as the name of what it offers.
#include "unit.hpp"

#include <heed/dense/attention.hpp>
#include <heed/mask/causal.hpp>

static void run(const float* q, const float* k, const float* v, float* out) {
  using namespace odr;
  using in = heed::tensor_view<const float, 2>;
  heed::attention(in(q, {queries, depth}), in(k, {keys, depth}), in(v, {keys, depth}),
                  heed::tensor_view<float, 2>(out, {queries, depth}), heed::causal{});
}

odr::unit odr::UNIT() { return {heed::abi_name, heed::backend::native::name, run}; }
