// Views of Python buffers, borrowed for the length of one call.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "../core/types.h"

namespace aio::native {

// A buffer of records of type T.
template <class T>
class RecordBuffer {
 public:
  explicit RecordBuffer(nanobind::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS) != 0) throw nanobind::python_error();
  }
  RecordBuffer(const RecordBuffer&) = delete;
  RecordBuffer& operator=(const RecordBuffer&) = delete;
  ~RecordBuffer() { PyBuffer_Release(&view_); }

  [[nodiscard]] const T* data() const noexcept { return static_cast<const T*>(view_.buf); }
  [[nodiscard]] std::size_t size() const {
    if (static_cast<std::size_t>(view_.len) % sizeof(T) != 0) {
      throw Failure(Failure::Kind::usage, "post", "the buffer is no whole number of records");
    }
    return static_cast<std::size_t>(view_.len) / sizeof(T);
  }

 private:
  Py_buffer view_{};
};

// A buffer of 64-bit integers. Any other object is an empty one: the caller then takes a slower path that explains.
class NumberBuffer {
 public:
  explicit NumberBuffer(nanobind::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) != 0) PyErr_Clear();
  }
  NumberBuffer(const NumberBuffer&) = delete;
  NumberBuffer& operator=(const NumberBuffer&) = delete;
  ~NumberBuffer() { PyBuffer_Release(&view_); }

  // The numbers, if there are exactly `count`, else null. Negative ones read as larger than any memory.
  [[nodiscard]] const std::uint64_t* data(std::size_t count) const noexcept {
    const std::string_view format = view_.format == nullptr ? "" : view_.format;
    const bool is_integer = format == "L" || format == "Q" || format == "l" || format == "q";
    const bool fits = view_.ndim == 1 && view_.itemsize == 8 && static_cast<std::size_t>(view_.len) == 8 * count;
    return is_integer && fits ? static_cast<const std::uint64_t*>(view_.buf) : nullptr;
  }

 private:
  Py_buffer view_{};
};

inline std::string to_string(const nanobind::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }
inline nanobind::bytes to_bytes(const std::string& bytes) { return nanobind::bytes(bytes.data(), bytes.size()); }

}  // namespace aio::native
