// A thread that reads one descriptor whenever there is something to read, until it is stopped.
#pragma once

#include <atomic>
#include <cerrno>
#include <functional>
#include <poll.h>
#include <sys/eventfd.h>
#include <system_error>
#include <thread>

#include <napi.h>

#include "common/errors.hh"

namespace ns {

class Reader {
  public:
    using Read = std::function<bool()>; // false: the descriptor is of no more use
    using Stop = std::function<void()>;

    explicit Reader(Napi::Env env) : env_(env), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
        if (!wake_)
            throw kernel_error(env, errno, "eventfd", "opening an eventfd");
    }
    Reader(const Reader &) = delete;
    Reader &operator=(const Reader &) = delete;
    ~Reader() {
        stop();
    }

    // Call it after the ThreadSafeFunction is made: when Node ends with the reader open, its cleanup hooks run last to
    // first, and `at_exit` has to end the thread before the function that the thread calls is freed.
    // `period_ms`: read that often also where nothing wakes; -1: never.
    void start(int fd, Read read, Stop at_exit, int period_ms = -1) {
        period_ms_ = period_ms;
        read_ = std::move(read);
        at_exit_ = std::move(at_exit);
        try {
            thread_ = std::thread([this, fd] { run(fd); });
        } catch (const std::system_error &error) {
            throw kernel_error(env_, error.code().value(), "pthread_create", "starting a thread");
        }
        napi_add_env_cleanup_hook(env_, exiting, this);
    }

    bool stopping() const {
        return stopping_;
    }

    // On the JavaScript thread, any number of times.
    void stop() {
        if (!thread_.joinable())
            return;
        stopping_ = true;
        eventfd_write(wake_.get(), 1);
        thread_.join();
        wake_.reset();
        napi_remove_env_cleanup_hook(env_, exiting, this);
    }

  private:
    static void exiting(void *self) {
        static_cast<Reader *>(self)->at_exit_();
    }

    void run(int fd) {
        pollfd fds[] = {{.fd = fd, .events = POLLIN, .revents = 0},
                        {.fd = wake_.get(), .events = POLLIN, .revents = 0}};

        while (!stopping_) {
            int ready = poll(fds, 2, period_ms_);
            if (ready < 0) {
                if (errno != EINTR)
                    return;
                continue;
            }
            if (!stopping_ && (ready == 0 || fds[0].revents) && !read_())
                return;
        }
    }

    napi_env env_;
    int period_ms_ = -1;
    Fd wake_;
    std::atomic<bool> stopping_{false};
    Read read_;
    Stop at_exit_;
    std::thread thread_;
};

} // namespace ns
