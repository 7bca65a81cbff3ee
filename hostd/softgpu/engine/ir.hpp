// The form in which programs are executed: one Inst per PTX instruction, operands resolved to places in the
// register file, branch targets to instruction numbers, and the code that executes it to a function pointer.
//
// Registers. Every virtual register is a row: one value per lane, side by side, so that an instruction is a
// loop over an array. 16-bit registers have rows of 64 bytes, 32-bit 128, 64-bit 256; 8-bit registers live in
// 16-bit rows. A predicate is a u32 with one bit per lane. Every function has rows of its own (as in
// languages without recursion), which is why lanes of one warp may be in different functions at once;
// recursive calls save and restore them.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "hostd/softgpu/engine/engine.hpp"
#include "hostd/softgpu/engine/type.hpp"

namespace gpupool::softgpu::engine {

struct Lanes;
struct Inst;
using Handler = void (*)(Lanes&, const Inst&);

// Where an operand is: >= 0 an offset in the register file, < 0 the complement of an offset in the constant
// rows.
using Place = i32;
inline constexpr Place kNoPlace = -0x8000'0000ll;

enum InstFlag : u32 {
  kGuardNegated = 1 << 0,
  kSourceNegated = 1 << 1,  // the predicate source operand is negated
  kBranch = 1 << 2,         // imm is an instruction number
  kTable = 1 << 3,          // imm is an entry of the branch tables
};

struct Inst {
  Handler run = nullptr;
  Place guard = kNoPlace;
  Place d = kNoPlace;  // destination
  Place e = kNoPlace;  // second destination
  Place a = kNoPlace;
  Place b = kNoPlace;
  Place c = kNoPlace;
  u32 list = 0;   // first of further places in Program::lists
  u32 flags = 0;  // InstFlag
  u64 imm = 0;
  u32 line = 0;
  u32 site = 0;  // number of this memory access: each has its own cached range
};

// One value that a warp's register file holds from the start: special registers and addresses of shared
// variables.
enum class Initial : u8 {
  tid_x,
  tid_y,
  tid_z,
  ntid_x,
  ntid_y,
  ntid_z,
  ctaid_x,
  ctaid_y,
  ctaid_z,
  nctaid_x,
  nctaid_y,
  nctaid_z,
  laneid,
  warpid,
  nwarpid,
  smid,
  nsmid,
  gridid,
  lanemask_eq,
  lanemask_le,
  lanemask_lt,
  lanemask_ge,
  lanemask_gt,
  dynamic_smem_size,
  total_smem_size,
  zero,
  one,
  reserved_begin,
  reserved_second,
  reserved_end,
  reserved_cap,
  shared_variable,  // `variable` names it: its offset depends on the kernel
};

struct InitialRow {
  Initial what = Initial::zero;
  Place place = 0;
  u32 bytes = 4;     // of the register
  u32 variable = 0;  // index in ProgramImpl::variables
};

// An address that finish_binding() writes into a variable's initial bytes.
struct Relocation {
  u64 at = 0;
  u32 bytes = 8;
  u32 shift = 0;     // mask(): which byte of the address
  std::string name;  // variable or function
  i64 addend = 0;
  u32 line = 0;
};

struct Variable {
  std::string name;
  Space space = Space::global;
  u64 size = 0;
  u64 alignment = 1;
  bool external = false;  // .extern .shared x[]: the dynamic part
  u64 offset = 0;         // local, param: in the thread's local memory or the parameter buffer
  u32 global = ~0u;       // global, constant: index among the program's globals
  u32 index = 0;          // in ProgramImpl::variables
  std::vector<u8> initial;
  std::vector<Relocation> relocations;
};

// A copy of parameter bytes between local memory of caller and callee.
struct ParameterCopy {
  u32 from = 0;
  u32 to = 0;
  u32 bytes = 0;
};

enum class Builtin : u8 { none, vprintf, assertfail, set_conditional };

struct CallSite {
  u32 callee = ~0u;  // index in functions; ~0 for an indirect call
  u32 caller = 0;
  std::vector<u32> arguments;     // variables
  std::vector<u32> results;       // variables
  std::vector<ParameterCopy> in;  // direct calls: filled by link()
  std::vector<ParameterCopy> out;
  bool saves_frame = false;  // the callee may come back to the caller: recursion
  u32 line = 0;
};

// A register as recursion keeps it aside: bytes a lane, 0 for a predicate.
struct SavedRow {
  u32 offset = 0;
  u32 bytes = 0;
};

struct Function {
  std::string name;
  bool entry = false;
  bool defined = false;
  Builtin builtin = Builtin::none;
  std::vector<u32> parameters;  // variables
  std::vector<u32> results;     // variables
  std::vector<Inst> code;       // moved into ProgramImpl::code by link()
  std::vector<Place> lists;
  std::vector<u32> tables;  // branch tables
  std::vector<InitialRow> initial;
  std::vector<u32> calls;   // call sites
  std::vector<u32> shared;  // shared variables it uses
  u32 frame_bytes = 0;      // of rows
  u32 frame_base = 0;       // set by link()
  u32 local_bytes = 0;
  u32 local_base = 0;                // set by link()
  Place return_pc = kNoPlace;        // row with the instruction to return to, per lane
  Place return_site = kNoPlace;      // row with the call site, per lane
  std::vector<SavedRow> saved_rows;  // every register
  u32 saved_bytes = 0;               // registers and local memory a lane, as kept aside
  u32 begin = 0;                     // first instruction, set by link()
  u32 register_count = 0;
  bool address_taken = false;
  u32 line = 0;
  KernelInfo info;
};

// Shared memory that belongs to the system: cooperative groups keep the state of large tiles there. It lies
// behind the program's own; PTX names two parts of it.
inline constexpr u32 kReservedSharedBytes = 2048;

// What one kernel needs to run: made by link() from the functions that it can reach.
struct KernelLayout {
  u32 function = 0;
  std::vector<InitialRow> initial;
  std::unordered_map<u32, u32> shared_offsets;  // variable -> offset
  u32 static_shared_bytes = 0;
  u32 dynamic_shared_offset = 0;
  bool reserved_shared = false;  // it uses the system's part of shared memory
  u32 register_bytes = 0;        // per warp
  u32 local_bytes = 0;           // per thread
};

inline constexpr u64 kCodeWindow = 0x0001'0003'0000'0000;  // addresses of functions: kCodeWindow + 16 * index

class ProgramImpl final : public Program {
 public:
  std::span<const KernelInfo> kernels() const override { return kernel_infos; }
  std::span<const GlobalInfo> globals() const override { return global_infos; }
  void bind(u64 index, u64 address) override;
  void finish_binding() override;

