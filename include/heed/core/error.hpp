// One kind of error: an argument that does not fit. It is reported before anything is written, with
// a message that names the operand, the axis and both values.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../config.hpp"

HEED_NAMESPACE_BEGIN

// Thrown by every function of the library whose arguments do not fit together.
class invalid_argument : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

// Receives the message where exceptions are switched off. It must not return: when it does, the
// program is aborted, since the caller's arguments cannot be used.
using error_handler = void (*)(const char* message);

namespace detail {

inline void print_error(const char* message) { std::fprintf(stderr, "heed: %s\n", message); }

inline error_handler& current_error_handler() {
  static error_handler handler = print_error;
  return handler;
}

}  // namespace detail

// Replaces the handler that programs built without exceptions call; returns the former one.
inline error_handler set_error_handler(error_handler handler) {
  error_handler former = detail::current_error_handler();
  detail::current_error_handler() = handler != nullptr ? handler : detail::print_error;
  return former;
}

// The text of an error, put together piece by piece: message("k: length ") << 5 << " is …". A fixed
// buffer and functions that are never inlined, since checks stand in every instantiation of every
// call and would otherwise be most of its code.
class message {
 public:
  HEED_NOINLINE explicit message(const char* text) { *this << text; }

  HEED_NOINLINE message& operator<<(const char* text) {
    while (*text != '\0' && size_ + 1 < static_cast<int>(sizeof(text_))) text_[size_++] = *text++;
    text_[size_] = '\0';
    return *this;
  }
  HEED_NOINLINE message& operator<<(index_t value) {
    char digits[32];
    std::snprintf(digits, sizeof(digits), "%lld", static_cast<long long>(value));
    return *this << digits;
  }
  HEED_NOINLINE message& operator<<(double value) {
    char digits[48];
    std::snprintf(digits, sizeof(digits), "%g", value);
    return *this << digits;
  }
  message& operator<<(int value) { return *this << static_cast<index_t>(value); }
  message& operator<<(std::size_t value) { return *this << static_cast<index_t>(value); }

  const char* c_str() const { return text_; }

 private:
  char text_[512];
  int size_ = 0;
};

// Reports an argument that does not fit.
[[noreturn]] HEED_NOINLINE inline void raise(const char* text) {
#if defined(HEED_HAS_EXCEPTIONS)
  throw invalid_argument(text);
#else
  detail::current_error_handler()(text);
  std::abort();
#endif
}
[[noreturn]] HEED_NOINLINE inline void raise(const message& text) { raise(text.c_str()); }
[[noreturn]] HEED_NOINLINE inline void raise(const std::string& text) { raise(text.c_str()); }

namespace detail {

// "k: head count 3 …": the start of every message names the operand.
inline std::string describe(const char* operand, const char* what, index_t value) {
  return std::string(operand) + ": " + what + " " + std::to_string(value);
}

}  // namespace detail

HEED_NAMESPACE_END
