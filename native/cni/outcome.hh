// What a command of the plugin can end in, and the error codes of the CNI specification, section 5.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace cni {

constexpr const char *kLatestVersion = "1.1.0";

enum Code : int {
    kIncompatibleVersion = 1,
    kInvalidEnvironment = 4,
    kIoFailure = 5,
    kDecodingFailure = 6,
    kInvalidConfiguration = 7,
    kTryAgainLater = 11,
    kNotAvailable = 50,
    kLimitedConnectivity = 51,
    kInternal = 999, // as libcni has it; the specification leaves 100 and above to plugins
};

class Error : public std::runtime_error {
  public:
    Error(int code, const std::string &message, std::string details = "")
        : std::runtime_error(message), code_(code), details_(std::move(details)) {}
    int code() const {
        return code_;
    }
    const std::string &details() const {
        return details_;
    }

  private:
    int code_;
    std::string details_;
};

} // namespace cni
