#include "isa.h"

#include <atomic>
#include <stdexcept>

namespace cpgr {
namespace {

Isa best_isa() {
#ifdef CPGR_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
        return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vpopcntdq") ? Isa::avx512bf16
                                                                                                 : Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
    return Isa::generic;
}

std::atomic<Isa>& chosen() {
    static std::atomic<Isa> isa{best_isa()};
    return isa;
}

std::atomic<bool> asked_for{false};

bool slow_bf16() {
#ifdef CPGR_X86
    __builtin_cpu_init();
    return __builtin_cpu_is("intel");
#else
    return false;
#endif
}

}  // namespace

Isa current_isa() { return chosen().load(std::memory_order_relaxed); }

bool multiplies_bf16() { return current_isa() == Isa::avx512bf16 && (asked_for || !slow_bf16()); }

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512bf16: return "avx512bf16";
        case Isa::avx512: return "avx512";
        case Isa::avx2: return "avx2";
        default: return "generic";
    }
}

std::vector<std::string> supported_isas() {
    std::vector<std::string> names;
    for (int level = 0; level <= static_cast<int>(best_isa()); ++level)
        names.emplace_back(isa_name(static_cast<Isa>(level)));
    return names;
}

void use_isa(const std::string& name) {
    for (int level = 0; level <= static_cast<int>(best_isa()); ++level) {
        const Isa isa = static_cast<Isa>(level);
        if (name == isa_name(isa)) {
            chosen().store(isa, std::memory_order_relaxed);
            asked_for = true;
            return;
        }
    }
    std::string known;
    for (const auto& isa : supported_isas()) known += (known.empty() ? "" : ", ") + isa;
    throw std::runtime_error("instruction set '" + name + "' cannot run here; choose one of: " + known);
}

}  // namespace cpgr
