// Wall-clock timing of small pieces of work, several of them in turn.
//
// The speed of a machine drifts: other tenants, temperature, the clock that wide vectors are given.
// Two figures are comparable only when they were measured side by side, so `measure_interleaved`
// runs its bodies A B C A B C … and a drift hits all of them alike.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <stdexcept>
#include <vector>

namespace heed_bench {

/// What the rounds of one body gave, in seconds per call.
struct sample {
  double best = std::numeric_limits<double>::infinity();
  double median = std::numeric_limits<double>::infinity();
  std::size_t calls = 0;  ///< timed calls over all rounds
};

/// The smallest of the values: the run that was disturbed least. Infinity when there is none.
inline double best_of(std::span<const double> values) {
  double best = std::numeric_limits<double>::infinity();
  for (const double value : values) best = std::min(best, value);
  return best;
}

/// The median; the mean of the two middle values when their number is even. Infinity when there
/// is none.
inline double median(std::vector<double> values) {
  if (values.empty()) return std::numeric_limits<double>::infinity();
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*std::max_element(values.begin(), middle) + *middle) / 2;
}

/// Seconds that `calls` calls of `body` take together.
template <class Body>
double seconds_of(Body&& body, std::size_t calls = 1) {
  const auto start = std::chrono::steady_clock::now();
  for (std::size_t call = 0; call < calls; ++call) body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Runs the bodies in turn, `rounds` times, and gives for each the best and the median round.
/// Every body is called for at least `min_seconds_per_body` over all rounds together, and once per
/// round in any case. Two untimed calls come first: one warms caches and page tables, the second
/// tells how many calls fill a turn.
inline std::vector<sample> measure_interleaved(const std::vector<std::function<void()>>& bodies,
                                               std::size_t rounds, double min_seconds_per_body) {
  if (rounds == 0) throw std::invalid_argument("measure_interleaved: rounds must not be 0");
  const double seconds_per_turn = min_seconds_per_body / static_cast<double>(rounds);

  std::vector<std::size_t> calls_per_turn(bodies.size());
  for (std::size_t i = 0; i < bodies.size(); ++i) {
    bodies[i]();
    const double seconds = std::max(seconds_of(bodies[i]), 1e-9);
    calls_per_turn[i] = static_cast<std::size_t>(std::max(1.0, seconds_per_turn / seconds));
  }

  std::vector<sample> results(bodies.size());
  std::vector<std::vector<double>> seconds_per_call(bodies.size());
  for (std::size_t round = 0; round < rounds; ++round) {
    for (std::size_t i = 0; i < bodies.size(); ++i) {
      double seconds = 0;
      std::size_t calls = 0;
      // The estimate can be too small, when the warm-up call was disturbed: go on until the turn
      // is full.
      do {
        seconds += seconds_of(bodies[i], calls_per_turn[i]);
        calls += calls_per_turn[i];
      } while (seconds < seconds_per_turn);
      seconds_per_call[i].push_back(seconds / static_cast<double>(calls));
      results[i].calls += calls;
    }
  }
  for (std::size_t i = 0; i < bodies.size(); ++i) {
    results[i].best = best_of(seconds_per_call[i]);
    results[i].median = median(seconds_per_call[i]);
  }
  return results;
}

}  // namespace heed_bench
