# cmake -DNAME=<folder> … -P run.cmake: installs the library (NAME=prefix), or configures, builds
# and runs one consumer project.

cmake_minimum_required(VERSION 3.22)

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "Failed (${status}): ${command}")
  endif()
endfunction()

set(work ${BUILD_DIR}/tests/install)
set(prefix ${work}/prefix)

if(NAME STREQUAL "prefix")
  file(REMOVE_RECURSE ${prefix})
  run(${CMAKE_COMMAND} --install ${BUILD_DIR} --prefix ${prefix})
  return()
endif()

set(arguments -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_COMPILER=${COMPILER} -DCMAKE_CXX_FLAGS=${FLAGS})
if(TOOLCHAIN)
  list(APPEND arguments -DCMAKE_TOOLCHAIN_FILE=${TOOLCHAIN} -DCMAKE_FIND_ROOT_PATH=${prefix})
endif()
if(NAME STREQUAL "find_package")
  list(APPEND arguments -DCMAKE_PREFIX_PATH=${prefix})
elseif(NAME STREQUAL "pkg_config")
  set(ENV{PKG_CONFIG_PATH} ${prefix}/share/pkgconfig:$ENV{PKG_CONFIG_PATH})
else()
  list(APPEND arguments -DHEED_CHECKOUT=${SOURCE_DIR})
endif()

set(build ${work}/${NAME}-build)
file(REMOVE_RECURSE ${build})
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/${NAME} -B ${build} -G ${GENERATOR} ${arguments})
run(${CMAKE_COMMAND} --build ${build})
run(${EMULATOR} ${build}/consumer)
