// Which instruction set the arithmetic runs on: generic; avx2 (with FMA); avx512 (F, VL, BW, DQ); avx512bf16, which adds
// BF16 dot products and VPOPCNTDQ (Zen 4, Sapphire Rapids and later). Every file under simd/ is compiled once per level, into the
// namespace of that level; the CPU's features choose between them at run time.
#pragma once

#include <string>
#include <vector>

namespace cpgr {

enum class Isa { generic, avx2, avx512, avx512bf16 };

Isa current_isa();
// Whether products of BF16 are worth their instruction. On Intel's CPUs it runs at half the rate of the float
// multiplications that it stands for (measured on Sapphire Rapids; on AMD's at twice the rate), so there widened numbers
// are multiplied, unless the level was asked for.
bool multiplies_bf16();
const char* isa_name(Isa isa);
// The levels this build holds and this CPU runs, lowest first.
std::vector<std::string> supported_isas();
// Makes `name` the level of every later call; throws std::runtime_error if it cannot run here.
void use_isa(const std::string& name);

}  // namespace cpgr

// Declares the same functions in the namespace of each level.
#ifdef CPGR_X86
#define CPGR_DECLARE_SIMD(...)        \
    namespace generic { __VA_ARGS__ } \
    namespace avx2 { __VA_ARGS__ }    \
    namespace avx512 { __VA_ARGS__ }  \
    namespace avx512bf16 { __VA_ARGS__ }
// The function of the current level; its template arguments may hold commas.
#define CPGR_SIMD(...)                                                          \
    (::cpgr::current_isa() == ::cpgr::Isa::avx512bf16 ? avx512bf16::__VA_ARGS__ \
     : ::cpgr::current_isa() == ::cpgr::Isa::avx512   ? avx512::__VA_ARGS__     \
     : ::cpgr::current_isa() == ::cpgr::Isa::avx2     ? avx2::__VA_ARGS__       \
                                                      : generic::__VA_ARGS__)
#else
#define CPGR_DECLARE_SIMD(...) namespace generic { __VA_ARGS__ }
#define CPGR_SIMD(...) (generic::__VA_ARGS__)
#endif
