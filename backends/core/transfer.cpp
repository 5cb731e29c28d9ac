#include "transfer.h"

#include <iterator>

namespace aio {

namespace {

[[noreturn]] void refuse(const char* why) { throw Failure(Failure::Kind::usage, "post", why); }

// Makes `flow`, the newest of its transfer and made of run number `index`, wait for the flows of the `after` runs
// before it. A run without pieces has no flow.
void add_predecessors(Transfer& transfer, Flow& flow, const Run* runs, std::size_t index) {
  auto before = std::next(transfer.flows.rbegin());
  for (std::size_t i = index; i-- > index - flow.run.after;) {
    if (runs[i].count == 0) continue;
    if (before->successor != nullptr) refuse("two runs follow the same one");
    before->successor = &flow;
    ++before;
    ++flow.predecessors;
  }
  flow.run.after = flow.predecessors;
}

}  // namespace

std::unique_ptr<Transfer> TransferPool::assemble(TransferId id, const PostedRecords& records, std::size_t n_rails) {
  std::unique_ptr<Transfer> transfer = take();
  transfer->id = id;
  transfer->pieces.assign(records.pieces, records.pieces + records.n_pieces);
  for (std::size_t i = 0; i < records.n_runs; ++i) {
    const Run& run = records.runs[i];
    if (run.rail >= n_rails || std::uint64_t{run.first} + run.count > records.n_pieces) {
      refuse("a run names a rail or pieces that do not exist");
    }
    if (run.after > i) refuse("a run follows more runs than there are before it");
    if (run.count == 0) continue;
    Flow& flow = transfer->flows.emplace_back(Flow{transfer.get(), transfer->pieces.data() + run.first, run});
    if (run.after != 0) add_predecessors(*transfer, flow, records.runs, i);
  }
  if (transfer->flows.empty()) return nullptr;
  transfer->unfinished = static_cast<std::uint32_t>(transfer->flows.size());
  for (const Piece& piece : transfer->pieces) transfer->nbytes += piece.nbytes;
  for (Flow& flow : transfer->flows) flow.batch_nbytes = transfer->nbytes;
  return transfer;
}

}  // namespace aio
