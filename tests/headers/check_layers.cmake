# Checks the include lines under include/heed against the order of layers (docs/design.md):
# an include points down or stays in its layer, and no folder reaches into another one's detail/.
#
#   cmake -DINCLUDE_DIR=<include> -P check_layers.cmake

cmake_minimum_required(VERSION 3.22)

# Top to bottom; folders on one line are one layer.
set(layers
  "heed.hpp"
  "distributed"
  "cache"
  "analysis"
  "sparse linear neighborhood routed lowrank memory additive gate"
  "dense"
  "engine"
  "mask score normalizer observer position"
  "backend"
  "core"
  "version.hpp config.hpp")
# Beside the layers: these two have rules of their own.
set(may_include_interop
  heed.hpp distributed cache analysis sparse linear neighborhood routed lowrank memory additive gate
  dense engine mask score normalizer observer position backend core reference)
set(beside_may_include core mask score normalizer observer position version.hpp config.hpp)

set(rank 0)
foreach(layer IN LISTS layers)
  string(REPLACE " " ";" names "${layer}")
  foreach(name IN LISTS names)
    set(rank_${name} ${rank})
  endforeach()
  math(EXPR rank "${rank} + 1")
endforeach()

set(failures "")
set(count 0)
file(GLOB_RECURSE headers RELATIVE ${INCLUDE_DIR} ${INCLUDE_DIR}/heed/*.hpp)
foreach(header IN LISTS headers)
  # The folder, or the file's own name right under include/heed.
  string(REGEX REPLACE "^heed/([^/]+).*" "\\1" from ${header})
  if(NOT DEFINED rank_${from} AND NOT from MATCHES "^(interop|reference)$")
    list(APPEND failures "${header}: '${from}' has no place in the order of layers")
    continue()
  endif()

  file(STRINGS ${INCLUDE_DIR}/${header} lines REGEX "^[ \t]*#[ \t]*include")
  foreach(line IN LISTS lines)
    if(line MATCHES "include[ \t]*<(heed/[^>]+)>")
      set(target ${CMAKE_MATCH_1})
    elseif(line MATCHES "include[ \t]*\"([^\"]+)\"")
      get_filename_component(folder ${INCLUDE_DIR}/${header} DIRECTORY)
      get_filename_component(target ${CMAKE_MATCH_1} ABSOLUTE BASE_DIR ${folder})
      file(RELATIVE_PATH target ${INCLUDE_DIR} ${target})
    else()
      continue()
    endif()
    math(EXPR count "${count} + 1")

    if(NOT EXISTS ${INCLUDE_DIR}/${target})
      list(APPEND failures "${header}: ${target} does not exist")
      continue()
    endif()
    string(REGEX REPLACE "^heed/([^/]+).*" "\\1" to ${target})
    if(from STREQUAL to)
      continue()
    endif()

    set(allowed FALSE)
    if(to STREQUAL "reference")
      if(from STREQUAL "heed.hpp")
        set(allowed TRUE)
      endif()
    elseif(to STREQUAL "interop")
      if(from IN_LIST may_include_interop)
        set(allowed TRUE)
      endif()
    elseif(from MATCHES "^(interop|reference)$")
      if(to IN_LIST beside_may_include)
        set(allowed TRUE)
      endif()
    elseif(DEFINED rank_${to} AND rank_${to} GREATER_EQUAL rank_${from})
      set(allowed TRUE)
    endif()
    if(NOT allowed)
      list(APPEND failures "${header}: must not include ${target}")
    elseif(target MATCHES "/detail/")
      list(APPEND failures "${header}: reaches into ${target}")
    endif()
  endforeach()
endforeach()

list(LENGTH headers header_count)
message(STATUS "${header_count} headers, ${count} includes of this library checked")
if(failures)
  list(JOIN failures "\n  " failures)
  message(FATAL_ERROR "Includes that break the order of layers:\n  ${failures}")
endif()
