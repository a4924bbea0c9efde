// The header of MPI, without the C++ classes that MPI itself gave up.
#pragma once

#if !defined(OMPI_SKIP_MPICXX)
#define OMPI_SKIP_MPICXX 1
#endif
#if !defined(MPICH_SKIP_MPICXX)
#define MPICH_SKIP_MPICXX 1
#endif
#include <mpi.h>

#include "../../core/workspace.hpp"

HEED_NAMESPACE_BEGIN
namespace distributed::detail {

// Tag of all messages of this library between two processes of a communicator.
inline constexpr int message_tag = 0x4eed;

struct process {
  int rank = 0, count = 1;
  explicit process(MPI_Comm communicator) {
    MPI_Comm_rank(communicator, &rank);
    MPI_Comm_size(communicator, &count);
  }
  int next(int steps = 1) const { return (rank + steps) % count; }
  int before(int steps = 1) const { return (rank - steps + count) % count; }
};

// Messages are counted in lines of the workspace's alignment: their sizes outgrow an int otherwise.
class line_type {
 public:
  line_type() {
    MPI_Type_contiguous(static_cast<int>(workspace::alignment), MPI_BYTE, &type_);
    MPI_Type_commit(&type_);
  }
  line_type(const line_type&) = delete;
  line_type& operator=(const line_type&) = delete;
  ~line_type() { MPI_Type_free(&type_); }
  MPI_Datatype get() const { return type_; }

  // The size in whole lines.
  static index_t bytes(index_t size) {
    return (size + workspace::alignment - 1) / workspace::alignment * workspace::alignment;
  }
  static int count(index_t bytes) { return static_cast<int>(bytes / workspace::alignment); }

 private:
  MPI_Datatype type_{};
};

}  // namespace distributed::detail
HEED_NAMESPACE_END
