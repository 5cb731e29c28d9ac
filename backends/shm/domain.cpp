#include "domain.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "stream.h"

namespace aio::shm {

namespace {

// A section is what one fence protects: long enough that entering it (two full barriers, ~20 ns) does not show, short
// enough that an owner who takes its memory back waits some ten microseconds.
constexpr std::uint64_t kSectionNbytes = 256 << 10;
// While both ends stay in the caches: glibc copies so much at once by vectors, and less by `rep movsb`, which is slower
// there and faster beyond, on AMD's processors; on Intel's it makes no difference (benchmarks/log.md).
constexpr std::uint64_t kCachedSectionNbytes = 512 << 10;
constexpr std::uint64_t kCachedBatchNbytes = 8 << 20;
// Of memory that is not mapped: a section is a system call that looks the pages up, so fewer and longer ones.
constexpr std::uint64_t kForeignSectionNbytes = 1 << 20;
constexpr std::uint64_t kTurnNbytes = 1 << 20;
// Of shorter pieces the lines at their ends cost more than streaming saves (benchmarks/log.md).
constexpr std::uint64_t kStreamedPieceNbytes = 4096;
constexpr std::size_t kBellsOfCaller = 4;  // waking our own worker takes as long as waking a peer
constexpr std::uint32_t kVectors = 512;    // below IOV_MAX (1024); longer calls gained nothing

struct RegionKey {
  std::uint32_t slot, generation, has_fd, version;
  std::uint64_t fd_offset, addr, nbytes;
};
static_assert(sizeof(RegionKey) == 40);

struct LinkBlob {
  std::uint64_t magic;
  std::uint64_t slot;
  std::uint64_t nonce;
};

template <class T>
std::string to_bytes(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

template <class T>
T from_bytes(const std::string& bytes, const char* what) {
  if (bytes.size() != sizeof(T))
    throw Failure(Failure::Kind::usage, what, "not what a shm engine of this version sends");
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

bool gone(const Fd& process) noexcept {
  if (!process) return false;
  pollfd poller{process.get(), POLLIN, 0};
  return ::poll(&poller, 1, 0) == 1;
}

Fd duplicate(int fd, const char* what) {
  const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) throw Failure(Failure::Kind::provider, what, std::strerror(errno), errno);
  return Fd(copy);
}

// The pid behind a pidfd, in our pid namespace: the kernel's word, not the peer's.
int pid_of(int pidfd) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/fdinfo/%d", pidfd);
  int pid = -1;
  if (std::FILE* file = std::fopen(path, "re"); file != nullptr) {
    char line[128];
    while (std::fgets(line, sizeof line, file) != nullptr) {
      if (std::sscanf(line, "Pid: %d", &pid) == 1) break;
    }
    std::fclose(file);
  }
  if (pid <= 0) throw Failure(Failure::Kind::usage, "connect", "the peer sent no handle of a process we can see");
  return pid;
}

// Only once the payload of all of them is copied. Adjacent pieces mostly name one counter: one add for all.
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

void fail_next(Sink& sink, Flow& flow, const Outcome& outcome) {
  flow.offset = 0;
  ++flow.next;
  ++flow.in_flight;
  sink.stopped(flow, 1, outcome);
}

}  // namespace

ShmDomain::ShmDomain(Sink& sink, std::shared_ptr<OwnSegment> segment)
    : sink_(sink), segment_(std::move(segment)), generations_(kRegionSlots, 0) {
  attributes_.name = "memory";
  attributes_.provider = "memfd";
  attributes_.protocol = "memcpy into the peer's mapped memory; process_vm_writev into other memory";
  attributes_.preference = 400;
  attributes_.same_host = true;
  attributes_.grants = true;
  // Measured: handing over costs 18 us more per submit and a wake of the loop; streams gain by it from 128-256 KiB on.
  attributes_.inline_nbytes = 128 << 10;
  attributes_.inline_pieces = 256;
  attributes_.quantum = 256;
  free_regions_.reserve(kRegionSlots);
  for (std::uint32_t slot = kRegionSlots; slot-- > 0;) free_regions_.push_back(slot);
}

ShmDomain::~ShmDomain() {
  bells_.ring_all();
  // What peers still hold of us must not be used: they see it before their next section.
  Segment& own = *segment_->get();
  for (auto& [number, local] : locals_) own.regions[local.slot].store(0, std::memory_order_seq_cst);
  for (auto& [number, link] : links_) {
    if (link.mine != nullptr) link.mine->revoked.store(1, std::memory_order_seq_cst);
    if (link.theirs != nullptr) link.theirs->step(link.their_nonce, SlotState::joined, SlotState::left);
  }
}

std::uint64_t ShmDomain::handles() const noexcept {
  return links_.size() + locals_.size() + remotes_.size() + releasing_.size() + fencing_.size() + retired_.size();
}

// ----------------------------------------------------------------------------------------------------- regions

std::string ShmDomain::register_local(RegionNumber region, const LocalMemory& memory) {
  if (free_regions_.empty()) throw Failure(Failure::Kind::provider, "register", "65536 regions are registered", ENOSPC);
  const std::uint32_t slot = free_regions_.back();
  free_regions_.pop_back();
  const std::uint32_t generation = ++generations_[slot] == 0 ? ++generations_[slot] : generations_[slot];
  locals_.emplace(region, Local{memory.addr, memory.nbytes, slot});
  if (memory.access != 0) segment_->get()->regions[slot].store(generation, std::memory_order_seq_cst);
  if (memory.fd < 0 && memory.access != 0) {
    // Where Yama restricts ptrace, only this lets a peer of the same user reach memory that is not in a memfd. EINVAL
    // where there is no Yama.
    ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
  }
  return to_bytes(
      RegionKey{slot, generation, memory.fd >= 0 ? 1u : 0u, 1, memory.fd_offset, memory.addr, memory.nbytes});
}

void ShmDomain::register_remote(RegionNumber region, const RemoteMemory& memory) {
  const auto key = from_bytes<RegionKey>(memory.keys, "region key");
  if (key.slot >= kRegionSlots || key.generation == 0 || key.nbytes != memory.nbytes || key.version != 1) {
    throw Failure(Failure::Kind::usage, "region key", "its fields contradict each other");
  }
  const auto found = links_.find(memory.peer);
  if (found == links_.end() || found->second.segment == nullptr) {
    throw Failure(Failure::Kind::usage, "register", "the peer is not connected");
  }
  if (found->second.segment->regions[key.slot].load(std::memory_order_seq_cst) != key.generation) {
    throw Failure(Failure::Kind::stale, "region", "its owner has deregistered it");
  }
  Remote remote{memory.peer, key.slot, key.generation, memory.nbytes, key.addr, {}};
  if (key.has_fd != 0) {
    if (memory.fds.size() != 1) throw Failure(Failure::Kind::usage, "register", "the grant brought no memory");
    const std::uint64_t page = key.fd_offset & ~4095ull;
    const std::uint64_t lead = key.fd_offset - page;
    remote.mapping = map_sealed(memory.fds.front(), page, memory.nbytes + lead, true, "region");
    remote.addr = reinterpret_cast<std::uint64_t>(remote.mapping.base()) + lead;
  }
  remotes_.insert_or_assign(region, std::move(remote));
}

bool ShmDomain::held(std::uint32_t region_slot) const noexcept {
  const auto holds = [&](const PeerSlot* slot, const Fd& process) {
    return slot != nullptr && slot->busy.load(std::memory_order_seq_cst) == region_slot + 1 && !gone(process);
  };
  return std::any_of(links_.begin(), links_.end(),
                     [&](const auto& entry) { return holds(entry.second.mine, entry.second.process); }) ||
         std::any_of(fencing_.begin(), fencing_.end(),
                     [&](const Fence& fence) { return holds(fence.slot, fence.process); });
}

void ShmDomain::deregister(RegionNumber region) {
  if (const auto remote = remotes_.find(region); remote != remotes_.end()) {
    reaper_.take(std::move(remote->second.mapping));
    remotes_.erase(remote);
    return;
  }
  const auto found = locals_.find(region);
  if (found == locals_.end()) return;
  const std::uint32_t slot = found->second.slot;
  locals_.erase(found);
  segment_->get()->regions[slot].store(0, std::memory_order_seq_cst);
  releasing_.emplace_back(region, slot);
  progress();
}

// ------------------------------------------------------------------------------------------------- connections

// A slot may serve another peer only when its old one will never store to it again: a zombie keeps its slot.
void ShmDomain::sweep() {
  std::erase_if(retired_, [](const Fence& fence) {
    const bool over = fence.slot->word.load(std::memory_order_acquire) == PeerSlot::pack(fence.nonce, SlotState::left);
    if (!over && !gone(fence.process)) return false;
    fence.slot->word.store(0, std::memory_order_release);
    return true;
  });
}

bool ShmDomain::needs_progress() const noexcept {
  // A peer that takes its leave does so within moments of us; one that does not keeps its slot until its process ends.
  constexpr auto kLeaving = std::chrono::seconds(5);
  return !releasing_.empty() || !fencing_.empty() ||
         (!retired_.empty() && std::chrono::steady_clock::now() - retired_.back().since < kLeaving);
}

std::optional<std::vector<int>> ShmDomain::arm() {
  if (!bells_.bells.empty()) return std::nullopt;
  std::vector<int> ends;  // processes whose end lets a slot, or a region, go
  for (const auto* list : {&fencing_, &retired_}) {
    for (const Fence& fence : *list) {
      if (fence.process) ends.push_back(fence.process.get());
    }
  }
  return ends;
}

PeerSlot* ShmDomain::take_slot(std::uint64_t nonce) {
  sweep();
  for (PeerSlot& slot : segment_->get()->peers) {
    if (slot.word.load(std::memory_order_acquire) != 0) continue;
    slot.revoked.store(0, std::memory_order_relaxed);
    slot.busy.store(0, std::memory_order_relaxed);
    slot.word.store(PeerSlot::pack(nonce, SlotState::offered), std::memory_order_seq_cst);
    return &slot;
  }
  throw Failure(Failure::Kind::provider, "connect", "1024 peers of this host are connected", ENOSPC);
}

Endpoint ShmDomain::connect(PeerNumber peer, const std::optional<Endpoint>& remote) {
  Link& link = links_[peer];
  if (link.mine == nullptr) {
    link.my_nonce = ++nonce_;
    link.mine = take_slot(link.my_nonce);
  }
  if (remote) {
    const auto blob = from_bytes<LinkBlob>(remote->blob, "endpoint");
    if (blob.magic != kSegmentMagic || blob.slot >= kPeerSlots || remote->fds.size() != 3) {
      throw Failure(Failure::Kind::usage, "endpoint", "not what a shm engine of this version sends");
    }
    link.mapping = map_sealed(remote->fds[0], 0, sizeof(Segment), true, "endpoint");
    auto* segment = static_cast<Segment*>(link.mapping.base());
    if (segment->magic != kSegmentMagic || segment->nbytes != sizeof(Segment)) {
      throw Failure(Failure::Kind::usage, "endpoint", "the peer's segment is of another version");
    }
    link.doorbell = duplicate(remote->fds[1], "endpoint");
    link.process = duplicate(remote->fds[2], "endpoint");
    link.pid = pid_of(link.process.get());
    PeerSlot* const theirs = &segment->peers[blob.slot];
    if (!theirs->step(blob.nonce, SlotState::offered, SlotState::joined)) {
      throw Failure(Failure::Kind::peer_lost, "connect", "it has withdrawn its end");
    }
    link.theirs = theirs;
    link.their_nonce = blob.nonce;
    link.counters = CounterTable(&segment->counters, link.doorbell.get(), &bells_);
    link.segment = segment;
  }
  const auto slot = static_cast<std::uint64_t>(link.mine - segment_->get()->peers);
  return {to_bytes(LinkBlob{kSegmentMagic, slot, link.my_nonce}),
          {segment_->memory_fd(), segment_->doorbell_fd(), segment_->process_fd()}};
}

void ShmDomain::disconnect(PeerNumber peer, bool /*lost*/) {
  const auto found = links_.find(peer);
  if (found == links_.end()) return sink_.fenced(peer);
  bells_.ring_all();  // while its own is open
  Link link = std::move(found->second);
  links_.erase(found);
  if (link.mine == nullptr) return sink_.fenced(peer);  // there was no slot for it
  for (auto at = remotes_.begin(); at != remotes_.end();) {
    if (at->second.peer == peer) reaper_.take(std::move(at->second.mapping));
    at = at->second.peer == peer ? remotes_.erase(at) : std::next(at);
  }
  // Our copies run under the core's lock, so none is under way: leaving is the last thing we do there.
  if (link.theirs != nullptr) link.theirs->step(link.their_nonce, SlotState::joined, SlotState::left);
  link.mine->revoked.store(1, std::memory_order_seq_cst);
  if (link.mine->step(link.my_nonce, SlotState::offered, SlotState::free)) {  // it never joined, and cannot any more
    link.mine->word.store(0, std::memory_order_release);
    return sink_.fenced(peer);
  }
  fencing_.push_back({peer, link.mine, link.my_nonce, std::move(link.process), std::chrono::steady_clock::now()});
  progress();
}

Posted ShmDomain::send(PeerNumber /*peer*/, TransferId message, const std::string& /*payload*/) {
  sink_.sent(message, {Status::provider, EOPNOTSUPP, "shm carries no messages"});
  return Posted::more;
}

bool ShmDomain::release_doorbells() {
  bells_.holding = false;
  if (bells_.bells.size() <= kBellsOfCaller) bells_.ring_all();
  return bells_.bells.empty();
}

bool ShmDomain::progress() {
  bool moved = !bells_.bells.empty();
  bells_.ring_all();
  std::erase_if(releasing_, [&](const auto& entry) {
    if (held(entry.second)) return false;
    free_regions_.insert(free_regions_.begin(), entry.second);  // the longest unused slot first, so generations last
    sink_.released(entry.first);
    return moved = true;
  });
  std::erase_if(fencing_, [&](Fence& fence) {
    if (fence.slot->busy.load(std::memory_order_seq_cst) != 0 && !gone(fence.process)) return false;
    sink_.fenced(fence.peer);
    retired_.push_back(std::move(fence));
    return moved = true;
  });
  sweep();
  return moved;
}

// --------------------------------------------------------------------------------------------------- data path

// Announce a section, then ask whether it may run. On a refusal the caller still has to clear `busy`.
Outcome ShmDomain::enter(const Link& link, const Remote* remote) const noexcept {
  // xchg, not a plain store: it must be visible to the owner before we read its answer.
  link.theirs->busy.exchange(remote != nullptr ? remote->slot + 1 : kNotice, std::memory_order_seq_cst);
  if (link.theirs->revoked.load(std::memory_order_seq_cst) != 0) {
    return {Status::peer_lost, 0, "the peer has ended the connection"};
  }
  if (remote != nullptr && link.segment->regions[remote->slot].load(std::memory_order_seq_cst) != remote->generation) {
    return {Status::stale_region, 0, "its owner has deregistered it"};
  }
  return {};
}

struct ShmDomain::Section {
  Flow& flow;
  std::uint32_t budget;
  std::uint64_t limit;
  std::uint32_t finished = 0;  // pieces, from flow.next on
  std::uint64_t nbytes = 0;

