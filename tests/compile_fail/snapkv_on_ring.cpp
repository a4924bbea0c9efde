// expect: snapkv needs rows in the order of their tokens
#include <heed/cache/policies/snapkv.hpp>
#include <heed/cache/ring.hpp>

auto call(heed::tensor_view<const float, 4> q, const heed::cache::ring<float>& store) {
  return heed::cache::choose(heed::cache::snapkv(), q, store, 16);
}
