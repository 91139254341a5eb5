// A network namespace, entered by the calling thread and left again.
#pragma once

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <sched.h>

#include "common/errors.hh"

namespace ns {

// Comes back with its end, however that comes about. A thread that cannot come back must not run another line.
class Visit {
  public:
    explicit Visit(int target) : home_(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC)) {
        if (!home_ || setns(target, CLONE_NEWNET)) {
            error_ = errno;
            home_.reset();
        }
    }
    ~Visit() {
        if (home_ && setns(home_.get(), CLONE_NEWNET)) {
            perror("nodesentry: cannot return to the agent's network namespace");
            abort();
        }
    }
    Visit(const Visit &) = delete;
    Visit &operator=(const Visit &) = delete;

    // Not 0: it has not been entered.
    int error() const {
        return error_;
    }

  private:
    Fd home_;
    int error_ = 0;
};

} // namespace ns
