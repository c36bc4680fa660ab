// Scratch memory on cache lines, not initialised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace cpgr {

template <class T>
class Buffer {
public:
    explicit Buffer(int64_t count)
        : values_(static_cast<T*>(::operator new(static_cast<size_t>(count) * sizeof(T), std::align_val_t(64)))) {}
    ~Buffer() { ::operator delete(values_, std::align_val_t(64)); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    T* get() const { return values_; }

private:
    T* values_;
};

}  // namespace cpgr
