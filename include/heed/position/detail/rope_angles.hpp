// Cosines and sines of one rotary embedding, row by row: computed, or read from a cache.
#pragma once

#include <cmath>
#include <vector>

#include "../../core/error.hpp"
#include "../rope_options.hpp"

HEED_NAMESPACE_BEGIN

namespace detail {

inline index_t rope_dimension(const rope_options& options, index_t depth) {
  const index_t dimension = options.dimension == 0 ? depth : options.dimension;
  if (dimension < 0) raise(message("rope: rotary dimension ") << dimension << " is negative");
  if (dimension % 2 != 0) raise(message("rope: rotary dimension ") << dimension << " is odd");
  if (dimension > depth) {
    raise(message("rope: rotary dimension ")
          << dimension << " exceeds the depth " << depth << " of x");
  }
  return dimension;
}

// The options of one call, checked, with the frequencies.
class rope_angles {
 public:
  // `operand` is what the messages call the tensor with these batches and rows.
  rope_angles(const rope_options& options, const char* operand, index_t batches, index_t rows,
              index_t dimension)
      : options_(options), operand_(operand), half_(dimension / 2) {
    check_positions(batches, rows);
    if (options.cache.given()) {
      check_cache(batches, rows, dimension);
    } else {
      set_frequencies(dimension);
    }
  }

  index_t half() const { return half_; }
  // Whether rows of equal number have equal angles in all batch entries.
  bool same_for_all_batches() const {
    return options_.cache.by_row()
               ? options_.cache.batches() == 1
               : !options_.positions.given() || options_.positions.batches() == 1;
  }

  // Cosines and sines of one row; `sines` are those of the angle that is really turned by.
  void read(index_t batch, index_t row, double* cosines, double* sines) const {
    if (options_.cache.by_row()) {
      options_.cache.read(batch, row, cosines, sines);
    } else if (options_.cache.given()) {
      options_.cache.read(0, position(batch, row), cosines, sines);
    } else {
      const double p = static_cast<double>(position(batch, row)) / options_.linear_factor;
      for (index_t i = 0; i < half_; ++i) {
        const double angle = p * frequencies_[static_cast<std::size_t>(i)];
        cosines[i] = std::cos(angle);
        sines[i] = std::sin(angle);
      }
    }
    if (options_.inverse) {
      for (index_t i = 0; i < half_; ++i) sines[i] = -sines[i];
    }
  }

 private:
  index_t position(index_t batch, index_t row) const {
    return options_.positions.given() ? options_.positions(batch, row) : options_.offset + row;
  }

  void check_positions(index_t batches, index_t rows) const {
    const rope_positions& ids = options_.positions;
    if (!ids.given()) {
      index_t end = 0;
      if (__builtin_add_overflow(options_.offset, rows, &end)) {
        raise(message("rope: offset ") << options_.offset << " overflows with " << rows << " rows");
      }
      return;
    }
    if (options_.offset != 0) {
      raise(message("rope: offset ") << options_.offset << " has no effect beside position ids");
    }
    if (ids.batches() != 1 && ids.batches() != batches) {
      refuse("position ids: batch axis has extent ", ids.batches(), batches, " batches");
    }
    if (ids.length() != rows) {
      refuse("position ids: length axis has extent ", ids.length(), rows, " rows");
    }
  }

  void check_cache(index_t batches, index_t rows, index_t dimension) const {
    const rope_cache& cache = options_.cache;
    const rope_options standard;
    if (options_.theta != standard.theta || options_.linear_factor != standard.linear_factor ||
        options_.ntk_factor != standard.ntk_factor) {
      raise("rope: theta and scaling factors have no effect beside a cache");
    }
    if (cache.columns() != half_) {
      raise(message("rope cache: column count ")
            << cache.columns() << ", rotary dimension " << dimension << " needs " << half_);
    }
    if (cache.by_row()) {
      if (options_.positions.given() || options_.offset != 0) {
        raise("rope: positions have no effect beside a cache of rank 3, which is indexed by row");
      }
      if (cache.batches() != 1 && cache.batches() != batches) {
        refuse("rope cache: batch axis has extent ", cache.batches(), batches, " batches");
      }
      if (cache.rows() != rows) {
        refuse("rope cache: length axis has extent ", cache.rows(), rows, " rows");
      }
      return;
    }
    const index_t id_batches = options_.positions.given() ? options_.positions.batches() : 1;
    for (index_t batch = 0; batch < id_batches; ++batch) {
      for (index_t row = 0; row < rows; ++row) {
        const index_t at = position(batch, row);
        if (at < 0 || at >= cache.rows()) {
          raise(message("rope cache: position ")
                << at << " of row " << row << " is outside its " << cache.rows() << " positions");
        }
      }
    }
  }

  void set_frequencies(index_t dimension) {
    check_factor("theta", options_.theta);
    check_factor("linear_factor", options_.linear_factor);
    check_factor("ntk_factor", options_.ntk_factor);
    const double d = static_cast<double>(dimension);
    // One pair alone has frequency 1, whatever the base.
    const double base =
        dimension > 2 ? options_.theta * std::pow(options_.ntk_factor, d / (d - 2)) : 1;
    frequencies_.resize(static_cast<std::size_t>(half_));
    for (index_t i = 0; i < half_; ++i) {
      frequencies_[static_cast<std::size_t>(i)] = std::pow(base, -2 * static_cast<double>(i) / d);
    }
  }

  static void check_factor(const char* name, double value) {
    // Bounds instead of a test for infinity, so that it also holds under -ffast-math.
    if (!(value >= 1e-100 && value <= 1e100)) {
      raise(message("rope: ") << name << " " << value << " is not in [1e-100, 1e100]");
    }
  }

  [[noreturn]] void refuse(const char* what, index_t value, index_t count, const char* unit) const {
    raise(message(what) << value << ", " << operand_ << " has " << count << unit);
  }

  const rope_options& options_;
  const char* operand_;
  index_t half_;
  std::vector<double> frequencies_;
};

}  // namespace detail

HEED_NAMESPACE_END
