#include "domain.h"

namespace aio::sim {

SimDomain::SimDomain(Sink& sink, std::shared_ptr<Fabric> fabric, unsigned rail, int doorbell_fd)
    : sink_(sink), fabric_(std::move(fabric)) {
  attributes_.name = "sim" + std::to_string(rail);
  attributes_.provider = "sim";
  attributes_.protocol = "packets in any order, applied by the target";
  attributes_.max_message_nbytes = kMaxMessageNbytes;
  attributes_.preference = 0;  // for tests: never chosen over a real transport
  attributes_.same_host = true;
  if (fabric_->faults().max_piece != 0) attributes_.max_piece_nbytes = fabric_->faults().max_piece;
  attributes_.quantum = 8;
  if (!fabric_->stepped()) wake_fd_ = make_eventfd();
  node_ = fabric_->add_node(wake_fd_ ? wake_fd_.get() : doorbell_fd);
}

SimDomain::~SimDomain() { fabric_->remove_node(node_); }

std::uint64_t SimDomain::handles() const noexcept {
  return peers_.size() + local_regions_.size() + remote_regions_.size() + operations_.size() + releases_.size() +
         fences_.size() + finished_.size() + arrivals_.size() + outbound_.size();
}

}  // namespace aio::sim
