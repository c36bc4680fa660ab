// What both extension modules need: kernels take raw addresses and run without the interpreter's lock.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace cpgr {

using Address = std::uintptr_t;
using NoGil = pybind11::call_guard<pybind11::gil_scoped_release>;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// Calls `body` with a zero of the element type: double if `wide`, else float.
template <class Body>
auto with_type(bool wide, const Body& body) {
    return wide ? body(double{0}) : body(float{0});
}

// Calls `body` with zeros of the element types of numbers and of what goes with them, bytes or the same.
template <class Body>
void with_types(bool wide, bool bytes, const Body& body) {
    with_type(wide, [&](auto zero) {
        if (bytes)
            body(zero, uint8_t{0});
        else
            body(zero, zero);
    });
}

}  // namespace cpgr
