// What the engine does not understand ends the load, and the message says what and where.
#include "tests/cpp/ptx_machine.hpp"

namespace gpupool::softgpu::test {
namespace {

std::string error_of(const std::string& ptx) {
  std::string error;
  return load_program(ptx, error) != nullptr ? "loaded" : error;
}

// The statement stands in line 9.
std::string error_in(const std::string& statement) {
  return error_of(
      ".version 8.3\n.target sm_90\n.address_size 64\n.extern .func (.param .b64 r) malloc(.param .b64 n);\n"
      ".visible .entry k(.param .u64 p)\n{\n.reg .pred %p<3>; .reg .b16 %h<3>; .reg .b32 %r<5>; .reg .f32 "
      "%f<5>; .reg .b64 "
      "%d<5>;\n.param .b64 x; .param .b64 y; .shared .align 4 .b8 s[16];\n" +
      statement + "\nret;\n}\n");
}

}  // namespace

TEST_CASE("instructions and modifiers that are not known are named with their line") {
  CHECK(error_in("add.s32 %r0, %r1, %r2;") == "loaded");
  CHECK(error_in("frobnicate.s32 %r0, %r1;") ==
        "line 9: instruction frobnicate.s32 is not supported by the software GPU");
  for (const char* name : {"add.foo.s32 %r0, %r1, %r2;",
                           "add.f16.s32 %r0, %r1, %r2;",
                           "add.sat.u32 %r0, %r1, %r2;",
                           "add.rni.f32 %f0, %f1, %f2;",
                           "ld.global.L3::128B.b32 %r0, [%d0];",
                           "ld.b32.v16 {%r0}, [%d0];",
                           "fma.f32 %f0, %f1, %f2, %f3;",
                           "div.f32 %f0, %f1, %f2;",
                           "cvt.rn.s32.s64 %r0, %d0;",
                           "setp.lo.s32 %p0, %r0, %r1;",
                           "setp.ltu.s32 %p0, %r0, %r1;",
                           "shfl.down.b32 %r0, %r1, 1, 31;",
                           "atom.global.add.b32 %r0, [%d0], %r1;",
                           "atom.shared.nand.b32 %r0, [%d0], %r1;",
                           "mul.s32 %r0, %r1, %r2;",
                           "wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {%r0}, [%d0];",
                           "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f0}, {%r0}, {%r1}, {%f1};",
                           "tex.1d.v4.f32.s32 {%f0,%f1,%f2,%f3}, [%d0, {%r0}];",
                           "cp.async.bulk.wait_group 0;",
                           "sin.f32 %f0, %f1;",
                           "lop3.b64 %d0, %d1, %d2, %d3, 1;"}) {
    CAPTURE(name);
    const std::string error = error_in(name);
    CHECK(error.starts_with("line 9: "));
    const std::string opcode = std::string(name).substr(0, std::string(name).find(' '));
    CHECK_MESSAGE(error.find(opcode) != std::string::npos, error);
  }
}

TEST_CASE("a byte of an address is named by a mask of that byte") {
  const std::string before =
      ".version 8.3\n.target sm_90\n.address_size 64\n.global .u8 v[8];\n.global .u8 p[8] = {";
  CHECK(error_of(before + "0xff(v), 0xff00(v)};\n") == "loaded");
  for (const char* mask : {"0(v)", "0xf(v)", "0x1ff(v)", "0x7f00(v)"})
    CHECK(error_of(before + mask + "};\n").find("malformed address mask") != std::string::npos);
}

TEST_CASE("operands must fit their instruction") {
  CHECK(error_in("add.s32 %r0, %r1, %d2;").find("64 bits, not 32") != std::string::npos);
  CHECK(error_in("add.s64 %r0, %d1, %d2;").find("32 bits, not 64") != std::string::npos);
  CHECK(error_in("add.s32 %r0, %r1, %p2;").find("predicate") != std::string::npos);
  CHECK(error_in("add.s32 %r0, %r1;").find("operands") != std::string::npos);
  CHECK(error_in("add.s32 %r0, %r1, !%r2;").find("'!'") != std::string::npos);
  CHECK(error_in("add.s32 5, %r1, %r2;").find("destination") != std::string::npos);
  CHECK(error_in("mov.u32 %tid.x, 5;").find("destination") != std::string::npos);
  CHECK(error_in("add.f32 %f0, %f1, 1;").find("integer constant") != std::string::npos);
  CHECK(error_in("add.s32 %r0, %r1, 0f3F800000;") == "loaded");  // its bits, as ptxas takes it
  CHECK(error_in("add.s32 %r0, %r1, %r9;").find("'%r9' is not declared") != std::string::npos);
  CHECK(error_in("ld.global.b32 %h0, [%d0];").find("narrower") != std::string::npos);
  CHECK(error_in("ld.global.b32 %r0, [s];").find("another state space") != std::string::npos);
  CHECK(error_in("ld.param.u64 %d0, [p+8];").find("beyond the parameter") != std::string::npos);
  CHECK(error_in("ld.global.v2.b32 {%r0, %r1, %r2}, [%d0];").find("vector operand") != std::string::npos);
  CHECK(error_in("bra nowhere;").find("label 'nowhere' is not defined") != std::string::npos);
  CHECK(error_in("@%r0 bra nowhere;").find("guard") != std::string::npos);
  CHECK(error_in("brx.idx %r0, nowhere;").find("branch targets") != std::string::npos);
  CHECK(error_in("call (x), malloc, (y);").find("'malloc', which the software GPU does not provide") !=
        std::string::npos);
  CHECK(error_in("call k, (y);").find("call of kernel") != std::string::npos);
  CHECK(error_in("mov.u32 %r0, %nosuch;").find("%nosuch") != std::string::npos);
}

TEST_CASE("modules that are no PTX, or not whole, are refused") {
  CHECK(error_of("").find(".version") != std::string::npos);
  CHECK(error_of("hello").find("expected a directive") != std::string::npos);
  CHECK(error_of(".version 8.0\n.target sm_90\n.address_size 32\n").find("64-bit") != std::string::npos);
  CHECK(error_of(".version 8.0\n.target sm_90\n.alias a, b;\n").find(".alias") != std::string::npos);
  CHECK(error_of(".version 8.0\n.target sm_90\n.extern .global .u32 x;\n").find("external variable") !=
        std::string::npos);
  CHECK(
      error_of(".version 8.0\n.target sm_90\n.global .u32 x[2] = {1, 2, 3};\n").find("more initial values") !=
      std::string::npos);
  CHECK(error_of(".version 8.0\n.target sm_90\n.global .u64 x = y;\n").find("'y' in an initial value") !=
        std::string::npos);
  CHECK(error_of(".version 8.0\n.target sm_90\n.global .b8 x[99999999999];\n").find("too large") !=
        std::string::npos);
  const std::string whole = kernel_file("basic.ptx");
  for (size_t cut = 100; cut < whole.size(); cut += whole.size() / 37) {
    const std::string error = error_of(whole.substr(0, cut));
    CAPTURE(cut);
    CHECK((error == "loaded" || error.starts_with("line ")));
  }
}

}  // namespace gpupool::softgpu::test
