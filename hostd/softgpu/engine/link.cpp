// Puts a program's functions together: an order for their code, places for their registers and local memory,
// calls that fit, and for every kernel what it needs.
#include <algorithm>

#include "hostd/softgpu/engine/builtin.hpp"
#include "hostd/softgpu/engine/lexer.hpp"

namespace gpupool::softgpu::engine {
namespace {

u32 align_up(u32 value, u32 alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

class Linker {
 public:
  explicit Linker(ProgramImpl& program) : program_(program) {}

  void run() {
    resolve_builtins();
    find_callees();
    order_functions();
    mark_recursion();
    place_functions();
    for (const u32 index : order_) append_code(program_.functions[index]);
    program_.place_local_constants();
    match_calls();
    for (u32 i = 0; i < program_.functions.size(); ++i)
      if (program_.functions[i].entry && program_.functions[i].defined) make_kernel(i);
    make_globals();
  }

 private:
  void resolve_builtins() {
    for (Function& function : program_.functions) {
      if (!function.defined) function.builtin = builtin_of(function.name);
      if (function.address_taken && !function.defined)
        throw LoadError(function.line,
                        "address of function '" + function.name + "', which is not defined in this module");
    }
  }

  // An indirect call may reach every function whose address is taken.
  void find_callees() {
    callees_.resize(program_.functions.size());
    for (u32 i = 0; i < program_.functions.size(); ++i) {
      for (const u32 call : program_.functions[i].calls) {
        const CallSite& site = program_.call_sites[call];
        if (site.callee != ~0u) {
          const Function& callee = program_.functions[site.callee];
          if (!callee.defined && callee.builtin == Builtin::none)
            throw LoadError(
                site.line, "call of function '" + callee.name + "', which the software GPU does not provide");
          if (callee.entry) throw LoadError(site.line, "call of kernel '" + callee.name + "'");
          callees_[i].push_back(site.callee);
          continue;
        }
        for (u32 other = 0; other < program_.functions.size(); ++other)
          if (program_.functions[other].address_taken && !program_.functions[other].entry)
            callees_[i].push_back(other);
      }
    }
  }

  // Callees first. Within a cycle the order does not matter.
  void order_functions() {
    std::vector<u8> seen(program_.functions.size(), 0);
    for (u32 root = 0; root < program_.functions.size(); ++root) {
      std::vector<std::pair<u32, size_t>> stack;
      if (seen[root] == 0) stack.emplace_back(root, 0);
      seen[root] = 1;
      while (!stack.empty()) {
        auto& [index, next] = stack.back();
        if (next < callees_[index].size()) {
          const u32 callee = callees_[index][next++];
          if (seen[callee] == 0) {
            seen[callee] = 1;
            stack.emplace_back(callee, 0);
          }
          continue;
        }
        order_.push_back(index);
        stack.pop_back();
      }
    }
  }

  std::vector<u8> reachable_from(u32 start) const {
    std::vector<u8> reached(program_.functions.size(), 0);
    std::vector<u32> open{start};
    while (!open.empty()) {
      const u32 index = open.back();
      open.pop_back();
      for (const u32 callee : callees_[index]) {
        if (reached[callee] != 0) continue;
        reached[callee] = 1;
        open.push_back(callee);
      }
    }
    return reached;
  }

  // A call that can lead back to its caller keeps the caller's frame aside.
  void mark_recursion() {
    for (u32 i = 0; i < program_.functions.size(); ++i) {
      Function& function = program_.functions[i];
      if (function.entry || function.calls.empty()) continue;
      if (reachable_from(i)[i] == 0) continue;
      for (const u32 call : function.calls) {
        CallSite& site = program_.call_sites[call];
        site.saves_frame = site.callee == ~0u || site.callee == i || reachable_from(site.callee)[i] != 0;
      }
      function.saved_bytes = function.local_bytes;
      for (const SavedRow& row : function.saved_rows) function.saved_bytes += row.bytes == 0 ? 1 : row.bytes;
    }
  }

  // Device functions share the lower part of the register file and of local memory, kernels begin above it.
  void place_functions() {
    for (const u32 index : order_) {
      Function& function = program_.functions[index];
      if (function.entry) continue;
      function.frame_base = functions_bytes_;
      function.local_base = functions_local_;
      functions_bytes_ += align_up(function.frame_bytes, 64);
      functions_local_ += align_up(function.local_bytes, 256);
    }
    for (Function& function : program_.functions) {
      if (!function.entry) continue;
      const bool calls = !function.calls.empty();
      function.frame_base = calls ? functions_bytes_ : 0;
      function.local_base = calls ? functions_local_ : 0;
      if (function.frame_base + static_cast<u64>(function.frame_bytes) > 0x7000'0000)
        throw LoadError(function.line, "kernel '" + function.name +
                                           "' has more registers than the software GPU has room for");
    }
  }

  void append_code(Function& function) {
    function.begin = static_cast<u32>(program_.code.size());
    const u32 first_list = static_cast<u32>(program_.lists.size());
    const u32 first_table = static_cast<u32>(program_.tables.size());
    const Place base = static_cast<Place>(function.frame_base);
    const auto move = [base](Place& place) {
      if (place >= 0) place += base;
    };
    for (Inst inst : function.code) {
      for (Place* place : {&inst.guard, &inst.d, &inst.e, &inst.a, &inst.b, &inst.c}) move(*place);
      inst.list += first_list;
      if ((inst.flags & kBranch) != 0) inst.imm += function.begin;
      if ((inst.flags & kTable) != 0) inst.imm += first_table;
      program_.code.push_back(inst);
    }
    for (Place place : function.lists) {
      move(place);
      program_.lists.push_back(place);
    }
    for (const u32 target : function.tables) program_.tables.push_back(target + function.begin);
    for (InitialRow& row : function.initial) move(row.place);
    move(function.return_pc);
    move(function.return_site);
    function.code = {};
    function.lists = {};
    function.tables = {};
  }

  void match_calls() {
    for (CallSite& site : program_.call_sites) {
      if (site.callee == ~0u) continue;
      const Function& callee = program_.functions[site.callee];
      if (callee.builtin != Builtin::none) continue;
      std::string problem;
      if (!match_parameters(program_, site, callee, true, site.in, problem) ||
          !match_parameters(program_, site, callee, false, site.out, problem))
        throw LoadError(site.line, problem);
    }
  }

  void make_kernel(u32 index) {
    Function& function = program_.functions[index];
    KernelLayout layout;
    layout.function = index;
    std::vector<u32> members{index};
    const std::vector<u8> reached = reachable_from(index);
    for (u32 i = 0; i < reached.size(); ++i)
      if (reached[i] != 0 && i != index) members.push_back(i);
    u32 shared = 0;
    for (const u32 member : members) {
      const Function& part = program_.functions[member];
      layout.initial.insert(layout.initial.end(), part.initial.begin(), part.initial.end());
      for (const u32 variable : part.shared) {
        const Variable& v = program_.variables[variable];
        if (v.external || layout.shared_offsets.contains(variable)) continue;
        shared = align_up(shared, static_cast<u32>(v.alignment));
        layout.shared_offsets[variable] = shared;
        if (v.size > 227 * 1024)
          throw LoadError(function.line, "kernel '" + function.name + "' has too much shared memory");
        shared += static_cast<u32>(v.size);
      }
    }
    // The dynamic part begins behind the static one, aligned as the program asks, and to 16 at least.
    u32 alignment = 16;
    for (const u32 member : members)
      for (const u32 variable : program_.functions[member].shared)
        if (const Variable& v = program_.variables[variable]; v.external)
          alignment = std::max(alignment, static_cast<u32>(v.alignment));
    layout.dynamic_shared_offset = align_up(shared, alignment);
    for (const u32 member : members)
      for (const u32 variable : program_.functions[member].shared)
        if (program_.variables[variable].external)
          layout.shared_offsets[variable] = layout.dynamic_shared_offset;
    layout.static_shared_bytes = shared;
    for (const InitialRow& row : layout.initial)
      layout.reserved_shared = layout.reserved_shared ||
                               (row.what >= Initial::reserved_begin && row.what <= Initial::reserved_cap);
    layout.register_bytes = align_up(function.frame_base + function.frame_bytes, 64);
    layout.local_bytes = align_up(function.local_base + function.local_bytes, 256);
    KernelInfo info = function.info;
    info.static_shared_bytes = shared;
    info.local_bytes = function.local_bytes;
    program_.kernel_layouts.push_back(std::move(layout));
    program_.kernel_infos.push_back(std::move(info));
  }

  void make_globals() {
    std::unordered_map<std::string_view, bool> known;
    for (const Function& function : program_.functions) known[function.name] = function.defined;
    for (const u32 index : program_.global_variables) known[program_.variables[index].name] = true;
    for (const u32 index : program_.global_variables) {
      const Variable& variable = program_.variables[index];
      for (const Relocation& relocation : variable.relocations)
        if (const auto found = known.find(relocation.name); found == known.end() || !found->second)
          throw LoadError(relocation.line,
                          "'" + relocation.name + "' in an initial value is not defined in this module");
      GlobalInfo info{variable.name, variable.size, variable.alignment, variable.space == Space::constant,
                      variable.initial};
      program_.global_infos.push_back(std::move(info));
    }
    program_.global_addresses.resize(program_.global_infos.size());
  }

  ProgramImpl& program_;
  std::vector<std::vector<u32>> callees_;
  std::vector<u32> order_;
  u32 functions_bytes_ = 0;
  u32 functions_local_ = 0;
};

}  // namespace

bool match_parameters(const ProgramImpl& program, const CallSite& site, const Function& callee, bool in,
                      std::vector<ParameterCopy>& copies, std::string& problem) {
  const std::vector<u32>& outer = in ? site.arguments : site.results;
  const std::vector<u32>& inner = in ? callee.parameters : callee.results;
  copies.clear();
  if (outer.size() != inner.size()) {
    problem = "call of '" + callee.name + "' with another number of " + (in ? "parameters" : "results");
    return false;
  }
  const u32 caller_base = program.functions[site.caller].local_base;
  for (size_t i = 0; i < outer.size(); ++i) {
    const Variable& there = program.variables[inner[i]];
    const Variable& here = program.variables[outer[i]];
    if (there.size != here.size) {
      problem = "call of '" + callee.name + "': '" + there.name + "' has another size";
      return false;
    }
    const u32 outside = caller_base + static_cast<u32>(here.offset);
    const u32 inside = callee.local_base + static_cast<u32>(there.offset);
    copies.push_back({in ? outside : inside, in ? inside : outside, static_cast<u32>(here.size)});
  }
  return true;
}

void link(ProgramImpl& program) {
  Linker(program).run();
}

}  // namespace gpupool::softgpu::engine
