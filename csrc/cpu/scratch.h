// Memory of one thread, aligned to a cache line and not initialised.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace cpgr {

template <class T>
class Scratch {
public:
    explicit Scratch(int64_t count)
        : memory_(static_cast<T*>(::operator new(static_cast<std::size_t>(count) * sizeof(T), kLine))) {}
    T* get() const { return memory_.get(); }

private:
    static constexpr std::align_val_t kLine{64};
    struct Free {
        void operator()(T* memory) const { ::operator delete(memory, kLine); }
    };
    std::unique_ptr<T, Free> memory_;
};

}  // namespace cpgr
