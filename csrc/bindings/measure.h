// The measure that a binding's options name, for an element type.
#pragma once

#include <limits>

#include "../box.h"

namespace cpgr {

template <class T>
Iou<T> measure_of(T) {
    return {};
}

// `eps` 0: no floor.
template <class T>
GeneralizedIou<T> measure_of(T, double eps) {
    return {eps > 0 ? static_cast<T>(eps) : -std::numeric_limits<T>::infinity()};
}

}  // namespace cpgr
