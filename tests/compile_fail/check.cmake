# cmake -DSOURCE=<file> -P check.cmake -- <compiler command>

cmake_minimum_required(VERSION 3.22)

set(command "")
set(seen FALSE)
math(EXPR last "${CMAKE_ARGC} - 1")
foreach(i RANGE ${last})
  if(seen)
    list(APPEND command "${CMAKE_ARGV${i}}")
  elseif(CMAKE_ARGV${i} STREQUAL "--")
    set(seen TRUE)
  endif()
endforeach()

file(STRINGS ${SOURCE} line LIMIT_COUNT 1)
if(NOT line MATCHES "^// expect: (.+)$")
  message(FATAL_ERROR "${SOURCE}: the first line must be '// expect: <regex>' or '// expect: ok'")
endif()
set(expected "${CMAKE_MATCH_1}")

# Plain quotes in messages, whatever the user's language.
set(ENV{LC_ALL} C)
execute_process(COMMAND ${command} ${SOURCE}
  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)

if(expected STREQUAL "ok")
  if(NOT status EQUAL 0)
    message(NOTICE "${output}")
    message(FATAL_ERROR "This must compile.")
  endif()
elseif(status EQUAL 0)
  message(FATAL_ERROR "This compiles but must not. Expected: ${expected}")
elseif(NOT output MATCHES "${expected}")
  message(NOTICE "${output}")
  message(FATAL_ERROR "The diagnostics do not match: ${expected}")
endif()
