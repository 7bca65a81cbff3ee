// Floating point operations that round in a given direction. The compiler assumes rounding to nearest, so the
// operations are assembler statements, which it neither folds nor moves across the change of direction.
#pragma once

#include <cfenv>
#include <cmath>

#include "hostd/softgpu/engine/float16.hpp"
#include "hostd/softgpu/engine/lower.hpp"

namespace gpupool::softgpu::engine {

class RoundingScope {
 public:
  explicit RoundingScope(Rounding rounding) : before_(std::fegetround()) { std::fesetround(mode(rounding)); }
  ~RoundingScope() { std::fesetround(before_); }
  RoundingScope(const RoundingScope&) = delete;
  RoundingScope& operator=(const RoundingScope&) = delete;

 private:
  static int mode(Rounding rounding) {
    switch (rounding) {
      case Rounding::zero:
        return FE_TOWARDZERO;
      case Rounding::down:
        return FE_DOWNWARD;
      case Rounding::up:
        return FE_UPWARD;
      default:
        return FE_TONEAREST;
    }
  }
  int before_;
};

// NOLINTBEGIN(hicpp-no-assembler): see above.
inline float rounded_add(float a, float b) {
  asm volatile("addss %1, %0" : "+x"(a) : "x"(b));
  return a;
}
inline double rounded_add(double a, double b) {
  asm volatile("addsd %1, %0" : "+x"(a) : "x"(b));
  return a;
}
inline float rounded_sub(float a, float b) {
  asm volatile("subss %1, %0" : "+x"(a) : "x"(b));
  return a;
}
inline double rounded_sub(double a, double b) {
  asm volatile("subsd %1, %0" : "+x"(a) : "x"(b));
  return a;
}
inline float rounded_mul(float a, float b) {
  asm volatile("mulss %1, %0" : "+x"(a) : "x"(b));
  return a;
}
inline double rounded_mul(double a, double b) {
  asm volatile("mulsd %1, %0" : "+x"(a) : "x"(b));
  return a;
}
inline float rounded_div(float a, float b) {
  asm volatile("divss %1, %0" : "+x"(a) : "x"(b));
  return a;
}
inline double rounded_div(double a, double b) {
  asm volatile("divsd %1, %0" : "+x"(a) : "x"(b));
  return a;
}
inline float rounded_sqrt(float a) {
  float result = 0;
  asm volatile("sqrtss %1, %0" : "=x"(result) : "x"(a));
  return result;
}
inline double rounded_sqrt(double a) {
  double result = 0;
  asm volatile("sqrtsd %1, %0" : "=x"(result) : "x"(a));
  return result;
}
inline float rounded_to_float(double a) {
  float result = 0;
  asm volatile("cvtsd2ss %1, %0" : "=x"(result) : "x"(a));
  return result;
}
inline float rounded_to_float(i64 a) {
  float result = 0;
  asm volatile("cvtsi2ssq %1, %0" : "=x"(result) : "r"(a));
  return result;
}
inline double rounded_to_double(i64 a) {
  double result = 0;
  asm volatile("cvtsi2sdq %1, %0" : "=x"(result) : "r"(a));
  return result;
}
// NOLINTEND(hicpp-no-assembler)

// libm's fma honours the direction; called through a volatile pointer so that no call is folded or moved.
inline float rounded_fma(float a, float b, float c) {
  static float (*volatile const function)(float, float, float) = &::fmaf;
  return function(a, b, c);
}
inline double rounded_fma(double a, double b, double c) {
  static double (*volatile const function)(double, double, double) = &::fma;
  return function(a, b, c);
}

inline float flush_subnormal(float value) {
  return std::abs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value;
}
inline double flush_subnormal(double value) {
  return std::abs(value) < 0x1p-1022 ? std::copysign(0.0, value) : value;
}
template <typename T>
T saturate(T value) {
  return value > T(0) ? (value < T(1) ? value : T(1)) : T(0);  // NaN gives 0
}

// The rounding modifier of an arithmetic instruction, taken; nothing when there is none.
std::optional<Rounding> take_rounding(Lowering& l);

// 16-bit floating point arithmetic: exec_half.cpp.
void lower_half_arithmetic(Lowering& l, Type type);

}  // namespace gpupool::softgpu::engine