  std::string text;
  u32 ptx_version = 0;
  u32 target = 0;
  std::vector<Variable> variables;
  std::vector<Function> functions;
  std::vector<CallSite> call_sites;
  std::vector<KernelInfo> kernel_infos;
  std::vector<KernelLayout> kernel_layouts;
  std::vector<GlobalInfo> global_infos;
  std::vector<u32> global_variables;  // variable of each global
  std::vector<u64> global_addresses;

  std::vector<Inst> code;
  std::vector<Place> lists;
  std::vector<u32> tables;
  u32 sites = 0;

  // Constant rows: 64 bytes for 16-bit values (8-bit ones too), 128, 256; u32 for predicates.
  std::vector<u64> constants;
  struct AddressConstant {
    u32 offset = 0;
    u32 bytes = 8;
    u32 variable = 0;
    i64 addend = 0;
  };
  std::vector<AddressConstant> address_constants;

  // The address in local memory of something of one function, known after link().
  struct LocalConstant {
    u32 offset = 0;
    u32 bytes = 8;
    u32 function = 0;
    i64 value = 0;
  };
  std::vector<LocalConstant> local_constants;

  // A row with `value` in every lane; `bytes` 0 gives a predicate row.
  Place constant_row(u64 value, u32 bytes);
  // A row with the address of a global or constant variable, known after binding.
  Place address_row(u32 variable, i64 addend, u32 bytes);
  Place local_row(u32 function, i64 value, u32 bytes);
  void place_local_constants();  // by link()
  std::string line_text(u32 line) const;

 private:
  u32 new_row(u32 bytes);
  void fill_row(u32 offset, u64 value, u32 bytes);
  std::unordered_map<u64, Place> rows_[5];
};

// Bytes of a row for a register of that many bytes.
constexpr u32 row_bytes(u32 register_bytes) {
  if (register_bytes == 0) return 4;
  return kWarpLanes * (register_bytes == 1 ? 2 : register_bytes);
}

// The copies that bring arguments into the callee's parameters, or its results back. False with `problem` set
// when the two do not fit.
bool match_parameters(const ProgramImpl& program, const CallSite& site, const Function& callee, bool in,
                      std::vector<ParameterCopy>& copies, std::string& problem);

// Lays functions out (callees before callers, so that lanes inside a call are at lower addresses and run
// first), resolves calls and computes what each kernel needs. Throws LoadError.
void link(ProgramImpl& program);

}  // namespace gpupool::softgpu::engine
