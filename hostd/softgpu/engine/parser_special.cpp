// Special registers (PTX ISA 9.0, chapter 10). Those that never change during a block are rows of the
// register file, filled when the block starts; clocks are read by an instruction of their own
// (exec_special.cpp).
#include "hostd/softgpu/engine/parser.hpp"

namespace gpupool::softgpu::engine {
namespace {

struct SpecialRow {
  std::string_view name;
  Initial what;
  u32 bytes = 4;
};

// A cluster is always one block here, so cluster registers describe a grid of single-block clusters.
constexpr SpecialRow kSpecials[] = {
    {"%tid.x", Initial::tid_x},
    {"%tid.y", Initial::tid_y},
    {"%tid.z", Initial::tid_z},
    {"%ntid.x", Initial::ntid_x},
    {"%ntid.y", Initial::ntid_y},
    {"%ntid.z", Initial::ntid_z},
    {"%ctaid.x", Initial::ctaid_x},
    {"%ctaid.y", Initial::ctaid_y},
    {"%ctaid.z", Initial::ctaid_z},
    {"%nctaid.x", Initial::nctaid_x},
    {"%nctaid.y", Initial::nctaid_y},
    {"%nctaid.z", Initial::nctaid_z},
    {"%laneid", Initial::laneid},
    {"%warpid", Initial::warpid},
    {"%nwarpid", Initial::nwarpid},
    {"%smid", Initial::smid},
    {"%nsmid", Initial::nsmid},
    {"%gridid", Initial::gridid, 8},
    {"%lanemask_eq", Initial::lanemask_eq},
    {"%lanemask_le", Initial::lanemask_le},
    {"%lanemask_lt", Initial::lanemask_lt},
    {"%lanemask_ge", Initial::lanemask_ge},
    {"%lanemask_gt", Initial::lanemask_gt},
    {"%dynamic_smem_size", Initial::dynamic_smem_size},
    {"%total_smem_size", Initial::total_smem_size},
    {"%aggr_smem_size", Initial::total_smem_size},
    {"%reserved_smem_offset_begin", Initial::reserved_begin},
    {"%reserved_smem_offset_0", Initial::reserved_begin},
    {"%reserved_smem_offset_1", Initial::reserved_second},
    {"%reserved_smem_offset_end", Initial::reserved_end},
    {"%reserved_smem_offset_cap", Initial::reserved_cap},
    {"%is_explicit_cluster", Initial::zero, 0},
    {"%clusterid.x", Initial::ctaid_x},
    {"%clusterid.y", Initial::ctaid_y},
    {"%clusterid.z", Initial::ctaid_z},
    {"%nclusterid.x", Initial::nctaid_x},
    {"%nclusterid.y", Initial::nctaid_y},
    {"%nclusterid.z", Initial::nctaid_z},
    {"%cluster_ctaid.x", Initial::zero},
    {"%cluster_ctaid.y", Initial::zero},
    {"%cluster_ctaid.z", Initial::zero},
    {"%cluster_nctaid.x", Initial::one},
    {"%cluster_nctaid.y", Initial::one},
    {"%cluster_nctaid.z", Initial::one},
    {"%cluster_ctarank", Initial::zero},
    {"%cluster_nctarank", Initial::one},
};

}  // namespace

Operand Parser::special_register(std::string_view word, u32 line) {
  std::string name(word);
  if (peek().kind == TokenKind::dot) name += "." + std::string(next().text);
  Operand result;
  if (word == "%clock" || word == "%clock_hi" || word == "%clock64" || word == "%globaltimer" ||
      word == "%globaltimer_lo" || word == "%globaltimer_hi") {
    result.kind = OperandKind::name;  // for the lowering of mov
    result.name = word;
    return result;
  }
  for (const SpecialRow& row : kSpecials) {
    if (row.name != name) continue;
    result.kind = OperandKind::reg;
    result.reg = Register{initial_register(row.what, row.bytes), row.bytes, true};
    return result;
  }
  // Environment registers are driver-defined; a driver that defines none reads as zero.
  if (name.starts_with("%envreg") && name.size() > 7 && name.size() < 10) {
    result.kind = OperandKind::reg;
    result.reg = Register{initial_register(Initial::zero, 4), 4, true};
    return result;
  }
  throw LoadError(line,
                  "register '" + name + "' is not declared and no special register of the software GPU");
}

}  // namespace gpupool::softgpu::engine
