// Progress: packets out and in, then completions, counts, releases and fences, in any order and some of them late.
#include <algorithm>
#include <utility>

#include "domain.h"

namespace aio::sim {

namespace {

template <class T>
T take_any(std::vector<T>& from, std::size_t index) {
  std::swap(from[index], from.back());
  T out = std::move(from.back());
  from.pop_back();
  return out;
}

}  // namespace

bool SimDomain::progress() {
  if (wake_fd_) clear_eventfd(wake_fd_.get());
  bool moved = fabric_->receive_datagrams();
  const Fabric::Controls controls = fabric_->controls(node_);
  holding_ = controls.holding;
  stalled_ = controls.stalled;
  if (!stalled_) {
    moved |= send_some(1 + static_cast<std::uint32_t>(fabric_->below(controls.speed)));
    Packet packet;
    for (auto left = 1 + fabric_->below(controls.speed); left != 0 && fabric_->take_next(node_, packet); --left) {
      on_packet(std::move(packet));
      moved = true;
    }
  }
  return report_some(holding_) || moved;
}

bool SimDomain::needs_progress() const noexcept {
  return (!outbound_.empty() && !blocked_ && !stalled_) || (!finished_.empty() && !holding_) || !counts_.empty() ||
         !releases_.empty() || !fences_.empty();
}

std::optional<std::vector<int>> SimDomain::arm() {
  if (fabric_->has_inbound(node_)) return std::nullopt;
  return std::vector<int>{wake_fd_.get(), fabric_->socket_fd()};
}

void SimDomain::report(const Operation& operation) {
  if (operation.flow != nullptr) {
    sink_.stopped(*operation.flow, 1, operation.outcome);
  } else {
    sink_.sent(operation.message, operation.outcome);
  }
}

void SimDomain::report_counts(std::uint64_t link) {
  std::erase_if(counts_, [&](const PendingCount& count) {
    if (count.link != link) return false;
    sink_.counted(count.immediate);
    return true;
  });
}

// `holding`: completions wait until the fabric's controls let them go.
bool SimDomain::report_some(bool holding) {
  const double late = fabric_->faults().late_completions;
  bool moved = false;
  for (std::size_t left = holding ? 0 : finished_.size(); left != 0; --left) {
    if (fabric_->happens(late)) continue;
    report(take_any(finished_, fabric_->below(finished_.size())));
    moved = true;
  }
  for (std::size_t left = counts_.size(); left != 0; --left) {
    if (fabric_->happens(late)) continue;
    sink_.counted(take_any(counts_, fabric_->below(counts_.size())).immediate);
    moved = true;
  }
  std::erase_if(releases_, [&](RegionNumber region) {
    if (fabric_->happens(late)) return false;
    sink_.released(region);
    return moved = true;
  });
  std::erase_if(fences_, [&](const PendingFence& fence) {
    const auto is_before = [&](const PendingCount& count) { return count.link == fence.link; };
    if (std::ranges::any_of(counts_, is_before)) return false;
    sink_.fenced(fence.peer);
    return moved = true;
  });
  return moved;
}

}  // namespace aio::sim
