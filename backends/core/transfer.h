// Transfer: one batch of pieces, from the records that a caller posted to the outcome of the last piece.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "domain.h"

namespace aio {

// One batch, a flow per run. It ends when every flow's pieces have stopped; an error is reported only then, since the
// caller takes its memory back after the report.
struct Transfer {
  TransferId id = 0;
  std::uint64_t nbytes = 0;
  std::uint32_t unfinished = 0;  // flows that may still move, and holds (Scheduler::Hold)
  bool in_post = false;          // post() is on the stack and returns a success itself: no event is needed for one
  std::vector<Piece> pieces;
  std::deque<Flow> flows;  // a deque: lanes and domains keep addresses of flows
  Outcome outcome;         // the first error; later ones only follow from it
};

// PostedRecords that a caller posts, borrowed for the length of a call.
struct PostedRecords {
  const Run* runs;
  std::size_t n_runs;
  const Piece* pieces;
  std::size_t n_pieces;
};

// Maker of transfers, which keeps some of those that have ended: posting a small batch then allocates nothing. For the
// engine's thread alone.
class TransferPool {
 public:
  // Copies and checks the records; null: there is nothing to move. Throws Failure(usage) before anything has started.
  // Rails are numbered below `n_rails`.
  std::unique_ptr<Transfer> assemble(TransferId id, const PostedRecords& records, std::size_t n_rails);
  // Takes back a transfer that has succeeded: its outcome is as new.
  void recycle(std::unique_ptr<Transfer>&& transfer) {
    if (spare_.size() >= kSpareTransfers || transfer->pieces.capacity() > kSparePieces) return;
    transfer->flows.clear();
    transfer->nbytes = 0;
    spare_.push_back(std::move(transfer));
  }

 private:
  static constexpr std::size_t kSpareTransfers = 256;
  static constexpr std::size_t kSparePieces = 64;  // a larger vector is freed instead of kept

  std::unique_ptr<Transfer> take() {
    if (spare_.empty()) return std::make_unique<Transfer>();
    std::unique_ptr<Transfer> transfer = std::move(spare_.back());
    spare_.pop_back();
    return transfer;
  }

  std::vector<std::unique_ptr<Transfer>> spare_;
};

}  // namespace aio
