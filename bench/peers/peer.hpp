// What the C++ programs of this directory share: arguments, shapes, operands, timing, output.
//
// Every program, in whatever language, keeps to this protocol. It is called as
//
//   PROGRAM --shapes FILE --threads T --round N        N = 1, 2, …
//
// and writes lines, in this order for a case:
//
//   # library NAME VERSION              first of all
//   # missing CASE REASON               the library cannot compute it; nothing else follows
//   # check CASE VALUE                  in round 1: Σ |out_i|·(1 + w_i), so that order counts too
//   # note CASE TEXT                    which of several ways was fastest
//   CASE SECONDS                        per call: the best one of 0.15 s
//
// A program exits with 3 when its library is not there. Operands are numbers in [−1, 1) that all
// programs can compute, four times as wide for q, so that the softmax is far from uniform; they
// are rounded to the element type. With i counting a contiguous tensor's elements,
//
//   number(tensor, i) = (hash(i + 2^24·tensor) >> 8)/2^23 − 1     q: 1, k: 2, v: 3, w: 4
//   hash(x): x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16 (32 bits)
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "support/ceilings.hpp"
#include "support/timing.hpp"

namespace heed_peers {

using index_t = std::ptrdiff_t;

struct attention_case {
  std::string name, type;
  index_t batch = 0, query_heads = 0, kv_heads = 0, queries = 0, keys = 0, depth = 0;
  bool causal = false;

  index_t query_size() const { return batch * query_heads * queries * depth; }
  index_t key_size() const { return batch * kv_heads * keys * depth; }
  index_t group() const { return query_heads / kv_heads; }
  float scale() const { return 1 / std::sqrt(static_cast<float>(depth)); }
};

inline std::vector<attention_case> read_cases(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<attention_case> cases;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') continue;
    attention_case c;
    std::string mask;
    std::istringstream fields(line);
    fields >> c.name >> c.type >> c.batch >> c.query_heads >> c.kv_heads >> c.queries >> c.keys >>
        c.depth >> mask;
    if (!fields || (mask != "full" && mask != "causal")) {
      throw std::runtime_error(path + ": not a case: " + line);
    }
    c.causal = mask == "causal";
    cases.push_back(c);
  }
  return cases;
}

struct arguments {
  std::string shapes;
  int round = 1, threads = 1;
};

inline arguments parse(int argc, char** argv) {
  arguments result;
  bool valid = argc % 2 == 1;
  for (int i = 1; valid && i < argc; i += 2) {
    const std::string_view option = argv[i];
    if (option == "--shapes") {
      result.shapes = argv[i + 1];
    } else if (option == "--round") {
      result.round = std::atoi(argv[i + 1]);
    } else if (option == "--threads") {
      result.threads = std::atoi(argv[i + 1]);
    } else {
      valid = false;
    }
  }
  if (!valid || result.shapes.empty() || result.round < 1 || result.threads < 1) {
    std::fprintf(stderr, "usage: %s --shapes FILE [--threads T] [--round N]\n", argv[0]);
    std::exit(2);
  }
  return result;
}

inline float number(std::uint32_t tensor, index_t i) {
  std::uint32_t x = static_cast<std::uint32_t>(i) + (tensor << 24);
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  x ^= x >> 16;
  return static_cast<float>(x >> 8) * 0x1p-23f - 1;
}

/// Contiguous tensors. `T` is float or Eigen::bfloat16.
template <class T>
struct operands {
  attention_case shape;
  std::shared_ptr<T> q, k, v, out;

  explicit operands(const attention_case& c)
      : shape(c),
        q(tensor(c.query_size(), 1, 4)),
        k(tensor(c.key_size(), 2, 1)),
        v(tensor(c.key_size(), 3, 1)),
        out(tensor(c.query_size(), 0, 0)) {}

  double checksum() const {
    double sum = 0;
    for (index_t i = 0; i < shape.query_size(); ++i) {
      sum += std::abs(static_cast<double>(out.get()[i])) * (1 + static_cast<double>(number(4, i)));
    }
    return sum;
  }

 private:
  static std::shared_ptr<T> tensor(index_t size, std::uint32_t id, float width) {
    const auto bytes = heed_bench::allocate(static_cast<std::size_t>(size) * sizeof(T));
    T* const values = reinterpret_cast<T*>(bytes.get());
    for (index_t i = 0; i < size; ++i) {
      new (values + i) T(static_cast<T>(width * number(id, i)));
    }
    return {bytes, values};
  }
};

/// The seconds of the fastest call of 0.15 s, and of three at least.
inline double best_seconds(const std::function<void()>& call) {
  call();
  double best = std::numeric_limits<double>::infinity(), elapsed = 0;
  for (int calls = 0; calls < 3 || elapsed < 0.15; ++calls) {
    const double seconds = heed_bench::seconds_of(call);
    best = std::min(best, seconds);
    elapsed += seconds;
  }
  return best;
}

/// A peer's main function. `prepare(operands, threads)` gives a function that computes
/// `operands.out`, or throws why it cannot.
template <class Prepare>
int run_peer(int argc, char** argv, const std::string& library, Prepare prepare) {
  const arguments options = parse(argc, argv);
  std::printf("# library %s\n", library.c_str());
  const auto measure = [&](const auto& tensors) {
    const char* const name = tensors.shape.name.c_str();
    try {
      const std::function<void()> attend = prepare(tensors, options.threads);
      const auto call = [&] {
        attend();
        heed_bench::keep(*tensors.out);
      };
      const double seconds = best_seconds(call);
      if (options.round == 1) std::printf("# check %s %.9g\n", name, tensors.checksum());
      std::printf("%s %.9g\n", name, seconds);
    } catch (const std::exception& error) {
      std::printf("# missing %s %s\n", name, error.what());
    }
    std::fflush(stdout);
  };
  try {
    for (const attention_case& c : read_cases(options.shapes)) {
      if (c.type == "bf16") {
        measure(operands<Eigen::bfloat16>(c));
      } else if (c.type == "float") {
        measure(operands<float>(c));
      } else {
        throw std::runtime_error(c.name + ": unknown element type " + c.type);
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}

}  // namespace heed_peers
