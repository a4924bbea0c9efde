// A progress report for long steps.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <string>
#include <utility>

#include "transformer.hpp"

namespace example {

// Reports on stderr how far a long step is: continuously on a terminal, else every ten seconds.
class progress {
 public:
  explicit progress(std::string label) : label_(std::move(label)) {}
  ~progress() {
    if (shown_ && on_terminal_) std::fprintf(stderr, "\r%*s\r", width, "");
  }
  progress(const progress&) = delete;
  progress& operator=(const progress&) = delete;

  void operator()(double done) {
    const double now = watch_.seconds();
    if (now - last_ < (on_terminal_ ? 0.2 : 10.0)) return;
    last_ = now;
    shown_ = true;
    std::fprintf(stderr, "%s%s: %3.0f %%, %.0f s%s", on_terminal_ ? "\r" : "", label_.c_str(),
                 100 * done, now, on_terminal_ ? " " : "\n");
    std::fflush(stderr);
  }

 private:
  static constexpr int width = 78;
  std::string label_;
  stopwatch watch_;
  double last_ = 0;
  bool shown_ = false, on_terminal_ = isatty(STDERR_FILENO) != 0;
};

}  // namespace example
