// oneDNN, in the protocol of peer.hpp: the primitives matmul, softmax and matmul, as one would
// combine them with care. A batch is as many heads' strips of queries as keep their scores in the
// cache; causal strips end at their last visible key, and the query heads of a KV head are one
// strip when decoding. The scale is part of the first product; the mask is a loop of ours, since a
// mask that is added within a product and shared by several heads is the reference code's business,
// a hundred times slower. Scores are float for bf16 too, weights are bf16. Threads are oneDNN's
// own.
#include <omp.h>

#include <algorithm>
#include <functional>
#include <oneapi/dnnl/dnnl.hpp>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "peer.hpp"

namespace {

using namespace heed_peers;
using dnnl::matmul;
using dnnl::memory;

constexpr index_t strip_rows = 128, score_bytes_per_thread = index_t{1} << 19;

template <class T>
constexpr memory::data_type type_of =
    std::is_same_v<T, float> ? memory::data_type::f32 : memory::data_type::bf16;

// Matrices [count, rows, columns], `stride` elements from one to the next and `row` within one.
memory::desc matrices(memory::data_type type, index_t count, index_t rows, index_t columns,
                      index_t stride, index_t row, index_t column = 1) {
  return {{count, rows, columns}, type, memory::dims{stride, row, column}};
}
memory::desc matrices(memory::data_type type, index_t count, index_t rows, index_t columns) {
  return matrices(type, count, rows, columns, rows * columns, columns);
}

// Version 3 did away with operation descriptors, and with factors of post-operations.
#if DNNL_VERSION_MAJOR >= 3
using softmax = dnnl::softmax_forward;
matmul::primitive_desc product(const dnnl::engine& engine, const memory::desc& a,
                               const memory::desc& b, const memory::desc& result,
                               const dnnl::primitive_attr& attributes = {}) {
  return {engine, a, b, result, attributes};
}
softmax::primitive_desc softmax_of(const dnnl::engine& engine, const memory::desc& from,
                                   const memory::desc& to) {
  return {engine, dnnl::prop_kind::forward_inference, dnnl::algorithm::softmax_accurate, from, to,
          2};
}
void append_scale(dnnl::post_ops& operations, float scale) {
  operations.append_eltwise(dnnl::algorithm::eltwise_linear, scale, 0);
}
#else
using softmax = dnnl::softmax_v2_forward;
matmul::primitive_desc product(const dnnl::engine& engine, const memory::desc& a,
                               const memory::desc& b, const memory::desc& result,
                               const dnnl::primitive_attr& attributes = {}) {
  return {matmul::desc(a, b, result), attributes, engine};
}
softmax::primitive_desc softmax_of(const dnnl::engine& engine, const memory::desc& from,
                                   const memory::desc& to) {
  return {softmax::desc(dnnl::prop_kind::forward_inference, dnnl::algorithm::softmax_accurate, from,
                        to, 2),
          engine};
}
void append_scale(dnnl::post_ops& operations, float scale) {
  operations.append_eltwise(1, dnnl::algorithm::eltwise_linear, scale, 0);
}
#endif

// The steps of a call, with the memory that they work on.
template <class T>
class recipe {
 public:
  recipe(const operands<T>& tensors, int threads)
      : tensors_(tensors), score_bytes_(score_bytes_per_thread * threads) {
    const attention_case& c = tensors.shape;
    if (c.queries == 1) {  // consecutive query heads are the rows
      add_strip(c.batch * c.kv_heads, c.group(), {0, c.group(), c.keys, false});
      return;
    }
    if (c.group() != 1) throw std::runtime_error("grouped heads only when decoding");
    for (index_t first = 0; first < c.queries; first += strip_rows) {
      const index_t rows = std::min(strip_rows, c.queries - first);
      const index_t keys = c.causal ? c.keys - c.queries + first + rows : c.keys;
      add_strip(c.batch * c.kv_heads, c.queries, {first, rows, keys, c.causal});
    }
  }

  void run() {
    for (const auto& step : steps_) step();
  }

 private:
  // Some rows of a head, and the first `keys` keys: all that the last row sees.
  struct strip {
    index_t first, rows, keys;
    bool masked;
  };

