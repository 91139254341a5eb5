// Reading and writing descriptors with an end to every wait.
#pragma once

#include <string>
#include <string_view>
#include <unistd.h>
#include <utility>

#include "deadline.hh"

namespace cni {

constexpr size_t kMaxDocument = 1 << 20; // bytes, of every JSON document that comes or goes

class Fd {
  public:
    explicit Fd(int fd) : fd_(fd) {}
    Fd(Fd &&other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd(const Fd &) = delete;
    Fd &operator=(const Fd &) = delete;
    ~Fd() {
        if (fd_ >= 0)
            close(fd_);
    }
    int get() const {
        return fd_;
    }
    explicit operator bool() const {
        return fd_ >= 0;
    }

  private:
    int fd_;
};

enum class Io { kDone, kTimedOut, kTooLong, kFailed };

// Until end of file. kFailed leaves errno.
Io read_all(int fd, const Deadline &deadline, std::string &into);

// A socket that does not block. kFailed leaves errno.
Io send_all(int socket, std::string_view bytes, const Deadline &deadline);

// To stdout or a log, where waiting is up to the reader. False leaves errno.
bool write_all(int fd, std::string_view bytes);

} // namespace cni
