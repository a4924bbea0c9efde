// What a refused call says.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "heed/core/error.hpp"

namespace heed_test {

// The message with which an action is refused, "accepted" where it is not.
inline std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const heed::invalid_argument& error) {
    return error.what();
  }
  return "accepted";
}

// Runs an action that must raise exactly this text.
inline void expect_error(const std::string& text, const std::function<void()>& action) {
  EXPECT_EQ(error_of(action), text);
}

}  // namespace heed_test
