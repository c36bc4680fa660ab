// Thresholds are doubles, overlaps may be floats.
#pragma once

#include <cmath>
#include <limits>

namespace cpgr {

// The largest T at or below the threshold: `iou > rounded` in T is then `iou > threshold` in double, which is what
// torchvision compares, for every iou of type T.
template <class T>
T round_down(double threshold) {
    const T rounded = static_cast<T>(threshold);
    return rounded > threshold ? std::nextafter(rounded, -std::numeric_limits<T>::infinity()) : rounded;
}

}  // namespace cpgr
