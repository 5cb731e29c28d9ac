// Checks backends/libfabric/abi.h against the real headers, at compile time:
//   g++ -std=c++20 -fsyntax-only -I<directory of rdma/> tests/abi/libfabric_check.cpp
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_ext.h>
#include <rdma/fi_rma.h>

#include "../../backends/libfabric/abi.h"

namespace abi = aio::libfabric::abi;

#define AT_LEAST(major, minor) \
  (FI_MAJOR_VERSION > (major) || (FI_MAJOR_VERSION == (major) && FI_MINOR_VERSION >= (minor)))
#define SAME_VALUE(ours, theirs) \
  static_assert(static_cast<std::uint64_t>(abi::ours) == static_cast<std::uint64_t>(theirs))
#define SAME_SIZE(ours, theirs) static_assert(sizeof(abi::ours) == sizeof(theirs))
#define SAME(ours, our_field, theirs, their_field)                                \
  static_assert(offsetof(abi::ours, our_field) == offsetof(theirs, their_field)); \
  static_assert(sizeof(abi::ours::our_field) == sizeof(theirs::their_field))
#define SAME_NAME(ours, theirs, field) SAME(ours, field, theirs, field)

static_assert(abi::make_version(1, 17) == FI_VERSION(1, 17));

SAME_VALUE(msg, FI_MSG);
SAME_VALUE(rma, FI_RMA);
SAME_VALUE(read, FI_READ);
SAME_VALUE(write, FI_WRITE);
SAME_VALUE(recv, FI_RECV);
SAME_VALUE(send, FI_SEND);
SAME_VALUE(remote_read, FI_REMOTE_READ);
SAME_VALUE(remote_write, FI_REMOTE_WRITE);
SAME_VALUE(remote_cq_data, FI_REMOTE_CQ_DATA);
SAME_VALUE(completion, FI_COMPLETION);
SAME_VALUE(delivery_complete, FI_DELIVERY_COMPLETE);
SAME_VALUE(hmem, FI_HMEM);
SAME_VALUE(local_comm, FI_LOCAL_COMM);
SAME_VALUE(remote_comm, FI_REMOTE_COMM);
SAME_VALUE(source_address, FI_SOURCE);
SAME_VALUE(mode_context, FI_CONTEXT);
SAME_VALUE(mode_rx_cq_data, FI_RX_CQ_DATA);
SAME_VALUE(mode_context2, FI_CONTEXT2);
SAME_VALUE(mr_local, FI_MR_LOCAL);
SAME_VALUE(mr_raw, FI_MR_RAW);
SAME_VALUE(mr_virt_addr, FI_MR_VIRT_ADDR);
SAME_VALUE(mr_allocated, FI_MR_ALLOCATED);
SAME_VALUE(mr_prov_key, FI_MR_PROV_KEY);
SAME_VALUE(mr_endpoint, FI_MR_ENDPOINT);
SAME_VALUE(mr_hmem, FI_MR_HMEM);
SAME_VALUE(addr_unspec, FI_ADDR_UNSPEC);
SAME_VALUE(ep_rdm, FI_EP_RDM);
SAME_VALUE(progress_manual, FI_PROGRESS_MANUAL);
SAME_VALUE(thread_domain, FI_THREAD_DOMAIN);
SAME_VALUE(av_table, FI_AV_TABLE);
SAME_VALUE(cq_format_data, FI_CQ_FORMAT_DATA);
SAME_VALUE(wait_none, FI_WAIT_NONE);
SAME_VALUE(wait_fd, FI_WAIT_FD);
SAME_VALUE(hmem_system, FI_HMEM_SYSTEM);
SAME_VALUE(hmem_cuda, FI_HMEM_CUDA);
SAME_VALUE(format_sockaddr, FI_SOCKADDR);
SAME_VALUE(format_sockaddr_in, FI_SOCKADDR_IN);
SAME_VALUE(format_sockaddr_in6, FI_SOCKADDR_IN6);
SAME_VALUE(control_getwait, FI_GETWAIT);
SAME_VALUE(control_enable, FI_ENABLE);
SAME_VALUE(opt_endpoint, FI_OPT_ENDPOINT);
SAME_VALUE(err_avail, FI_EAVAIL);
SAME_VALUE(err_nokey, FI_ENOKEY);
#if AT_LEAST(1, 18)
SAME_VALUE(opt_cuda_api_permitted, FI_OPT_CUDA_API_PERMITTED);
SAME_VALUE(opt_efa_emulated_write, FI_OPT_EFA_EMULATED_WRITE);
SAME_VALUE(opt_efa_rnr_retry, FI_OPT_EFA_RNR_RETRY);
#endif
#if AT_LEAST(1, 19)
SAME_VALUE(opt_shared_memory_permitted, FI_OPT_SHARED_MEMORY_PERMITTED);
SAME_VALUE(opt_efa_use_device_rdma, FI_OPT_EFA_USE_DEVICE_RDMA);
#endif
#if AT_LEAST(1, 20)
SAME_VALUE(mr_dmabuf, FI_MR_DMABUF);
#endif
#if AT_LEAST(2, 0)
SAME_VALUE(opt_max_msg_size, FI_OPT_MAX_MSG_SIZE);
#endif