  [[nodiscard]] const Piece* piece() const noexcept {
    return finished < budget && flow.next + finished < flow.run.count ? &flow.pieces[flow.next + finished] : nullptr;
  }
  // How much of the current piece belongs to this section; the caller moves it, then says so.
  [[nodiscard]] std::uint64_t share(const Piece& piece) const noexcept {
    return std::min(piece.nbytes - flow.offset, limit - nbytes);
  }
  void moved(const Piece& piece, std::uint64_t n) noexcept {
    nbytes += n;
    flow.offset += n;
    if (flow.offset != piece.nbytes) return;
    flow.offset = 0;
    ++finished;
  }
};

namespace {

void move(void* to, const void* from, std::uint64_t n, bool streams) noexcept {
  if (streams && n >= kStreamedPieceNbytes) {
    copy_streaming(static_cast<std::byte*>(to), static_cast<const std::byte*>(from), n);
  } else {
    std::memcpy(to, from, n);
  }
}

bool inside(std::uint64_t offset, std::uint64_t nbytes, std::uint64_t limit) noexcept {
  return nbytes <= limit && offset <= limit - nbytes;
}

}  // namespace

// Pages: pieces that begin and end in this section and go there. Nothing of the section is looked at between two of
// them. The first that is none of these is left to copy().
void ShmDomain::copy_whole(Section& section, const Remote& remote, bool streams) noexcept {
  const Flow& flow = section.flow;
  if (flow.run.op != Op::write || flow.offset != 0) return;
  const std::uint64_t addr = remote.addr, limit = remote.nbytes;
  std::uint64_t room = section.limit - section.nbytes;
  const Piece* const first = flow.pieces + flow.next + section.finished;
  const Piece* const end = flow.pieces + std::min(flow.next + section.budget, flow.run.count);
  const Piece* piece = first;
  for (; piece < end && piece->nbytes <= room && inside(piece->remote_offset, piece->nbytes, limit); ++piece) {
    const std::uint64_t n = piece->nbytes;
    room -= n;
    move(reinterpret_cast<void*>(addr + piece->remote_offset), reinterpret_cast<void*>(piece->local_addr), n, streams);
  }
  section.finished += static_cast<std::uint32_t>(piece - first);
  section.nbytes = section.limit - room;
}

Outcome ShmDomain::copy(Section& section, const Link&, const Remote& remote) {
  const Flow& flow = section.flow;
  const bool is_large = flow.batch_nbytes >= Trial::kLeastNbytes;
  const std::uint64_t piece_nbytes = flow.pieces[flow.next].nbytes;
  const bool streams = trial_.streams(flow.batch_nbytes, piece_nbytes);
  const auto begun = is_large ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point();
  copy_whole(section, remote, streams);
  for (const Piece* piece; (piece = section.piece()) != nullptr && section.nbytes < section.limit;) {
    if (!inside(piece->remote_offset, piece->nbytes, remote.nbytes)) {
      return {Status::provider, ERANGE, "the piece reaches outside the peer's region"};
    }
    const std::uint64_t n = section.share(*piece);
    auto* here = reinterpret_cast<std::byte*>(piece->local_addr + flow.offset);
    auto* there = reinterpret_cast<std::byte*>(remote.addr + piece->remote_offset + flow.offset);
    std::byte* const to = flow.run.op == Op::write ? there : here;
    const std::byte* const from = flow.run.op == Op::write ? here : there;
    move(to, from, n, streams);
    section.moved(*piece, n);
  }
  if (streams) end_streaming();
  if (is_large) trial_.learn(flow.batch_nbytes, piece_nbytes, section.nbytes, std::chrono::steady_clock::now() - begun);
  return {};
}

// One vectored call per section. Counts follow only when all of it has arrived.
Outcome ShmDomain::copy_process(Section& section, const Link& link, const Remote& remote) {
  std::array<iovec, kVectors> here;
  std::array<iovec, kVectors> there;
  std::uint32_t n = 0;
  const Flow& flow = section.flow;
  for (const Piece* piece; (piece = section.piece()) != nullptr && n < kVectors && section.nbytes < section.limit;) {
    if (!inside(piece->remote_offset, piece->nbytes, remote.nbytes)) {
      return {Status::provider, ERANGE, "the piece reaches outside the peer's region"};
    }
    const std::uint64_t share = section.share(*piece);
    here[n] = {reinterpret_cast<void*>(piece->local_addr + flow.offset), share};
    there[n] = {reinterpret_cast<void*>(remote.addr + piece->remote_offset + flow.offset), share};
    ++n;
    section.moved(*piece, share);
  }
  // A pid may be given to another process once its owner is reaped: ask the pidfd right before using the number.
  if (gone(link.process)) return {Status::peer_lost, ESRCH, "its process is gone"};
  std::uint64_t left = section.nbytes;
  for (std::uint32_t at = 0; left != 0;) {
    const auto call = flow.run.op == Op::write ? &::process_vm_writev : &::process_vm_readv;
    const ssize_t done = call(link.pid, &here[at], n - at, &there[at], n - at, 0);
    if (done < 0) {
      if (errno == ESRCH) return {Status::peer_lost, errno, "its process is gone"};
      if (errno == EPERM) {
        return {Status::provider, errno,
                "process_vm_writev: not permitted; use memory from engine.allocate(), or sysctl "
                "kernel.yama.ptrace_scope=0"};
      }
      return {Status::provider, errno, std::string("process_vm_writev: ") + std::strerror(errno)};
    }
    left -= static_cast<std::uint64_t>(done);
    for (auto skip = static_cast<std::uint64_t>(done); skip != 0;) {
      const std::uint64_t part = std::min<std::uint64_t>(skip, here[at].iov_len);
      for (auto* vector : {&here[at], &there[at]}) {
        vector->iov_base = static_cast<std::byte*>(vector->iov_base) + part;
        vector->iov_len -= part;
      }
      skip -= part;
      if (here[at].iov_len == 0) ++at;
    }
  }
  return {};
}

Posted ShmDomain::post(Flow& flow, std::uint32_t budget) {
  const auto found = links_.find(flow.run.peer);
  if (found == links_.end() || found->second.segment == nullptr) {
    fail_next(sink_, flow, {Status::peer_lost, 0, "the peer is not connected"});
    return Posted::more;
  }
  Link& link = found->second;
  const Remote* remote = nullptr;
  if (flow.run.remote_region != 0) {
    const auto region = remotes_.find(flow.run.remote_region);
    if (region == remotes_.end() || region->second.peer != flow.run.peer) {
      fail_next(sink_, flow, {Status::stale_region, 0, "it is not registered with this connection"});
      return Posted::more;
    }
    remote = &region->second;
  }
  for (std::uint64_t turn = 0; turn < kTurnNbytes && budget != 0 && !flow.exhausted();) {
    Outcome outcome = enter(link, remote);
    const bool mapped = remote == nullptr || remote->mapping;
    const std::uint64_t own = flow.batch_nbytes < kCachedBatchNbytes ? kCachedSectionNbytes : kSectionNbytes;
    Section section{flow, budget, mapped ? own : kForeignSectionNbytes};
    if (outcome.ok()) {
      static const Remote nowhere{};  // of no bytes: a notification may name it, a payload may not
      const Remote& target = remote != nullptr ? *remote : nowhere;
      outcome = mapped ? copy(section, link, target) : copy_process(section, link, target);
    }
    if (outcome.ok()) {
      // Before `busy` is cleared: a count after the fence would be a zombie's.
      count(link.counters, flow.pieces + flow.next, section.finished);
    }
    link.theirs->busy.store(0, std::memory_order_release);
    if (!outcome.ok()) {
      fail_next(sink_, flow, outcome);
      return Posted::more;
    }
    turn += std::max<std::uint64_t>(section.nbytes, 1);
    budget -= section.finished;
    flow.next += section.finished;
    flow.in_flight += section.finished;
    if (section.finished != 0) sink_.stopped(flow, section.finished, {});
  }
  return Posted::more;
}

}  // namespace aio::shm
