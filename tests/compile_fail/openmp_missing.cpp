// expect: heed::openmp needs OpenMP, which is switched on by -fopenmp
#include <heed/core/openmp_executor.hpp>

void run() { heed::openmp executor{4}; }
