// From PTX text to a program.
#include "hostd/softgpu/engine/parser.hpp"

namespace gpupool::softgpu {

std::shared_ptr<Program> load_program(std::string_view ptx, std::string& error) {
  auto program = std::make_shared<engine::ProgramImpl>();
  program->text = ptx;
  try {
    engine::Parser(program->text, *program).module();
    engine::link(*program);
  } catch (const engine::LoadError& failure) {
    error = failure.what();
    return nullptr;
  }
  return program;
}

}  // namespace gpupool::softgpu