  void add_strip(index_t heads, index_t rows_of_head, const strip& s) {
    const index_t bytes_of_head = s.rows * s.keys * static_cast<index_t>(sizeof(float));
    const index_t at_once = std::clamp<index_t>(score_bytes_ / bytes_of_head, 1, heads);
    for (index_t head = 0; head < heads; head += at_once) {
      add_heads(head, std::min(at_once, heads - head), rows_of_head, s);
    }
  }

  void add_heads(index_t head, index_t count, index_t rows_of_head, const strip& s) {
    const attention_case& c = tensors_.shape;
    const index_t depth = c.depth, head_size = rows_of_head * depth, kv_size = c.keys * depth;
    const auto type = type_of<T>;
    const auto q = matrices(type, count, s.rows, depth, head_size, depth);
    const auto k = matrices(type, count, depth, s.keys, kv_size, 1, depth);
    const auto v = matrices(type, count, s.keys, depth, kv_size, depth);
    const auto scores = matrices(memory::data_type::f32, count, s.rows, s.keys);
    const auto weights = matrices(type, count, s.rows, s.keys);
    const auto at = [this](const memory::desc& what, const std::shared_ptr<T>& tensor,
                           index_t offset) { return memory(what, engine_, tensor.get() + offset); };
    const memory score_memory = scratch(scores, 0), weight_memory = scratch(weights, 1);
    const index_t query_offset = head * head_size + s.first * depth;

    dnnl::post_ops operations;
    append_scale(operations, c.scale());
    dnnl::primitive_attr attributes;
    attributes.set_post_ops(operations);
    add(matmul(product(engine_, q, k, scores, attributes)),
        {{DNNL_ARG_SRC, at(q, tensors_.q, query_offset)},
         {DNNL_ARG_WEIGHTS, at(k, tensors_.k, head * kv_size)},
         {DNNL_ARG_DST, score_memory}});
    if (s.masked) {
      float* const values = static_cast<float*>(score_memory.get_data_handle());
      steps_.push_back([=] { mask(values, count, s); });
    }
    add(softmax(softmax_of(engine_, scores, weights)),
        {{DNNL_ARG_SRC, score_memory}, {DNNL_ARG_DST, weight_memory}});
    add(matmul(product(engine_, weights, v, q)),
        {{DNNL_ARG_SRC, weight_memory},
         {DNNL_ARG_WEIGHTS, at(v, tensors_.v, head * kv_size)},
         {DNNL_ARG_DST, at(q, tensors_.out, query_offset)}});
  }

  void add(const dnnl::primitive& primitive, const std::unordered_map<int, memory>& arguments) {
    steps_.push_back([this, primitive, arguments] {
      primitive.execute(stream_, arguments);
      stream_.wait();
    });
  }

  static void mask(float* scores, index_t count, const strip& s) {
    for (index_t row = 0; row < count * s.rows; ++row) {
      const index_t invisible = s.rows - 1 - row % s.rows;
      float* const end = scores + (row + 1) * s.keys;
      std::fill(end - invisible, end, -std::numeric_limits<float>::infinity());
    }
  }

  // All steps share two buffers, of which float needs one: its softmax works in place.
  memory scratch(const memory::desc& what, std::size_t buffer) {
    if (std::is_same_v<T, float>) buffer = 0;
    auto& [bytes, size] = buffers_[buffer];
    if (size < what.get_size()) {
      bytes = heed_bench::allocate(what.get_size());
      size = what.get_size();
      kept_.push_back(bytes);  // earlier steps may use the smaller one
    }
    return {what, engine_, bytes.get()};
  }

  const operands<T>& tensors_;
  index_t score_bytes_;
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::vector<std::function<void()>> steps_;
  std::pair<std::shared_ptr<std::byte>, std::size_t> buffers_[2];
  std::vector<std::shared_ptr<std::byte>> kept_;
};

}  // namespace

int main(int argc, char** argv) {
  const dnnl_version_t& version = *dnnl_version();
  const std::string library = "oneDNN " + std::to_string(version.major) + "." +
                              std::to_string(version.minor) + "." + std::to_string(version.patch);
  return run_peer(argc, argv, library,
                  [](const auto& tensors, int threads) -> std::function<void()> {
                    using T = std::remove_const_t<std::remove_pointer_t<decltype(tensors.q.get())>>;
                    omp_set_num_threads(threads);
                    const auto steps = std::make_shared<recipe<T>>(tensors, threads);
                    return [steps] { steps->run(); };
                  });
}
