// The message of what a call refuses.
#pragma once

#include <string>

#include "heed/core/error.hpp"

namespace heed_test {

template <class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const heed::invalid_argument& error) {
    return error.what();
  }
  return "nothing was refused";
}

}  // namespace heed_test