SAME_SIZE(Fid, fid);
SAME_NAME(Fid, fid, ops);
SAME_NAME(Ops, fi_ops, close);
SAME_NAME(Ops, fi_ops, bind);
SAME_NAME(Ops, fi_ops, control);
SAME_NAME(FabricOps, fi_ops_fabric, domain);
SAME_NAME(FabricOps, fi_ops_fabric, trywait);
SAME_NAME(Fabric, fid_fabric, ops);
SAME_NAME(DomainOps, fi_ops_domain, av_open);
SAME_NAME(DomainOps, fi_ops_domain, cq_open);
SAME_NAME(DomainOps, fi_ops_domain, endpoint);
SAME_NAME(MrOps, fi_ops_mr, regattr);
SAME_NAME(DomainFid, fid_domain, ops);
SAME_NAME(DomainFid, fid_domain, mr);
SAME_NAME(EpOps, fi_ops_ep, getopt);
SAME_NAME(EpOps, fi_ops_ep, setopt);
SAME_NAME(CmOps, fi_ops_cm, getname);
SAME_NAME(MsgOps, fi_ops_msg, recv);
SAME_NAME(MsgOps, fi_ops_msg, send);
SAME_NAME(RmaOps, fi_ops_rma, readmsg);
SAME_NAME(RmaOps, fi_ops_rma, writemsg);
SAME_NAME(Ep, fid_ep, ops);
SAME_NAME(Ep, fid_ep, cm);
SAME_NAME(Ep, fid_ep, msg);
SAME_NAME(Ep, fid_ep, rma);
SAME_NAME(CqOps, fi_ops_cq, read);
SAME_NAME(CqOps, fi_ops_cq, readerr);
SAME_NAME(CqOps, fi_ops_cq, strerror);
SAME_NAME(Cq, fid_cq, ops);
SAME_NAME(AvOps, fi_ops_av, insert);
SAME_NAME(AvOps, fi_ops_av, remove);
SAME_NAME(Av, fid_av, ops);
SAME_NAME(Mr, fid_mr, mem_desc);
SAME_NAME(Mr, fid_mr, key);

