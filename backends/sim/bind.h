// The simulated fabric as Python sees it.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <string>
#include <vector>

#include "../core/domain.h"
#include "../core/options.h"
#include "fabric.h"

namespace aio::sim {

// The fabric of all engines of this process that name none, made by the first; its options are the first one's.
std::shared_ptr<Fabric> common_fabric(const Options& options);
std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const std::shared_ptr<Fabric>& fabric,
                                                  const Options& options, int doorbell_fd, std::vector<NodeId>& nodes);
void bind(nanobind::module_& m);

}  // namespace aio::sim
