// Data path: copies in sections, each of which the target's owner may refuse.
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "domain.h"
#include "nontemporal_copy.h"

namespace aio::shm {

namespace {

// A section is what one fence protects: long enough that entering it (two full barriers, about 20 ns) does not show,
// short enough that an owner who takes its memory back waits for some ten microseconds.
constexpr std::uint64_t kSectionNbytes = 256 << 10;
// While both ends stay in the caches: glibc copies so much at once by vectors, and less by `rep movsb`, which is slower
// there and faster beyond, on AMD's processors; on Intel's it makes no difference (benchmarks/log.md).
constexpr std::uint64_t kCachedSectionNbytes = 512 << 10;
constexpr std::uint64_t kCachedBatchNbytes = 8 << 20;
// Of memory that is not mapped: a section is a system call that looks the pages up, so fewer and longer ones.
constexpr std::uint64_t kProcessSectionNbytes = 1 << 20;
constexpr std::uint64_t kTurnNbytes = 1 << 20;
// In shorter pieces the lines at their ends cost more than nontemporal stores save (benchmarks/log.md).
constexpr std::uint64_t kNontemporalPieceNbytes = 4096;
constexpr std::uint32_t kVectors = 512;  // below IOV_MAX (1024); longer calls gained nothing

const Outcome kOutOfBounds{Status::provider, ERANGE, "the piece reaches outside the peer's region"};

// Raises the peer's counters, once the payload of all pieces is copied. Neighbours mostly name one counter: one add for
// all of them.
void count(CounterTable& table, const Piece* pieces, std::uint32_t n) noexcept {
  std::uint32_t id = 0;
  std::uint64_t counts = 0;
  for (const Piece* piece = pieces; piece != pieces + n; ++piece) {
    if (!piece->has_immediate()) continue;
    const std::uint32_t named = piece->immediate & kCounterIdMask;
    if (named != id && counts != 0) table.add(id, std::exchange(counts, 0));
    id = named;
    counts += (piece->immediate >> 24) + 1ull;
  }
  if (counts != 0) table.add(id, counts);
}

void copy(void* to, const void* from, std::uint64_t n, bool nontemporal) noexcept {
  if (nontemporal && n >= kNontemporalPieceNbytes) {
    copy_nontemporal(static_cast<std::byte*>(to), static_cast<const std::byte*>(from), n);
  } else {
    std::memcpy(to, from, n);
  }
}

bool is_inside(std::uint64_t offset, std::uint64_t nbytes, std::uint64_t limit) noexcept {
  return nbytes <= limit && offset <= limit - nbytes;
}

void advance(iovec& vector, std::uint64_t nbytes) noexcept {
  vector.iov_base = static_cast<std::byte*>(vector.iov_base) + nbytes;
  vector.iov_len -= nbytes;
}

// Copies between `local` vectors of ours and equally long `remote` ones of the process. A call may stop early, between
// vectors or within one.
Outcome copy_vectors(Op op, int pid, std::uint64_t nbytes, iovec* local, iovec* remote, const iovec* end) {
  const auto call = op == Op::write ? &::process_vm_writev : &::process_vm_readv;
  while (nbytes != 0) {
    const auto n = static_cast<unsigned long>(end - local);
    const ssize_t done = call(pid, local, n, remote, n, 0);
    if (done < 0) {
      if (errno == ESRCH) return {Status::peer_lost, errno, "its process is gone"};
      if (errno == EPERM) {
        return {Status::provider, errno,
                "process_vm_writev: not permitted; use memory from engine.allocate(), or sysctl "
                "kernel.yama.ptrace_scope=0"};
      }
      return {Status::provider, errno, std::string("process_vm_writev: ") + std::strerror(errno)};
    }
    nbytes -= static_cast<std::uint64_t>(done);
    for (auto left = static_cast<std::uint64_t>(done); left != 0;) {
      const std::uint64_t part = std::min<std::uint64_t>(left, local->iov_len);
      advance(*local, part);
      advance(*remote, part);
      left -= part;
      if (local->iov_len == 0) ++local, ++remote;
    }
  }
  return {};
}

}  // namespace

// The part of a flow that one fence protects.
struct ShmDomain::Section {
  Flow& flow;
  std::uint32_t budget;
  std::uint64_t limit;         // bytes
  std::uint32_t finished = 0;  // pieces, from flow.next on
  std::uint64_t nbytes = 0;