SAME_NAME(TxAttr, fi_tx_attr, caps);
SAME_NAME(TxAttr, fi_tx_attr, mode);
SAME_NAME(TxAttr, fi_tx_attr, op_flags);
SAME_NAME(TxAttr, fi_tx_attr, msg_order);
SAME_NAME(TxAttr, fi_tx_attr, comp_order);
SAME_NAME(TxAttr, fi_tx_attr, inject_size);
SAME_NAME(TxAttr, fi_tx_attr, size);
SAME_NAME(TxAttr, fi_tx_attr, iov_limit);
SAME_NAME(TxAttr, fi_tx_attr, rma_iov_limit);
SAME_NAME(TxAttr, fi_tx_attr, tclass);
SAME_NAME(RxAttr, fi_rx_attr, caps);
SAME_NAME(RxAttr, fi_rx_attr, mode);
SAME_NAME(RxAttr, fi_rx_attr, total_buffered_recv);
SAME_NAME(RxAttr, fi_rx_attr, size);
SAME_NAME(RxAttr, fi_rx_attr, iov_limit);
SAME_NAME(EpAttr, fi_ep_attr, type);
SAME_NAME(EpAttr, fi_ep_attr, protocol);
SAME_NAME(EpAttr, fi_ep_attr, protocol_version);
SAME_NAME(EpAttr, fi_ep_attr, max_msg_size);
SAME_NAME(DomainAttr, fi_domain_attr, domain);
SAME_NAME(DomainAttr, fi_domain_attr, name);
SAME_NAME(DomainAttr, fi_domain_attr, threading);
SAME_NAME(DomainAttr, fi_domain_attr, control_progress);
SAME_NAME(DomainAttr, fi_domain_attr, data_progress);
SAME_NAME(DomainAttr, fi_domain_attr, resource_mgmt);
SAME_NAME(DomainAttr, fi_domain_attr, av_type);
SAME_NAME(DomainAttr, fi_domain_attr, mr_mode);
SAME_NAME(DomainAttr, fi_domain_attr, mr_key_size);
SAME_NAME(DomainAttr, fi_domain_attr, cq_data_size);
SAME_SIZE(FabricAttr, fi_fabric_attr);
SAME_NAME(FabricAttr, fi_fabric_attr, name);
SAME_NAME(FabricAttr, fi_fabric_attr, prov_name);
SAME_NAME(FabricAttr, fi_fabric_attr, prov_version);
SAME_NAME(FabricAttr, fi_fabric_attr, api_version);
SAME_SIZE(DeviceAttr, fi_device_attr);
SAME_NAME(DeviceAttr, fi_device_attr, name);
SAME_NAME(DeviceAttr, fi_device_attr, driver);
SAME_SIZE(LinkAttr, fi_link_attr);
SAME_NAME(LinkAttr, fi_link_attr, speed);
SAME_NAME(LinkAttr, fi_link_attr, state);
SAME_NAME(LinkAttr, fi_link_attr, network_type);
SAME_NAME(Nic, fid_nic, device_attr);
SAME_NAME(Nic, fid_nic, link_attr);
SAME_SIZE(Info, fi_info);
SAME_NAME(Info, fi_info, next);
SAME_NAME(Info, fi_info, caps);
SAME_NAME(Info, fi_info, mode);
SAME_NAME(Info, fi_info, addr_format);
SAME_NAME(Info, fi_info, src_addrlen);
SAME_NAME(Info, fi_info, dest_addrlen);
SAME_NAME(Info, fi_info, src_addr);
SAME_NAME(Info, fi_info, dest_addr);
SAME_NAME(Info, fi_info, handle);
SAME_NAME(Info, fi_info, tx_attr);
SAME_NAME(Info, fi_info, rx_attr);
SAME_NAME(Info, fi_info, ep_attr);
SAME_NAME(Info, fi_info, domain_attr);
SAME_NAME(Info, fi_info, fabric_attr);
SAME_NAME(Info, fi_info, nic);
SAME_NAME(CqAttr, fi_cq_attr, size);
SAME_NAME(CqAttr, fi_cq_attr, flags);
SAME_NAME(CqAttr, fi_cq_attr, format);
SAME_NAME(CqAttr, fi_cq_attr, wait_obj);
SAME_NAME(CqAttr, fi_cq_attr, signaling_vector);
SAME_NAME(CqAttr, fi_cq_attr, wait_cond);
SAME_NAME(CqAttr, fi_cq_attr, wait_set);
SAME_SIZE(AvAttr, fi_av_attr);
SAME_NAME(AvAttr, fi_av_attr, type);
SAME_NAME(AvAttr, fi_av_attr, rx_ctx_bits);
SAME_NAME(AvAttr, fi_av_attr, count);
SAME_NAME(AvAttr, fi_av_attr, ep_per_node);
SAME_NAME(AvAttr, fi_av_attr, name);
SAME_NAME(AvAttr, fi_av_attr, map_addr);
SAME_NAME(AvAttr, fi_av_attr, flags);
SAME(MrAttr, iov, fi_mr_attr, mr_iov);
SAME_NAME(MrAttr, fi_mr_attr, iov_count);
SAME_NAME(MrAttr, fi_mr_attr, access);
SAME_NAME(MrAttr, fi_mr_attr, offset);
SAME_NAME(MrAttr, fi_mr_attr, requested_key);
SAME_NAME(MrAttr, fi_mr_attr, context);
SAME_NAME(MrAttr, fi_mr_attr, auth_key_size);
SAME_NAME(MrAttr, fi_mr_attr, auth_key);
SAME_NAME(MrAttr, fi_mr_attr, iface);
SAME_NAME(MrAttr, fi_mr_attr, device);
#if AT_LEAST(1, 18)
SAME_NAME(MrAttr, fi_mr_attr, hmem_data);
#endif
#if AT_LEAST(1, 20)
SAME_SIZE(MrDmabuf, fi_mr_dmabuf);
SAME_NAME(MrDmabuf, fi_mr_dmabuf, fd);
SAME_NAME(MrDmabuf, fi_mr_dmabuf, offset);
SAME(MrDmabuf, nbytes, fi_mr_dmabuf, len);
SAME_NAME(MrDmabuf, fi_mr_dmabuf, base_addr);
SAME_NAME(CqErrorEntry, fi_cq_err_entry, src_addr);
#endif
#if AT_LEAST(2, 0)
SAME_SIZE(MrAttr, fi_mr_attr);
SAME_NAME(MrAttr, fi_mr_attr, page_size);
SAME_NAME(MrAttr, fi_mr_attr, base_mr);
SAME_NAME(MrAttr, fi_mr_attr, sub_mr_cnt);
#endif
#if AT_LEAST(2, 6)
SAME_NAME(CqAttr, fi_cq_attr, xpu_ctx);
SAME_SIZE(CqAttr, fi_cq_attr);
#endif

