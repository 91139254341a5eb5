// Errors as JavaScript sees them (src/native/errors.ts), and descriptors that close themselves.
#pragma once

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <unistd.h>
#include <utility>

#include <napi.h>

namespace ns {

inline Napi::Error kernel_error(Napi::Env env, int error, const char *syscall, const std::string &doing,
                                const std::string &log = "") {
    auto result = Napi::Error::New(env, doing + ": " + std::strerror(error));
    auto object = result.Value();
    const char *name = strerrorname_np(error);

    // libbpf and the kernel use a few values that libc has no name for, such as ENOTSUPP (524).
    object.Set("code", Napi::String::New(env, name ? name : (error == 524 ? "ENOTSUPP" : "UNKNOWN")));
    object.Set("errno", Napi::Number::New(env, error));
    object.Set("syscall", Napi::String::New(env, syscall));
    if (!log.empty())
        object.Set("log", Napi::String::New(env, log));
    return result;
}

class Fd {
  public:
    explicit Fd(int fd = -1) : fd_(fd) {}
    Fd(Fd &&other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
    Fd &operator=(Fd &&other) noexcept {
        reset(std::exchange(other.fd_, -1));
        return *this;
    }
    Fd(const Fd &) = delete;
    Fd &operator=(const Fd &) = delete;
    ~Fd() {
        reset();
    }
    int get() const {
        return fd_;
    }
    int release() {
        return std::exchange(fd_, -1);
    }
    void reset(int fd = -1) {
        if (fd_ >= 0)
            close(fd_);
        fd_ = fd;
    }
    explicit operator bool() const {
        return fd_ >= 0;
    }

  private:
    int fd_;
};

// For a thread of its own: the caller may close its descriptor meanwhile.
inline Fd copy_of(Napi::Env env, int fd) {
    Fd copy(fcntl(fd, F_DUPFD_CLOEXEC, 0));

    if (!copy)
        throw kernel_error(env, errno, "fcntl", "copying a descriptor");
    return copy;
}

inline int fd_argument(const Napi::CallbackInfo &info, size_t index) {
    return info[index].As<Napi::Number>().Int32Value();
}

inline std::string text_argument(const Napi::CallbackInfo &info, size_t index) {
    return info[index].As<Napi::String>().Utf8Value();
}

} // namespace ns