  [[nodiscard]] const Piece* piece() const noexcept {
    return finished < budget && flow.next + finished < flow.run.count ? &flow.pieces[flow.next + finished] : nullptr;
  }
  // How much of the current piece belongs to this section; the caller copies that, then calls copied().
  [[nodiscard]] std::uint64_t share(const Piece& piece) const noexcept {
    return std::min(piece.nbytes - flow.offset, limit - nbytes);
  }
  void copied(const Piece& piece, std::uint64_t n) noexcept {
    nbytes += n;
    flow.offset += n;
    if (flow.offset != piece.nbytes) return;
    flow.offset = 0;
    ++finished;
  }
};

Posted ShmDomain::post(Flow& flow, std::uint32_t budget) {
  const auto found = peers_.find(flow.run.peer);
  if (found == peers_.end() || found->second.segment == nullptr) {
    fail_next(flow, {Status::peer_lost, 0, "the peer is not connected"});
    return Posted::more;
  }
  Peer& peer = found->second;
  const RemoteRegion* remote = nullptr;
  if (flow.run.remote_region != 0) {
    const auto region = remote_regions_.find(flow.run.remote_region);
    if (region == remote_regions_.end() || region->second.peer != flow.run.peer) {
      fail_next(flow, {Status::stale_region, 0, "it is not registered with this connection"});
      return Posted::more;
    }
    remote = &region->second;
  }
  const bool is_mapped = remote == nullptr || remote->mapping;
  const std::uint64_t mapped_limit = flow.batch_nbytes < kCachedBatchNbytes ? kCachedSectionNbytes : kSectionNbytes;
  for (std::uint64_t turn = 0; turn < kTurnNbytes && budget != 0 && !flow.exhausted();) {
    Section section{flow, budget, is_mapped ? mapped_limit : kProcessSectionNbytes};
    const Outcome outcome = copy_section(section, peer, remote);
    if (!outcome.ok()) {
      fail_next(flow, outcome);
      return Posted::more;
    }
    turn += std::max<std::uint64_t>(section.nbytes, 1);
    budget -= section.finished;
    flow.next += section.finished;
    flow.in_flight += section.finished;
    if (section.finished != 0) sink_.stopped(flow, section.finished, kDone);
  }
  return Posted::more;
}

void ShmDomain::fail_next(Flow& flow, const Outcome& outcome) {
  flow.offset = 0;
  ++flow.next;
  ++flow.in_flight;
  sink_.stopped(flow, 1, outcome);
}

Outcome ShmDomain::copy_section(Section& section, Peer& peer, const RemoteRegion* remote) {
  static const RemoteRegion nowhere{};  // of no bytes: a count may go there, a payload may not
  Outcome outcome = begin_section(peer, remote);
  if (outcome.ok()) {
    const RemoteRegion& target = remote != nullptr ? *remote : nowhere;
    outcome =
        remote == nullptr || remote->mapping ? copy_mapped(section, target) : copy_by_process(section, peer, target);
  }
  // Before `busy` is cleared: a count after the fence would be that of a peer which is already held for lost.
  if (outcome.ok()) count(peer.counters, section.flow.pieces + section.flow.next, section.finished);
  peer.theirs->busy.store(0, std::memory_order_release);  // after every store of the section
  return outcome;
}

// Announces a section, then asks whether it may be copied. Where it may not, the caller still has to clear `busy`.
Outcome ShmDomain::begin_section(const Peer& peer, const RemoteRegion* remote) noexcept {
  // An exchange, not a plain store: seq_cst, it is visible to the owner before we read its answer (wire.h).
  peer.theirs->busy.exchange(remote != nullptr ? remote->slot + 1 : kNotice, std::memory_order_seq_cst);
  if (peer.theirs->revoked.load(std::memory_order_seq_cst) != 0) {
    return {Status::peer_lost, 0, "the peer has ended the connection"};
  }
  if (remote != nullptr && peer.segment->regions[remote->slot].load(std::memory_order_seq_cst) != remote->generation) {
    return {Status::stale_region, 0, "its owner has deregistered it"};
  }
  return {};
}

// Copies pages: pieces that begin and end in this section and lie inside the region, with nothing of the section
// updated between two of them. The first piece that is not one of these is left to copy_mapped().
void ShmDomain::copy_whole_pieces(Section& section, const RemoteRegion& remote, bool nontemporal) noexcept {
  const Flow& flow = section.flow;
  if (flow.run.op != Op::write || flow.offset != 0) return;
  const std::uint64_t addr = remote.addr, limit = remote.nbytes;
  std::uint64_t room = section.limit - section.nbytes;
  const Piece* const first = flow.pieces + flow.next + section.finished;
  const Piece* const end = flow.pieces + std::min(flow.next + section.budget, flow.run.count);
  const Piece* piece = first;
  for (; piece < end && piece->nbytes <= room && is_inside(piece->remote_offset, piece->nbytes, limit); ++piece) {
    const std::uint64_t n = piece->nbytes;
    room -= n;
    copy(reinterpret_cast<void*>(addr + piece->remote_offset), reinterpret_cast<void*>(piece->local_addr), n,
         nontemporal);
  }
  section.finished += static_cast<std::uint32_t>(piece - first);
  section.nbytes = section.limit - room;
}

Outcome ShmDomain::copy_mapped(Section& section, const RemoteRegion& remote) {
  using Clock = std::chrono::steady_clock;
  const Flow& flow = section.flow;
  const bool is_measured = flow.batch_nbytes >= CopyTuner::kMinNbytes;
  const std::uint64_t piece_nbytes = flow.pieces[flow.next].nbytes;
  const bool nontemporal = copy_tuner_.prefers_nontemporal(flow.batch_nbytes, piece_nbytes);
  const auto begun = is_measured ? Clock::now() : Clock::time_point();
  copy_whole_pieces(section, remote, nontemporal);
  for (const Piece* piece; (piece = section.piece()) != nullptr && section.nbytes < section.limit;) {
    if (!is_inside(piece->remote_offset, piece->nbytes, remote.nbytes)) return kOutOfBounds;
    const std::uint64_t n = section.share(*piece);
    auto* local = reinterpret_cast<std::byte*>(piece->local_addr + flow.offset);
    auto* far = reinterpret_cast<std::byte*>(remote.addr + piece->remote_offset + flow.offset);
    std::byte* const to = flow.run.op == Op::write ? far : local;
    const std::byte* const from = flow.run.op == Op::write ? local : far;
    copy(to, from, n, nontemporal);
    section.copied(*piece, n);
  }
  if (nontemporal) end_nontemporal();
  if (is_measured) copy_tuner_.learn(flow.batch_nbytes, piece_nbytes, section.nbytes, Clock::now() - begun);
  return {};
}

// One vectored call per section. Counts follow only when all of it has arrived.
Outcome ShmDomain::copy_by_process(Section& section, const Peer& peer, const RemoteRegion& remote) {
  std::array<iovec, kVectors> local;
  std::array<iovec, kVectors> far;
  std::uint32_t n = 0;
  const Flow& flow = section.flow;
  for (const Piece* piece; (piece = section.piece()) != nullptr && n < kVectors && section.nbytes < section.limit;) {
    if (!is_inside(piece->remote_offset, piece->nbytes, remote.nbytes)) return kOutOfBounds;
    const std::uint64_t share = section.share(*piece);
    local[n] = {reinterpret_cast<void*>(piece->local_addr + flow.offset), share};
    far[n] = {reinterpret_cast<void*>(remote.addr + piece->remote_offset + flow.offset), share};
    ++n;
    section.copied(*piece, share);
  }
  // A pid may be given to another process once its owner is reaped: ask the pidfd right before using the number.
  if (has_exited(peer.process)) return {Status::peer_lost, ESRCH, "its process is gone"};
  return copy_vectors(flow.run.op, peer.pid, section.nbytes, local.data(), far.data(), local.data() + n);
}

Posted ShmDomain::send(PeerNumber /*number*/, TransferId message, const std::string& /*payload*/) {
  sink_.sent(message, {Status::provider, EOPNOTSUPP, "shm carries no messages"});
  return Posted::more;
}

}  // namespace aio::shm