SAME_SIZE(RmaIov, fi_rma_iov);
SAME_NAME(RmaIov, fi_rma_iov, addr);
SAME(RmaIov, nbytes, fi_rma_iov, len);
SAME_NAME(RmaIov, fi_rma_iov, key);
SAME_SIZE(RmaMessage, fi_msg_rma);
SAME(RmaMessage, iov, fi_msg_rma, msg_iov);
SAME_NAME(RmaMessage, fi_msg_rma, desc);
SAME_NAME(RmaMessage, fi_msg_rma, iov_count);
SAME_NAME(RmaMessage, fi_msg_rma, addr);
SAME_NAME(RmaMessage, fi_msg_rma, rma_iov);
SAME_NAME(RmaMessage, fi_msg_rma, rma_iov_count);
SAME_NAME(RmaMessage, fi_msg_rma, context);
SAME_NAME(RmaMessage, fi_msg_rma, data);
SAME_SIZE(CqEntry, fi_cq_data_entry);
SAME_NAME(CqEntry, fi_cq_data_entry, op_context);
SAME_NAME(CqEntry, fi_cq_data_entry, flags);
SAME(CqEntry, nbytes, fi_cq_data_entry, len);
SAME_NAME(CqEntry, fi_cq_data_entry, buf);
SAME_NAME(CqEntry, fi_cq_data_entry, data);
SAME_NAME(CqErrorEntry, fi_cq_err_entry, op_context);
SAME_NAME(CqErrorEntry, fi_cq_err_entry, flags);
SAME_NAME(CqErrorEntry, fi_cq_err_entry, err);
SAME_NAME(CqErrorEntry, fi_cq_err_entry, prov_errno);
SAME_NAME(CqErrorEntry, fi_cq_err_entry, err_data);
SAME_NAME(CqErrorEntry, fi_cq_err_entry, err_data_size);
SAME_SIZE(Context, fi_context2);

int main() {}
