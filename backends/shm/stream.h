// A copy that leaves the caches alone, for batches that do not fit into them: a plain store would first read the line
// that it is about to overwrite, which is a third of the traffic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace aio::shm {

// Who copied so calls end_streaming() before it tells anybody: streaming stores are not ordered with a count.
inline void copy_streaming(std::byte* to, const std::byte* from, std::size_t n) noexcept {
#if defined(__SSE2__)
  constexpr std::size_t kLine = 64;
  constexpr std::size_t kAhead = 8 * kLine;
  const std::size_t lead = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
  if (n >= lead + kLine) {
    std::memcpy(to, from, lead);
    to += lead;
    from += lead;
    n -= lead;
    for (; n >= kLine; to += kLine, from += kLine, n -= kLine) {
      // Into all caches: with the hint for passing them by, Intel's servers copy at half the speed (benchmarks/log.md).
      _mm_prefetch(reinterpret_cast<const char*>(from) + kAhead, _MM_HINT_T0);
      const auto* source = reinterpret_cast<const __m128i*>(from);
      auto* target = reinterpret_cast<__m128i*>(to);
      const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
      const __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
      _mm_stream_si128(target, a);
      _mm_stream_si128(target + 1, b);
      _mm_stream_si128(target + 2, c);
      _mm_stream_si128(target + 3, d);
    }
  }
#endif
  std::memcpy(to, from, n);
}

inline void end_streaming() noexcept {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace aio::shm
