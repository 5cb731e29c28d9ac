// libefa.so.1: a stub. Its functions are in libibverbs.so.1, beside what they need.
#include "abi.h"

using namespace efa;

extern "C" {

int efa_emulator_query_device(abi::Context*, abi::EfadvDeviceAttr*, std::uint32_t);
int efa_emulator_query_ah(abi::Ah*, abi::EfadvAhAttr*, std::uint32_t);
abi::Qp* efa_emulator_create_qp(abi::Context*, abi::QpInitAttrEx*, abi::EfadvQpInitAttr*, std::uint32_t);
abi::CqEx* efa_emulator_create_cq(abi::Context*, abi::CqInitAttrEx*, abi::EfadvCqInitAttr*, std::uint32_t);
abi::EfadvCq* efa_emulator_cq(abi::CqEx*);

int efadv_query_device(abi::Context* context, abi::EfadvDeviceAttr* attr, std::uint32_t inlen) {
  return efa_emulator_query_device(context, attr, inlen);
}

int efadv_query_ah(abi::Ah* ah, abi::EfadvAhAttr* attr, std::uint32_t inlen) {
  return efa_emulator_query_ah(ah, attr, inlen);
}

abi::Qp* efadv_create_qp_ex(abi::Context* context, abi::QpInitAttrEx* attr, abi::EfadvQpInitAttr* own,
                            std::uint32_t inlen) {
  return efa_emulator_create_qp(context, attr, own, inlen);
}

abi::CqEx* efadv_create_cq(abi::Context* context, abi::CqInitAttrEx* attr, abi::EfadvCqInitAttr* own,
                           std::uint32_t inlen) {
  return efa_emulator_create_cq(context, attr, own, inlen);
}

abi::EfadvCq* efadv_cq_from_ibv_cq_ex(abi::CqEx* cq) { return efa_emulator_cq(cq); }

}  // extern "C"
