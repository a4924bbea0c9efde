// expect: heed: HEED_DEFAULT_BACKEND names a backend that the compiler's target cannot run
namespace elsewhere {
struct matrix_unit;  // like a backend of another architecture: declared, never defined
}
#undef HEED_DEFAULT_BACKEND
#define HEED_DEFAULT_BACKEND ::elsewhere::matrix_unit
#include <heed/dense/attention.hpp>
